"""Ctrl-C and SIGTERM, taken between two steps."""

from __future__ import annotations

import signal
import sys
import threading
import time
from types import FrameType
from typing import Any


class Interrupts:
    """While it is entered, the first interrupt is noted in `asked`; a second one stops at once."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        """Take the signals, where this is the main thread: elsewhere Python allows no handler."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def pause(self, seconds: float) -> None:
        """Sleep, but no longer than until the first interrupt."""
        end = time.monotonic() + seconds
        while not self.asked and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        print("Stopping after this step to save the state; once more stops at once.", file=sys.stderr)  # noqa: T201
