"""Reference logprobs from a second adapter on a service, computed while the run's own adapter is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import islice
from threading import Condition, Lock, Thread
from typing import Any, Self

from mint_train.backends.base import Future, TrainingClient
from mint_train.batches.groups import Groups
from mint_train.errors import BackendError, MintTrainError
from mint_train.groups.reference import Reference, ReferenceLogprobs
from mint_train.sdk import Datum

BLOCKS_AT_ONCE = 4
"""Blocks of a request, which may delay a step's own: 32 pairs forward, about the work of a step of eight."""
CLOSE_SECONDS = 10.0


class SecondAdapter:
    """The policy that a run begins with, on an adapter of its own, which is opened again after a failure."""

    def __init__(self, open_client: Callable[[], TrainingClient]) -> None:
        """Take what opens a client with the adapter that the run begins with."""
        self._open_client = open_client
        self._client: TrainingClient | None = None
        self._lock = Lock()
        self._ended = False

    def open(self) -> TrainingClient:
        """Return the client, opened if need be.

        Raises:
            MintTrainError: the service refuses, has no free slot, or fails.
        """
        with self._lock:
            if self._ended:
                raise BackendError("the run has ended")
            if self._client is None:
                self._client = self._open_client()
            return self._client

    def forward(self, data: list[Datum], loss_fn: str) -> Future[Any]:
        """Compute the logprobs of the target tokens."""
        return self.open().forward(data, loss_fn)

    def close(self, *, ended: bool = False) -> None:
        """Free the slot on the service.

        Args:
            ended: whether it must not be opened again.
        """
        with self._lock:
            self._ended |= ended
            client, self._client = self._client, None
        if client is not None:
            client.close()


class LogprobsAhead(ReferenceLogprobs):
    """Reference logprobs that a thread asks for in the order in which steps need them.

    Entered, it runs ahead until all are there; left, it ends. A step that needs what the thread could not
    get asks itself, and so meets the failure, whose recovery is that of a step.
    """

    def __init__(
        self, reference: Reference, groups: Groups, adapter: SecondAdapter, blocks: Sequence[int]
    ) -> None:
        """Take the groups, the adapter that the reference asks, and the blocks in the order of their use."""
        super().__init__(reference, groups)
        self._adapter, self._blocks = adapter, blocks
        self._arrived = Condition()
        self._thread: Thread | None = None
        self._entered = self._ended = False
        self.runs = False
        """Whether the thread asks."""

    def __enter__(self) -> Self:
        self._entered = True
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the thread, and free the second adapter's slot."""
        self._ended = True
        self._adapter.close(ended=True)  # which ends a request in flight
        if self._thread is not None:
            self._thread.join(CLOSE_SECONDS)

    def require(self, blocks: Iterable[int]) -> None:
        """Return once the logprobs of some blocks are there; see `ReferencedGroups.require`."""
        wanted = set(blocks)
        with self._arrived:
            self._arrived.wait_for(lambda: not self.runs or wanted <= self._there)
        if wanted <= self._there:
            return
        try:
            super().require(wanted)
        except MintTrainError:
            self._adapter.close()  # the next attempt opens another one
            raise
        if self._entered:
            self._start()

    def _start(self) -> None:
        self.runs = True
        self._thread = Thread(target=self._run_ahead, daemon=True)
        self._thread.start()

    def _run_ahead(self) -> None:
        blocks = iter(self._blocks)
        with suppress(Exception):  # whatever it is, the next step that asks meets it
            while not self._ended and (some := list(islice(blocks, BLOCKS_AT_ONCE))):
                super().require(some)
                with self._arrived:
                    self._arrived.notify_all()
        self._adapter.close()
        with self._arrived:
            self.runs = False
            self._arrived.notify_all()
