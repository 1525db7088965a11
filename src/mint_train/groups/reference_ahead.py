"""Reference logprobs from a second adapter on a service, computed while the run's own adapter is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from threading import Condition, Lock, Thread
from typing import Any, Self

from mint_train.backends.base import Forwards, Future, TrainingClient
from mint_train.batches.groups import Groups
from mint_train.errors import BackendError, MintTrainError, ServiceError
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

    The first step is begun before the second adapter is there. So `settle` comes before the run's own adapter
    changes, which can still give all logprobs if a second one is refused.
    """

    def __init__(
        self,
        reference: Reference,
        groups: Groups,
        adapter: SecondAdapter,
        blocks: Sequence[int],
        notice: Callable[[str], None],
    ) -> None:
        """Take the groups, the adapter that the reference asks, and the blocks in the order of their use.

        `notice` tells the user one line.
        """
        super().__init__(reference, groups)
        self._adapter, self._blocks, self._notice = adapter, blocks, notice
        self._arrived = Condition()
        self._thread: Thread | None = None
        self._entered = self._ended = False
        self.runs = False
        """Whether the thread asks."""
        self.settled = False
        """Whether the logprobs do not depend on the run's own adapter any more."""

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

    def settle(self, beginning: Forwards) -> None:
        """Return once the run's own adapter may change: a second one is there, or all logprobs are.

        Args:
            beginning: the run's own adapter, whose policy is still the one that the run begins with.

        Raises:
            ServiceError: the second adapter could not be opened, which may pass.
            BackendError: a forward failed.
        """
        with self._arrived:
            self._arrived.wait_for(lambda: self.settled or not self.runs)
        if self.settled:
            return
        try:
            self._adapter.open()  # again: what the thread met may have passed
        except ServiceError:
            raise
        except MintTrainError as refused:
            self._notice(f"Reference logprobs: all others now, as a second adapter is refused: {refused}")
            ReferenceLogprobs(replace(self._reference, policy=beginning), self._groups).require(self._blocks)
            self._there.update(self._blocks)
        else:
            self._start()
        self.settled = True

    def require(self, blocks: Iterable[int]) -> None:
        """Return once the logprobs of some blocks are there; see `ReferencedGroups.require`.

        Raises:
            ServiceError: the second adapter is lost, and another one is refused; `settle` can mend it.
        """
        wanted = set(blocks)
        with self._arrived:
            self._arrived.wait_for(lambda: not self.runs or wanted <= self._there)
        if not self.missing(wanted):
            return
        try:
            self._open_again()
            super().require(wanted)
        except MintTrainError:
            self.settled = False
            self._adapter.close()  # the next attempt opens another one
            raise
        if self._entered:
            self._start()

    def _open_again(self) -> None:
        try:
            self._adapter.open()
        except BackendError as refused:
            raise ServiceError(f"the second adapter is lost: {refused}") from refused

    def _start(self) -> None:
        self.runs = True
        self._thread = Thread(target=self._run_ahead, daemon=True)
        self._thread.start()

    def _run_ahead(self) -> None:
        blocks = iter(self._blocks)
        with suppress(Exception):  # whatever it is, the next step that asks meets it
            self._adapter.open()
            with self._arrived:
                self.settled = True
                self._arrived.notify_all()
            while not self._ended and (some := list(islice(blocks, BLOCKS_AT_ONCE))):
                super().require(some)
                with self._arrived:
                    self._arrived.notify_all()
        self._adapter.close()
        with self._arrived:
            self.runs = False
            self._arrived.notify_all()
