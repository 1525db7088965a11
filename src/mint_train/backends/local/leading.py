"""The training client of process 0, which has all processes compute; the others hold the same weights."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from mint_train.backends.local.adapter import LoraShape
from mint_train.backends.local.client import LocalTrainingClient, completed
from mint_train.backends.local.engine import LossFunction
from mint_train.backends.local.group import Group, LostProcessError
from mint_train.backends.local.packing import TokenSequence, divide_sequences
from mint_train.backends.local.part import Opening, Part, Share, Values, raise_failure
from mint_train.errors import BackendError
from mint_train.run_folder.description import QuantizationDescription
from mint_train.sdk import Datum, types

END = "end"
"""The request after which a process ends."""


class Leader:
    """Sends requests to all processes, and computes the part of process 0."""

    def __init__(self, group: Group, scratch: Path) -> None:
        self.group = group
        self.part = Part(group, scratch)
        self.closed: list[int] = []
        """Numbers of clients out of use, which all processes drop at the next request."""
        self.clients = 0
        self.between = True
        """Whether the others wait for a request; not so if an interrupt came in the middle of one."""

    def request(
        self, name: str, *arguments: Any, each: Sequence[tuple[Any, ...]] = (), own: Any = None
    ) -> Any:
        """Have all processes compute a request.

        Args:
            name: a method of `Part`.
            arguments: what all get.
            each: what each gets behind them, by rank.
            own: what process 0 gets behind them.

        Returns:
            what each process brings, by rank.

        Raises:
            LostProcessError: a process has ended.
            Exception: what failed in a process.
        """
        if not self.between:
            raise LostProcessError("the processes of this run were interrupted in the middle of a request")
        closed, self.closed = self.closed, []
        shares = each or [()] * self.group.count
        self.between = False
        self.group.hand_out([(name, closed, (*arguments, *share)) for share in shares])
        self.part.drop(closed)
        behind = () if own is None else (own,)
        found = getattr(self.part, name)(*arguments, *shares[0], *behind)
        self.between = True
        raise_failure(found)
        return found

    def open(
        self, model: str | None, lora: LoraShape, seed: int, folder: Path, options: dict[str, Any]
    ) -> LeadingClient:
        """Open a client in all processes; `open_local_client` says of what, and what it raises."""
        opening = Opening(model, lora, seed, options)
        number, self.clients = self.clients, self.clients + 1
        found = self.request("open", number, opening, own=folder)
        refuse_other_weights(found)
        client = LeadingClient(self, number)
        weakref.finalize(client, self.closed.append, number)
        return client

    def end(self) -> None:
        """End the other processes; they end by themselves where they can no longer be told."""
        if self.between and not self.group.lost:
            with suppress(LostProcessError):
                self.group.hand_out([(END, [], ())] * self.group.count)
        self.group.close()


class SharedEngine:
    """Computes as an `Engine` does, each process a share of the sequences."""

    def __init__(self, leader: Leader, number: int) -> None:
        self.leader, self.number = leader, number

    def keep_reference(self) -> None:
        """Take the adapter as it is now as the reference in all processes."""
        self.leader.request("keep_reference", self.number)

    def forward(
        self,
        sequences: Sequence[TokenSequence],
        *,
        adapter: bool = True,
        reference: bool = False,
        vocabulary: Sequence[str] = (),
    ) -> Values:
        """Compute the logprobs of the target tokens, as `Engine` does."""
        divided = self.divide(sequences)
        shares = [Share([sequences[index] for index in part], tuple(vocabulary)) for part in divided]
        policy = {"adapter": adapter, "reference": reference}
        found = self.leader.request("forward", self.number, policy, each=[(share,) for share in shares])
        return in_order(found, divided, len(sequences))

    def forward_backward(
        self,
        sequences: Sequence[TokenSequence],
        loss_fn: LossFunction,
        vocabulary: Sequence[str] = (),
        known: Sequence[torch.Tensor] | None = None,
    ) -> None:
        """Add the gradient of a loss of the whole batch, each process what its share of it adds.

        Where memory runs out in one process, the gradients of others may have changed: no update follows.
        """
        divided, count = self.divide(sequences), len(sequences)

        def of_part(values: Sequence[torch.Tensor], part: list[int]) -> Values:
            return [values[start + index] for start in range(0, len(values), count) for index in part]

        def loss_of_all(found: list[Values]) -> list[Values]:
            values = [value.requires_grad_() for value in in_order(found, divided, count)]
            loss = loss_fn(values)
            if known is not None:
                gradients = [torch.zeros_like(value) for value in values]
            else:
                loss.backward()
                gradients = [torch.zeros_like(v) if v.grad is None else v.grad for v in values]
            return [of_part(gradients, part) for part in divided]

        shares = [
            Share(
                [sequences[index] for index in part],
                tuple(vocabulary),
                None if known is None else of_part(known, part),
            )
            for part in divided
        ]
        each = [(share,) for share in shares]
        self.leader.request("forward_backward", self.number, each=each, own=loss_of_all)

    def divide(self, sequences: Sequence[TokenSequence]) -> list[list[int]]:
        """Return the indices of the sequences that each process scores."""
        return divide_sequences(sequences, self.leader.group.count)


class LeadingClient(LocalTrainingClient):
    """Trains one adapter in all processes, each of which has the same weights and moments."""

    def __init__(self, leader: Leader, number: int) -> None:
        """Take the client of process 0 that has this number."""
        own = leader.part.held[number].client
        super().__init__(own.model, own.tokenizer, SharedEngine(leader, number), own.folder)
        self.parameters, self.optimizer = own.parameters, own.optimizer
        self.leader, self.number = leader, number

    def base_identity(self) -> Mapping[str, Any] | None:
        """Return what decides the logprobs of the base model; shares of a batch round otherwise."""
        identity = super().base_identity()
        return identity and {**identity, "processes": self.leader.group.count}

    def quantization(self, data: Sequence[Datum]) -> QuantizationDescription | None:
        """Compare the base model's logprobs with those of its unquantised weights, in process 0 alone."""
        return self.leader.part.held[self.number].client.quantization(data)

    def optim_step(self, adam_params: types.AdamParams) -> Future[types.OptimStepResponse]:
        """Sum the gradients over the processes, and update the adapter in each."""
        self.leader.request("optim_step", self.number, adam_params)
        return completed(types.OptimStepResponse())

    def save_state(self, name: str) -> Future[types.SaveWeightsResponse]:
        """Save adapter and optimiser, if they are the same in all processes.

        Raises:
            BackendError: they are not, or cannot be written.
        """
        if not self.leader.group.lost and self.leader.between:
            refuse_other_weights(self.leader.request("checksum", self.number))
        return super().save_state(name)

    def load_state(self, path: str) -> Future[types.LoadWeightsResponse]:
        """Load weights in all processes."""
        self.leader.request("call", self.number, "load_state", path)
        return completed(types.LoadWeightsResponse(path=path))

    def load_state_with_optimizer(self, path: str) -> Future[types.LoadWeightsResponse]:
        """Load a state in all processes."""
        self.leader.request("call", self.number, "load_state_with_optimizer", path)
        return completed(types.LoadWeightsResponse(path=path))


def in_order(found: Sequence[Values], divided: Sequence[list[int]], count: int) -> Values:
    """Put the values of all processes in the order of their sequences, quantity by quantity.

    Args:
        found: values by process.
        divided: the indices of the sequences of each process.
        count: how many sequences there are.
    """
    placed: dict[int, torch.Tensor] = {}
    for values, part in zip(found, divided, strict=True):
        for position, value in enumerate(values):
            quantity, index = divmod(position, len(part))
            placed[quantity * count + part[index]] = value
    return [placed[index] for index in range(len(placed))]


def refuse_other_weights(checksums: Sequence[str]) -> None:
    """Refuse adapters that should be the same in all processes.

    Raises:
        BackendError: naming the first process that has another one.
    """
    for rank, checksum in enumerate(checksums):
        if checksum != checksums[0]:
            raise BackendError(
                f"the weights of process {rank} are not those of process 0, and nothing is saved; "
                "resume from the last checkpoint"
            )
