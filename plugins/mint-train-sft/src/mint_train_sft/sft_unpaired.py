"""SFT on single completions: the mean NLL of their tokens.

A row has one completion, or is a conversation, of which all that the assistant says is trained. Of a pair the
chosen completion is trained, and the rejected one costs nothing.

In the formula p_t is the policy's logprob of token t of a completion.

Formula: -mean p_t, over all tokens of the batch's completions
Paper: none needed: cross-entropy
Use: a first stage before preferences, on demonstrations
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from mint_train.plugin import (
    Batch,
    Datum,
    Forms,
    Metric,
    Options,
    Renderer,
    hookimpl,
    mean_logprobs,
    require_group_size,
    require_trained,
    sequence_logprobs,
)
from mint_train_sft.rows import FORMS, Demonstration

LINEAR = True
NAMES = ("completion",)


@hookimpl
def loss_options() -> type[Options]:
    """Return the options: there are none."""
    return Options


@hookimpl
def bundled_rows() -> Path:
    """Return 80 demonstrations to try the loss on."""
    return Path(__file__).with_name("demonstrations.jsonl")


@hookimpl
def row_forms() -> Forms:
    """Return every form of a demonstration."""
    return FORMS


@hookimpl
def datum_names() -> tuple[str, ...]:
    """Name the one datum of a group."""
    return NAMES


@hookimpl
def flatten(example: Demonstration, renderer: Renderer) -> Sequence[Datum]:
    """Flatten a demonstration into one datum."""
    return renderer.datums(example.prompt, [example.completion], NAMES)


@hookimpl
def check_batch(batch: Batch) -> None:
    """Require one trained completion a group."""
    require_group_size(batch, 1, "demonstration", NAMES)
    require_trained(batch, "demonstration", NAMES)


@hookimpl
def compute_loss(batch: Batch, logprobs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
    """Compute the NLL per token over all completions: long ones count more."""
    value = -batch.mean(sequence_logprobs(logprobs, batch), batch.trained_tokens)
    return value, {"completion_nll": completion_nll(batch, logprobs)}


def completion_nll(batch: Batch, logprobs: Sequence[torch.Tensor]) -> float:
    """Compute the mean over completions of their NLL per token, nats: long and short ones count the same."""
    return -float(mean_logprobs(logprobs, batch).detach().mean())


@hookimpl
def metrics() -> dict[str, Metric]:
    """Describe the NLL per token with which long and short completions count the same."""
    return {"completion_nll": Metric(".6f", "nats per token", better="lower", shown=True)}
