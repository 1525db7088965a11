"""The losses of `local_vs_trl.py`: their rows, made of real pairs, and what our side computes of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

BETA = 0.1
SIMPO_BETA, SIMPO_GAMMA = 2.0, 1.0
CLIP = 0.2
GROUP = 4
"""Completions of a ranking, best first, and of a prompt's rollouts."""
REWARDS = (1.0, 0.5, 0.25, 0.0)
SPREAD = 1e-4
"""TRL adds it to the standard deviation of a group's rewards."""
LOSSES = ("dpo", "simpo", "orpo", "kto", "ranking", "grpo")
REFERENCED = ("dpo", "kto", "ranking")
"""Losses that compare the policy with a reference."""

Facts = dict[str, float]
"""What both sides must agree about at step 1."""
LossOf = Callable[[list[Any]], tuple[Any, Facts]]


@dataclass(frozen=True)
class Step:
    """What a step of our side takes."""

    sequences: list[Any]
    trained: list[Any]
    """Per sequence, where its completion is, bool `[length]`."""
    measured: int = 0
    """How many of the last sequences no gradient passes through."""
    labels: list[bool] = field(default_factory=list)


# --- rows, as TRL reads them ---


def rows_per_step(loss: str, pairs: int) -> int:
    """Return the rows of a step that has as many completions as `pairs`, or a ranking for its six."""
    if loss == "kto":
        return 2 * pairs
    if loss in ("ranking", "grpo"):
        return max(1, (pairs if loss == "ranking" else 2 * pairs) // GROUP)
    return pairs


def make_rows(loss: str, texts: Sequence[dict[str, str]], count: int) -> list[dict[str, Any]]:
    """Make rows of a loss out of pairs of texts, for `count` pairs' worth of completions.

    Rated completions have a prompt of their own each; rankings and rollouts take the second half of their
    completions from the next pair.
    """
    if loss == "kto":
        sides = ("chosen", "rejected")
        rated = zip(texts[: 2 * count], sides * count, strict=False)
        return [
            {"prompt": text["prompt"], "completion": text[side], "label": side == "chosen"}
            for text, side in rated
        ]
    if loss in ("ranking", "grpo"):
        following = [*texts[1:count], texts[0]]
        return [
            {
                "prompt": text["prompt"],
                "completions": [text["chosen"], text["rejected"], after["chosen"], after["rejected"]],
            }
            for text, after in zip(texts[:count], following, strict=True)
        ]
    return list(texts[:count])


# --- our side ---


def make_steps(loss: str, folder: Path, pairs: int, max_length: int) -> list[Step]:
    """Tokenise the rows, and return the steps of an epoch."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = json.loads((folder / "rows.json").read_text())
    size = rows_per_step(loss, pairs)
    batches = [rows[at : at + size] for at in range(0, len(rows), size)]
    return [make_step(loss, batch, tokenizer, max_length) for batch in batches]


def make_step(loss: str, rows: list[dict[str, Any]], tokenizer: Any, max_length: int) -> Step:
    """Tokenise the rows of a step as TRL does, where loss and logprobs agree to the last of its digits."""
    labels: list[bool] = []
    split = [split_tokens(tokenizer, row["prompt"], completions_of(row)) for row in rows]
    found = [(prompt, completion) for prompt, completions in split for completion in completions]
    measured = 0
    if loss == "kto":
        labels = [row["label"] for row in rows]
        others = [found[-1], *found[:-1]]
        found += [(prompt, completion) for (prompt, _), (_, completion) in zip(found, others, strict=True)]
        measured = len(rows)
    sequences = [sequence_of(prompt, completion, max_length) for prompt, completion in found]
    trained = [sequence.loss_mask for sequence in sequences]
    if loss == "orpo":  # the NLL of TRL's has the prompts in it
        sequences = [wholly_trained(s) if n % 2 == 0 else s for n, s in enumerate(sequences)]
    return Step(sequences, trained, measured, labels)


def completions_of(row: dict[str, Any]) -> list[str]:
    if "completions" in row:
        return list(row["completions"])
    return [row[name] for name in ("chosen", "rejected", "completion") if name in row]


def split_tokens(tokenizer: Any, prompt: str, completions: list[str]) -> tuple[list[int], list[list[int]]]:
    """Return the tokens of a prompt, and of its completions from where they part from it."""
    alone = tokenizer(prompt)["input_ids"]
    wholes = [tokenizer(prompt + completion)["input_ids"] for completion in completions]
    start = min(common_length(alone, whole) for whole in wholes)
    return alone[:start], [whole[start:] for whole in wholes]


def common_length(left: list[int], right: list[int]) -> int:
    return next(
        (i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right))
    )


def sequence_of(prompt: list[int], completion: list[int], max_length: int) -> Any:
    import torch

    from mint_train.backends.local.packing import TokenSequence

    tokens = torch.tensor([*prompt, *completion][:max_length])
    return TokenSequence(tokens[:-1], tokens[1:], torch.arange(1, len(tokens)) >= len(prompt))


def wholly_trained(sequence: Any) -> Any:
    """Return a sequence whose prompt is trained too."""
    import torch

    return replace(sequence, loss_mask=torch.ones_like(sequence.loss_mask))


def loss_function(loss: str, step: Step, reference: list[float]) -> LossOf:
    """Return the loss of a step as a function of its logprobs.

    Args:
        loss: its name.
        step: the sequences.
        reference: each sequence's logprob under the reference, where the loss has one.
    """
    import torch

    expected = torch.tensor(reference)

    def of_logprobs(logprobs: list[Any]) -> tuple[Any, Facts]:
        if loss in ("simpo", "orpo"):
            return by_means(loss, logprobs, step)
        if loss == "grpo":
            return clipped_gains(logprobs, step)
        sums = torch.stack([values.sum() for values in logprobs])
        return {"dpo": bradley_terry, "kto": kahneman_tversky, "ranking": all_pairs}[loss](
            sums, expected, step
        )

    return of_logprobs


def facts(loss: Any, chosen: Any, rejected: Any) -> Facts:
    return {"loss": loss.item(), "chosen": chosen.mean().item(), "rejected": rejected.mean().item()}


def bradley_terry(sums: Any, reference: Any, _: Step) -> tuple[Any, Facts]:
    from torch.nn.functional import logsigmoid

    ratios = sums - reference
    loss = -logsigmoid(BETA * (ratios[0::2] - ratios[1::2])).mean()
    return loss, facts(loss, sums[0::2], sums[1::2])


def all_pairs(sums: Any, reference: Any, _: Step) -> tuple[Any, Facts]:
    """Compare the completions of each ranking in all pairs, better with worse, as a trainer of pairs must."""
    from torch.nn.functional import logsigmoid

    better, worse = (list(side) for side in zip(*combinations(range(GROUP), 2), strict=True))
    scores, ratios = sums.view(-1, GROUP), (sums - reference).view(-1, GROUP)
    loss = -logsigmoid(BETA * (ratios[:, better] - ratios[:, worse])).mean()
    return loss, facts(loss, scores[:, better], scores[:, worse])


def kahneman_tversky(sums: Any, reference: Any, step: Step) -> tuple[Any, Facts]:
    import torch

    desirable = torch.tensor(step.labels)
    ratios = sums - reference
    rated, unrelated = ratios[: len(desirable)], ratios[len(desirable) :].detach()
    gains = rated - unrelated.mean().clamp(min=0)
    loss = torch.sigmoid(-BETA * torch.where(desirable, gains, -gains)).mean()
    scores = sums[: len(desirable)]
    return loss, facts(loss, scores[desirable], scores[~desirable])


def by_means(loss: str, logprobs: list[Any], step: Step) -> tuple[Any, Facts]:
    """Compute SimPO or ORPO, which compare the mean logprobs of completions."""
    import torch
    from torch.nn.functional import logsigmoid

    means = torch.stack([values[mask].mean() for values, mask in zip(logprobs, step.trained, strict=True)])
    chosen, rejected = means[0::2], means[1::2]
    if loss == "simpo":
        value = -logsigmoid(SIMPO_BETA * (chosen - rejected) - SIMPO_GAMMA).mean()
    else:
        odds = chosen - rejected - (torch.log1p(-chosen.exp()) - torch.log1p(-rejected.exp()))
        value = -torch.cat(logprobs[0::2]).mean() - BETA * logsigmoid(odds).mean()
    return value, facts(value, chosen, rejected)


def clipped_gains(logprobs: list[Any], step: Step) -> tuple[Any, Facts]:
    """Compute GRPO on the rollouts of the policy itself: the ratio of each token is 1, and has a gradient."""
    import torch

    rewards = torch.tensor(REWARDS)
    advantages = ((rewards - rewards.mean()) / (rewards.std() + SPREAD)).repeat(len(logprobs) // GROUP)
    gains = []
    for values, mask, advantage in zip(logprobs, step.trained, advantages, strict=True):
        ratios = (values[mask] - values[mask].detach()).exp()
        gains.append(torch.min(ratios * advantage, ratios.clamp(1 - CLIP, 1 + CLIP) * advantage).mean())
    loss = -torch.stack(gains).mean()
    return loss, {"loss": loss.item()}
