"""Ctrl-C, SIGTERM and the SIGHUP of a lost terminal, handled between two steps."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any


class Interrupts:
    """While it is entered, the first interrupt only sets `asked`; a second one stops the program at once."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        """Take a function that tells the user one line."""
        self.asked = False
        self._warn = warn
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        """Install the handlers, on the main thread only: Python allows them nowhere else."""
        if threading.current_thread() is threading.main_thread():
            for number in handled_signals():
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        """Put the handlers of before back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def pause(self, seconds: float) -> None:
        """Sleep, but wake up at the first interrupt."""
        end = time.monotonic() + seconds
        while not self.asked and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        self._warn("Stopping after this step to save a checkpoint. Press Ctrl-C again to stop immediately.")


def handled_signals() -> list[int]:
    """Return the signals that save a checkpoint; under `nohup` a lost terminal is ignored, and stays so."""
    hangup = getattr(signal, "SIGHUP", None)  # Windows has none
    ignored = hangup is None or signal.getsignal(hangup) is signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM, *([] if hangup is None or ignored else [hangup])]
