"""Waiting for the service: the user is told of a long wait, and a service that is silent is given up."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar

from mint_train.backends.mint.http_client import Connection
from mint_train.errors import ServiceError

Result = TypeVar("Result")

PATIENCE_SECONDS = 300.0
"""How long a service may be silent while a result is awaited: as long as the SDK repeats a request."""
TOLD_SECONDS = 15.0
"""How long a wait is when the user is first told of it; then after twice as long, and so on."""
LOOK_SECONDS = 1.0


class Wait:
    """One wait for a service, which starts now."""

    def __init__(
        self, connection: Connection, url: str, doing: str, tell: Callable[[str], None] = lambda _: None
    ) -> None:
        """Take what the service is asked to do, and a function that tells the user one line."""
        self.connection, self.tell = connection, tell
        self.where, self.doing = f"the service at {url}", doing
        self.started = time.monotonic()
        self.told_after = TOLD_SECONDS

    def look(self) -> None:
        """Report to the user how long the wait has been, if it is time to.

        Raises:
            ServiceError: nothing was heard of the service for `PATIENCE_SECONDS`.
        """
        now = time.monotonic()
        if now - self.started >= self.told_after:
            self.told_after *= 2
            failing = self.connection.failing_seconds()
            since = f"; it cannot be reached for {failing:.0f} s" if failing else ""
            self.tell(f"waiting for {self.where} to {self.doing}: {now - self.started:.0f} s so far{since}")
        silent = now - max(self.started, self.connection.heard_at)
        if max(silent, self.connection.failing_seconds()) > PATIENCE_SECONDS:
            minutes = f"{PATIENCE_SECONDS / 60:.0f} minutes"
            raise ServiceError(f"{self.where} has not answered for {minutes} while asked to {self.doing}")

    def until(self, future: Future[Result], timeout: float | None = None) -> Result:
        """Wait for a future.

        Raises:
            ServiceError: nothing was heard of the service for `PATIENCE_SECONDS`.
            TimeoutError: the timeout, in seconds, is over.
        """
        end = None if timeout is None else self.started + timeout
        while True:
            try:
                left = LOOK_SECONDS if end is None else max(0.0, end - time.monotonic())
                return future.result(min(left, LOOK_SECONDS))
            except TimeoutError:
                if future.done() or (end is not None and time.monotonic() >= end):
                    raise
            try:
                self.look()
            except ServiceError:
                future.cancel()
                raise


def in_thread(function: Callable[[], Result]) -> Future[Result]:
    """Call a function that blocks in a thread of its own, which ends with the program."""
    future: Future[Result] = Future()
    future.set_running_or_notify_cancel()

    def call() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=call, daemon=True).start()
    return future
