"""Batches of pairs with given logprobs, and the losses of the family by name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points

import torch

from mint_train.batches.batch import Batch
from mint_train.batches.datums import attach, build_datum
from mint_train.batches.groups import Group
from mint_train.errors import Source
from mint_train.losses.loss import Loss
from mint_train.plugins.discovery import load_plugin

PROMPT = (5, 6, 7)
JUNK = -7.25  # stands where nothing is trained: no loss may see it

OF_VOCABULARY = {"tdpo", "mallowspo"}
"""Losses that need more than logprobs; `wpo` can do without."""

FAMILY = sorted(
    entry.name
    for entry in entry_points(group="mint_train.losses")
    if entry.dist is not None
    and entry.dist.name in ("mint-train-dpo", "mint-train-preferences")
    and entry.name not in ("tpo", "tpo-l", "xpo")  # on triples
    and entry.name not in OF_VOCABULARY
)


@dataclass(frozen=True)
class PairLogprobs:
    """The logprobs of a pair's completion tokens under policy and reference, and what else its row says."""

    chosen: Sequence[float]
    rejected: Sequence[float]
    reference_chosen: Sequence[float]
    reference_rejected: Sequence[float]
    scores: tuple[float, float] = (2.0, 1.0)
    p_chosen: float = 0.8
    tie: bool = False
    token_weights: tuple[Sequence[float], Sequence[float]] | None = None
    """By default 1 for each token."""


def make_batch(
    pairs: Iterable[PairLogprobs], dtype: torch.dtype = torch.float64
) -> tuple[Batch, list[torch.Tensor]]:
    """Build the batch of some pairs, and the policy's logprobs as leaves that ask for a gradient."""
    groups, logprobs = [], []
    for number, pair in enumerate(pairs):
        flattened, references = [], []
        token_weights = pair.token_weights or ([1.0] * len(pair.chosen), [1.0] * len(pair.rejected))
        sides = (
            (pair.chosen, pair.reference_chosen, pair.scores[0], token_weights[0], 100),
            (pair.rejected, pair.reference_rejected, pair.scores[1], token_weights[1], 200),
        )
        for policy, reference, score, weights, first_token in sides:
            completion = [first_token + index for index in range(len(policy))]
            said = {"score": score, "p_chosen": pair.p_chosen, "tie": float(pair.tie)}
            said["token_weights"] = [0.0] * (len(PROMPT) - 1) + list(weights)
            flattened.append(attach(build_datum(PROMPT, completion, None), **said))
            references.append(with_prompt(reference, dtype))
            logprobs.append(with_prompt(policy, dtype).requires_grad_())
        group = Group.of(flattened, Source("pairs.jsonl", number + 1))
        groups.append(Group(group.datums, group.source, group.attached, reference_logprobs=tuple(references)))
    return Batch(groups), logprobs


def with_prompt(completion: Sequence[float], dtype: torch.dtype) -> torch.Tensor:
    """Put junk where the prompt's tokens are predicted."""
    return torch.tensor([JUNK] * (len(PROMPT) - 1) + list(completion), dtype=dtype)


def completion_part(logprobs: torch.Tensor) -> torch.Tensor:
    """Cut a datum's logprobs, or their gradient, to those of the completion's tokens."""
    return logprobs[len(PROMPT) - 1 :]


@cache
def open_loss(name: str, **options: object) -> Loss:
    """Load a loss of the family; unless told otherwise DPO with a reference, WPO without alignment."""
    if name == "dpo":
        options = {"reference": "initial", **options}
    if name == "wpo":
        options = {"alignment": False, **options}
    return Loss.of(load_plugin(name), options)


def value_and_gradients(
    loss: Loss, batch: Batch, logprobs: Sequence[torch.Tensor], state: dict[str, float] | None = None
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Compute a loss and its gradient by each datum's logprobs."""
    value, _ = loss.compute(batch, logprobs, {} if state is None else state)
    return value, list(torch.autograd.grad(value, logprobs))


def random_pairs(generator: torch.Generator, count: int, spread: float = 2.0) -> list[PairLogprobs]:
    """Draw pairs of 1 to 7 tokens a side, logprobs between -spread and 0."""

    def draw(length: int) -> list[float]:
        return (-spread * torch.rand(length, generator=generator, dtype=torch.float64)).tolist()

    pairs = []
    for number in range(count):
        longs = torch.randint(1, 8, (2,), generator=generator).tolist()
        scores = torch.rand(2, generator=generator, dtype=torch.float64).sort(descending=True).values
        pairs.append(
            PairLogprobs(
                draw(longs[0]),
                draw(longs[1]),
                draw(longs[0]),
                draw(longs[1]),
                scores=(float(scores[0]) + 1, float(scores[1])),
                p_chosen=0.5 + float(scores[0]) / 2,
                tie=number % 3 == 2,
                token_weights=tuple([-weight for weight in draw(length)] for length in longs),
            )
        )
    return pairs
