"""What each process computes of a request that process 0 sends to all: the same calls in the same order.

A request that fails in one process fails in all, and leaves them ready for the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch

from mint_train.backends.local.adapter import LoraShape
from mint_train.backends.local.client import LocalTrainingClient, Scoring, model_errors
from mint_train.backends.local.group import Group, LostProcessError
from mint_train.backends.local.load import open_local_client
from mint_train.backends.local.packing import TokenSequence
from mint_train.backends.local.states import checksum
from mint_train.errors import BackendError, MintTrainError
from mint_train.sdk import types

Values: TypeAlias = list[torch.Tensor]
"""Logprobs per sequence, and behind them what was asked of the vocabulary, quantity by quantity."""


class AbortedError(Exception):
    """Another process failed in the middle of a request, and reports why."""


@dataclass
class Held:
    """A client of this process, with the engine that computes its share."""

    client: LocalTrainingClient
    engine: Scoring


@dataclass(frozen=True)
class Share:
    """The sequences of a request that one process scores."""

    sequences: list[TokenSequence]
    vocabulary: tuple[str, ...] = ()
    known: list[torch.Tensor] | None = None
    """The gradients by their values, where they are known before."""


class Part:
    """The clients of one process, by the number that process 0 gave them, and what it does with them."""

    def __init__(self, group: Group, scratch: Path) -> None:
        """Begin without clients.

        Args:
            group: all processes.
            scratch: where this process keeps what a client needs on disk, if that is not in the run's folder.
        """
        self.group, self.scratch = group, scratch
        self.held: dict[int, Held] = {}
        self.failure: Exception | None = None
        """What failed in an update, and is reported when the next request is."""

    def open(self, number: int, opening: Opening, folder: Path | None = None) -> list[Any]:
        """Open a client, in process 0 of a run's folder; return each one's checksum of the adapter."""

        def opened() -> str:
            client = opening.open(folder or self.scratch)
            self.held[number] = Held(client, client.engine)
            return weights_checksum(client)

        return self.group.collect(self.attempt(opened))

    def drop(self, numbers: Sequence[int]) -> None:
        """Drop clients that are out of use."""
        for number in numbers:
            self.held.pop(number, None)

    def keep_reference(self, number: int) -> list[Any]:
        """Take the adapter as it is now as the reference; return a failure or None of each process."""
        return self.group.collect(self.attempt(self.held[number].engine.keep_reference))

    def forward(self, number: int, policy: dict[str, bool], share: Share) -> list[Any]:
        """Score a share of the sequences; return a failure or the values of each process.

        Args:
            number: of the client.
            policy: whether it is that of the adapter, or the reference, as `Engine.forward` takes them.
            share: of this process.
        """
        engine = self.held[number].engine

        def scored() -> Values:
            return engine.forward(share.sequences, **policy, vocabulary=share.vocabulary)

        return self.group.collect(self.attempt(scored))

    def forward_backward(
        self, number: int, share: Share, loss: Callable[[list[Values]], list[Values]] | None = None
    ) -> list[Any]:
        """Add the gradients of a share of the sequences to the adapter's of this process.

        Args:
            number: of the client.
            share: of this process.
            loss: in process 0, turns the values of all processes into the loss's gradients by them.

        Returns:
            a failure or None of each process.
        """
        engine = self.held[number].engine
        given: list[Values | Exception] = []

        def own_loss(values: Values) -> torch.Tensor:
            if not given:  # once, even if memory runs out and the engine tries again
                own = [value.detach() for value in values]
                given.append(self.attempt(lambda: self.gradients_of(own, loss)))
            if isinstance(given[0], Exception):
                raise given[0]
            # the gradients of this sum are those of the loss, to the bit
            parts = [(value * gradient).sum() for value, gradient in zip(values, given[0], strict=True)]
            return torch.stack([torch.zeros((), requires_grad=True), *parts]).sum()

        failure = self.attempt(
            lambda: engine.forward_backward(share.sequences, own_loss, share.vocabulary, share.known)
        )
        if not given:  # it failed before; the others wait for it
            self.attempt(lambda: self.gradients_of(failure, loss))
        return self.group.collect(failure)

    def gradients_of(
        self, own: Values | Exception | None, loss: Callable[[list[Values]], list[Values]] | None
    ) -> Values:
        """Give process 0 the values of this process, or why there are none; return the gradients by them.

        Raises:
            AbortedError: there are none, because something failed that process 0 reports.
            Exception: in process 0, what failed.
        """
        found = self.group.collect(own)
        if loss is not None:
            try:
                raise_failure(found)
                gradients = loss(found)
            except Exception:
                self.group.hand_out([None] * self.group.count)
                raise
            self.group.hand_out(gradients)
            return gradients[0]
        given: Values | None = self.group.hand_out()
        if given is None:
            raise AbortedError
        return given

    def optim_step(self, number: int, params: types.AdamParams) -> list[Any]:
        """Sum the gradients over all processes and update the adapter, which stays the same in each."""
        client = self.held[number].client
        self.sum_gradients(list(client.parameters.values()))
        # nothing is sent after the update: if a process is lost, the weights here are those of a whole step
        failure = failed(self.attempt(lambda: LocalTrainingClient.optim_step(client, params)))
        if self.group.rank:
            self.failure = failure
        return [failure]

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Put the sums over all processes in place of gradients; where no process has one, none."""
        having = self.group.exchange([parameter.grad is not None for parameter in parameters])
        summed = [one for one, *known in zip(parameters, *having, strict=True) if any(known)]
        if not summed:
            return
        own = [torch.zeros_like(one) if one.grad is None else one.grad for one in summed]
        flat = torch.cat([gradient.flatten() for gradient in own])
        self.group.add_up(flat)
        for parameter, total in zip(summed, flat.split([one.numel() for one in summed]), strict=True):
            parameter.grad = total.view_as(parameter)

    def call(self, number: int, method: str, *arguments: Any) -> list[Any]:
        """Call a method of the client; return a failure or None of each process."""
        client = self.held[number].client
        return self.group.collect(
            failed(self.attempt(lambda: getattr(LocalTrainingClient, method)(client, *arguments)))
        )

    def checksum(self, number: int) -> list[Any]:
        """Return a failure or the checksum of the weights of each process."""
        return self.group.collect(self.attempt(lambda: weights_checksum(self.held[number].client)))

    def attempt(self, computed: Callable[[], Any]) -> Any:
        """Return what is computed, or why it failed."""
        earlier, self.failure = self.failure, None
        if earlier is not None:
            return earlier
        try:
            if self.group.rank == 0:  # whoever asked words the errors
                return computed()
            with model_errors():
                return computed()
        except (MintTrainError, AbortedError) as error:
            if isinstance(error, LostProcessError):
                raise
            return error
        except Exception as error:
            return error if self.group.rank == 0 else BackendError(f"{type(error).__name__}: {error}")


@dataclass(frozen=True)
class Opening:
    """How a client is opened; `open_local_client` takes the same."""

    model: str | None
    lora: LoraShape
    seed: int
    options: dict[str, Any]

    def open(self, folder: Path) -> LocalTrainingClient:
        """Open it.

        Raises:
            UserError: the model cannot be loaded, or lacks a layer that is to get an adapter.
            BackendError: the model's computation fails.
        """
        return open_local_client(self.model, self.lora, self.seed, folder, **self.options)


def failed(found: Any) -> Exception | None:
    """Return a failure, and nothing of what was computed."""
    return found if isinstance(found, Exception) else None


def weights_checksum(client: LocalTrainingClient) -> str:
    """Return the SHA-256 of the adapter's weights."""
    return checksum({name: value.detach().cpu().contiguous() for name, value in client.parameters.items()})


def raise_failure(found: Sequence[Any]) -> None:
    """Raise the first failure that processes report, with the process if it is not this one.

    Raises:
        Exception: what this process, which is 0, raised.
        MintTrainError: what another one did.
    """
    failures = [(rank, one) for rank, one in enumerate(found) if isinstance(one, Exception)]
    for rank, failure in failures:
        if isinstance(failure, AbortedError):
            continue
        if rank and isinstance(failure, MintTrainError):
            failure.locate(f"process {rank}")
        raise failure
