"""A*-PO: regress a completion's log-ratio onto its optimal advantage, without comparing it with others.

The optimal value of a prompt is estimated once, from the rewards of what the reference wrote for it. A row
gives them as `reference_rewards`, beside what the policy sampled and its rewards. Without that field the
row's own completions are the reference's, as they are before the first step.

In the formula h is a completion's log-ratio of policy and reference, r its reward, and q_i a reward of the
reference.

Formula: (beta_2 h - (r - V))^2, the mean over completions; V = beta_1 log mean exp(q_i / beta_1)
Paper: Brantley et al., 2025, arXiv 2505.20686; the loss as in the authors' code
Defaults: TRL's A2POConfig, second hand
Use: one sampled completion per prompt, with rewards from 0 to 1 that a rule gives
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from mint_train.plugin import (
    AttachedDatum,
    Batch,
    Forms,
    Metric,
    NeededReference,
    Options,
    Prompt,
    Renderer,
    RowError,
    attach,
    from_json,
    hookimpl,
    kind,
    log_ratios,
    segment_sums,
)
from mint_train_policy_gradient import reinforce
from mint_train_policy_gradient.advantages import REWARD
from mint_train_policy_gradient.rows import FORMS, Rollout, entries, number
from mint_train_policy_gradient.samples import LossAndMetrics

DATUMS_MAY_REPEAT = True
REFERENCE_REWARDS = "reference_rewards"
OPTIMAL_VALUE = "optimal_value"
METRICS = {"optimal_value": Metric(kind="batch"), "implicit_reward": Metric(kind="batch")}


class AStarOptions(Options):
    """How far the policy may move for a reward: in a prompt's value, and in the regression."""

    beta_1: float = Field(default=0.5, gt=0, description="Temperature of V: near 0 it is the best reward.")
    beta_2: float = Field(default=1e-3, gt=0, description="Reward for each nat of the log-ratio.")
    reference: NeededReference = "initial"


@dataclass(frozen=True)
class ValuedRollout:
    """A rollout, and the rewards that its prompt's value is estimated from."""

    rollout: Rollout
    of_reference: tuple[float, ...]

    @property
    def prompt(self) -> Prompt | list[int]:
        """The prompt of the rollout."""
        return self.rollout.prompt


def read_reference_rewards(row: Mapping[str, Any]) -> tuple[tuple[float, ...], list[str]]:
    """Read `reference_rewards`, where a row has them, and name the column.

    Raises:
        RowError: they are not a list of numbers, one at least.
    """
    given = from_json(row.get(REFERENCE_REWARDS))
    if given is None:
        return (), []
    if not isinstance(given, list) or not given:
        raise RowError(REFERENCE_REWARDS, f"must be a list of numbers, one at least, not {kind(given)}")
    names = entries(REFERENCE_REWARDS, given)
    return tuple(number(one, name) for one, name in zip(given, names, strict=True)), [REFERENCE_REWARDS]


def make_valued(rollout: Rollout, of_reference: tuple[float, ...]) -> ValuedRollout:
    """Put a rollout and the reference's rewards together.

    Raises:
        RowError: the row has advantages, or a single completion and nothing to tell its prompt's value from.
    """
    if rollout.rewards is None:
        raise RowError("rewards", "are missing: this loss makes advantages of rewards itself")
    if not of_reference and len(rollout.rewards) == 1:
        raise RowError(
            REFERENCE_REWARDS, "is missing: a single reward does not tell what its prompt is worth"
        )
    return ValuedRollout(rollout, of_reference or rollout.rewards)


VALUED_FORMS = FORMS.extended(read_reference_rewards, make_valued)
"""Every form of a rollout with rewards, and the reference's beside them."""


@hookimpl
def loss_options() -> type[AStarOptions]:
    """Return the options of A*-PO."""
    return AStarOptions


@hookimpl
def bundled_rows() -> Path:
    """Return eight prompts with rewards of the reference to try the loss on."""
    return Path(__file__).with_name("valued_groups.jsonl")


@hookimpl
def row_forms() -> Forms:
    """Return every form of a rollout with rewards."""
    return VALUED_FORMS


@hookimpl
def flatten(example: ValuedRollout, renderer: Renderer, options: AStarOptions) -> list[AttachedDatum]:
    """Flatten a rollout into a datum per completion, with the optimal value of their prompt attached."""
    value = optimal_value(example.of_reference, options.beta_1)
    datums = reinforce.flatten(example.rollout, renderer)
    return [attach(one.datum, **one.attached, **{OPTIMAL_VALUE: value}) for one in datums]


def optimal_value(rewards: Sequence[float], temperature: float) -> float:
    """Compute temperature log mean exp(reward / temperature), which lies between their mean and the best."""
    best = max(rewards)
    mean = math.fsum(math.exp((reward - best) / temperature) for reward in rewards) / len(rewards)
    return best + temperature * math.log(mean)


@hookimpl
def check_batch(batch: Batch) -> None:
    """Require trained completions of one prompt, all that the row has."""
    reinforce.require_rollouts(batch)


@hookimpl
def compute_loss(batch: Batch, logprobs: Sequence[torch.Tensor], options: AStarOptions) -> LossAndMetrics:
    """Compute (beta_2 h - (r - V))^2, the mean over completions."""
    implicit = options.beta_2 * log_ratios(logprobs, batch)
    values = batch.attached(OPTIMAL_VALUE)
    losses = (implicit - (batch.attached(REWARD) - values)).square()
    value = batch.mean(segment_sums(losses, batch.group_sizes), batch.group_sizes)
    found = {"optimal_value": values.mean(), "implicit_reward": implicit.detach().mean()}
    return value, {name: float(number) for name, number in found.items()}


@hookimpl
def metrics() -> dict[str, Metric]:
    """Describe the mean value of the prompts, and the mean implicit reward of the completions."""
    return METRICS
