"""A chat template that refuses a conversation makes a bad row; one that never ends is stopped."""

from __future__ import annotations

import ctypes
import os
import threading
import time

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


class template_refusals:  # noqa: N801 - used as a function is; contextlib's costs as much as a short rendering
    """Turn whatever a chat template raises into an error of the row that it was given.

    Raises:
        RowError: with the first line of what the template says.
        EndlessTemplateError: it does not end.
    """

    def __enter__(self) -> None:
        self._outermost = WATCH.enter()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._outermost:
            WATCH.leave()
        if error is None or isinstance(error, MintTrainError) or not isinstance(error, Exception):
            return
        from jinja2.exceptions import SecurityError

        problem = "refuses the conversation"
        if isinstance(error, SecurityError):
            problem = "tries to reach what it must not (templates run in a sandbox)"
        raise RowError("prompt", f"the chat template {problem}: {first_line(error)}") from error


class Watch:
    """A thread that stops renderings which do not end.

    A timer for each rendering would cost more than most renderings do.
    """

    def __init__(self) -> None:
        self._running: dict[int, object] = {}
        """By thread, what stands for the rendering that it is in."""
        self._process = 0
        """The one whose thread looks: a fork has no threads."""

    def enter(self) -> bool:
        """Let this thread be stopped from now on; return whether it could not be before."""
        if self._process != os.getpid():
            threading.Thread(target=self._look, daemon=True).start()
            self._process = os.getpid()
        own = threading.get_ident()
        if own in self._running:
            return False
        self._running[own] = object()
        return True

    def leave(self) -> None:
        """Stop this thread no more."""
        self._running.pop(threading.get_ident(), None)

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
