"""A chat template that refuses a conversation makes a bad row; one that never ends is stopped."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from mint_train.errors import MintTrainError, RowError, UserError

LOOK_SECONDS = 1.0
"""How often the renderings in progress are looked at."""
MOST_LOOKS = 60
"""Looks after which a rendering, which usually takes a thousandth of a second, is stopped."""


class EndlessTemplateError(UserError):
    """A chat template that does not end, whatever the row."""

    @property
    def message(self) -> str:
        """What happened; in the thread that renders it is raised without a text."""
        if self.args:
            return super().message
        seconds = f"{LOOK_SECONDS * MOST_LOOKS:g} s"
        return f"the chat template has not ended after {seconds}; give another with --chat-template FILE"


@contextmanager
def template_refusals(field: str = "prompt") -> Iterator[None]:
    """Turn whatever a chat template raises into an error of the row that it was given.

    Raises:
        RowError: with the first line of what the template says.
        EndlessTemplateError: it does not end.
    """
    from jinja2.exceptions import SecurityError

    try:
        with WATCH.rendering():
            yield
    except MintTrainError:
        raise
    except SecurityError as error:
        problem = "tries to reach what it must not (templates run in a sandbox)"
        raise RowError(field, f"the chat template {problem}: {first_line(error)}") from error
    except Exception as error:
        raise RowError(field, f"the chat template refuses the conversation: {first_line(error)}") from error


class Watch:
    """A thread that stops renderings which do not end.

    A timer for each rendering would cost more than most renderings do.
    """

    def __init__(self) -> None:
        self._running: dict[int, object] = {}
        """By thread, what stands for the rendering that it is in."""
        self._thread: threading.Thread | None = None

    @contextmanager
    def rendering(self) -> Iterator[None]:
        """Let this thread be stopped while it is in here."""
        if self._thread is None or not self._thread.is_alive():  # a fork has no threads
            self._thread = threading.Thread(target=self._look, daemon=True)
            self._thread.start()
        own = threading.get_ident()
        outer = self._running.get(own)
        self._running[own] = outer or object()
        try:
            yield
        finally:
            if outer is None:
                self._running.pop(own, None)

    def _look(self) -> None:
        """Count how often each rendering is met, and raise an error in the thread of one met too often."""
        met: dict[int, tuple[object, int]] = {}
        while True:
            time.sleep(LOOK_SECONDS)
            for thread, mark in list(self._running.items()):
                seen, looks = met.get(thread, (mark, 0))
                met[thread] = (mark, looks + 1 if seen is mark else 1)
                if met[thread][1] >= MOST_LOOKS:
                    error = ctypes.py_object(EndlessTemplateError)
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), error)
                    del met[thread]


WATCH = Watch()


def first_line(error: Exception) -> str:
    """Return the first line of an error."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
