"""Ctrl-C, SIGTERM and the SIGHUP of a lost terminal, handled between two steps."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from threading import Thread
from types import FrameType
from typing import Any

STOPPING = "Stopping after this step to save a checkpoint. Press Ctrl-C again to stop immediately."


class Interrupts:
    """While it is entered, the first interrupt only sets `asked`; a second one stops the program at once."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        """Take a function that tells the user one line."""
        self.asked = False
        self._warn = warn
        self._warning: Thread | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        """Install the handlers, on the main thread only: Python allows them nowhere else."""
        if threading.current_thread() is threading.main_thread():
            for number in handled_signals():
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        """Put the handlers of before back, once the user has been told."""
        if self._warning is not None:
            self._warning.join()
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
        # the handler may have interrupted a write to the same stream, which cannot be entered twice
        self._warning = Thread(target=self._warn, args=(STOPPING,))
        self._warning.start()


def handled_signals() -> list[int]:
    """Return the signals that save a checkpoint; under `nohup` a lost terminal is ignored, and stays so."""
    hangup = getattr(signal, "SIGHUP", None)  # Windows has none
    ignored = hangup is None or signal.getsignal(hangup) is signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM, *([] if hangup is None or ignored else [hangup])]
