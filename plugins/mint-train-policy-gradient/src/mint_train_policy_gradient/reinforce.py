"""REINFORCE: raise the likelihood of completions with a high advantage, and lower that of the others.

In the formula A is a completion's advantage, and p the sum of its logprobs.

Formula: -A p, the mean over completions
Paper: Williams, 1992, "Simple statistical gradient-following algorithms"
Defaults: rewards are taken as they are, and there is no KL; choices made here
Use: completions that the policy itself has just sampled, with rewards around 0
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from pydantic import Field, model_validator

from mint_train.plugin import (
    NO_REFERENCE,
    AttachedDatum,
    Batch,
    ContractError,
    Forms,
    Metric,
    OptionalReference,
    Options,
    Renderer,
    RowError,
    attach,
    hookimpl,
    over_completion,
    require_group_size,
    require_same_prompt,
    require_trained,
)
from mint_train_policy_gradient.advantages import (
    ADVANTAGE,
    ALONE,
    FROM_REWARDS,
    REWARD,
    SCORED,
    Advantage,
    flat_groups,
)
from mint_train_policy_gradient.rows import FORMS, OLD_LOGPROBS, Rollout, is_tokens
from mint_train_policy_gradient.samples import METRICS, TOKEN_ADVANTAGES, Average, LossAndMetrics, Samples

COUNT = "count"
DATUMS_MAY_REPEAT = True
"""A policy may sample the same completion twice."""


class RolloutOptions(Options):
    """What every loss on rollouts can be told."""

    NEEDS_OLD: ClassVar[bool] = False
    """Whether the loss compares the policy with the one that sampled."""
    advantage: Advantage = Field(default="raw", description=FROM_REWARDS)
    kl: float = Field(default=0.0, ge=0, description="Weight of the KL to the reference, per token.")
    reference: OptionalReference = NO_REFERENCE

    @model_validator(mode="after")
    def kl_needs_a_reference(self) -> RolloutOptions:
        """Refuse a KL to nothing."""
        if self.kl and self.reference == NO_REFERENCE:
            raise ValueError("kl is set without a reference; set reference=initial")
        return self


def is_linear(options: RolloutOptions) -> bool:
    """Return whether REINFORCE is linear in the logprobs: the KL is not."""
    return not options.kl


LINEAR = is_linear


@hookimpl
def loss_options() -> type[RolloutOptions]:
    """Return the options of REINFORCE."""
    return RolloutOptions


@hookimpl
def bundled_rows() -> Path:
    """Return eight prompts with some completions each to try the loss on."""
    return Path(__file__).with_name("groups.jsonl")


@hookimpl
def row_forms() -> Forms:
    """Return every form of a rollout."""
    return FORMS


@hookimpl
def flatten(example: Rollout, renderer: Renderer) -> list[AttachedDatum]:
    """Flatten a rollout into a datum per completion, with what it is worth attached."""
    prompt = renderer.prompt_tokens(example.prompt) if is_tokens(example.completions[0]) else example.prompt
    made = []
    for index, sample in enumerate(example.completions):
        if is_tokens(sample):
            check_tokens(prompt, sample, len(renderer.tokenizer))
        datum = renderer.datum(prompt, sample)
        own = 0.0 if example.advantages is None else example.advantages[index]
        per_token: dict[str, list[float]] = {}
        if isinstance(own, list):
            per_token[TOKEN_ADVANTAGES] = over_completion(datum, own)
            own = 0.0
        if example.old_logprobs is not None:
            per_token[OLD_LOGPROBS] = over_completion(datum, example.old_logprobs[index])
        reward = 0.0 if example.rewards is None else example.rewards[index]
        scored, count = float(example.rewards is not None), float(len(example.completions))
        whole = {ADVANTAGE: own, REWARD: reward, SCORED: scored, COUNT: count}
        made.append(attach(datum, **whole, **per_token))
    return made


def check_tokens(prompt: object, completion: object, known: int) -> None:
    """Refuse token ids that the tokenizer does not have: they are another tokenizer's.

    Raises:
        RowError: with the token and its field.
    """
    for field, ids in (("prompt_tokens", prompt), ("completion_tokens", completion)):
        if isinstance(ids, list) and max(ids) >= known:
            raise RowError(field, f"token {max(ids)} is beyond the tokenizer's {known} tokens")


@hookimpl
def check_batch(batch: Batch, options: RolloutOptions) -> None:
    """Require trained completions of one prompt, all that the row has, with what the options need of them.

    Raises:
        ContractError: naming the first group that breaks the contract.
    """
    require_rollouts(batch)
    for number, group in enumerate(batch.groups):
        if options.advantage not in ALONE and len(group.datums) == 1 and group.attached[0][SCORED]:
            problem = (
                f"rollout {number} has a reward and no other completion, which the advantage "
                f'"{options.advantage}" compares it with: give several, or --set advantage=raw'
            )
            raise ContractError(problem, number)
        lacking = any(OLD_LOGPROBS not in attached for attached in group.attached)
        if lacking and options.NEEDS_OLD and options.reference == NO_REFERENCE:
            problem = (
                f"rollout {number} has no old_logprobs: give them, or take those of the policy before its "
                "first step with --set reference=initial"
            )
            raise ContractError(problem, number)


def require_rollouts(batch: Batch) -> None:
    """Require that each group has trained completions of one prompt, all that its row has.

    Raises:
        ContractError: naming the first group that breaks the contract.
    """
    require_group_size(batch, 1, "rollout", or_more=True)
    require_trained(batch, "rollout")
    require_same_prompt(batch, "rollout")
    for number, group in enumerate(batch.groups):
        if any(attached.get(COUNT) != len(group.datums) for attached in group.attached or [{}]):
            raise ContractError(f"rollout {number} does not have all the completions of its row", number)


@hookimpl
def compute_loss(batch: Batch, logprobs: Sequence[torch.Tensor], options: RolloutOptions) -> LossAndMetrics:
    """Compute -A p, the mean over completions."""
    samples = Samples.of(batch, logprobs, options.advantage)
    value = -samples.token_mean(samples.advantages * samples.policy, "none")
    metrics = {"flat_groups": float(flat_groups(batch).double().mean())}
    return with_kl(value, samples, options, "none"), metrics


def with_kl(value: torch.Tensor, samples: Samples, options: RolloutOptions, average: Average) -> torch.Tensor:
    """Add the KL to the reference, where the options ask for it."""
    return value + options.kl * samples.kl(average) if options.kl else value


@hookimpl
def metrics() -> dict[str, Metric]:
    """Describe the share of groups that train nothing."""
    return {"flat_groups": METRICS["flat_groups"]}


@hookimpl
def data_note(batch: Batch) -> str | None:
    """Say how many groups have rewards that are all equal."""
    flat = int(flat_groups(batch).sum())
    if not flat:
        return None
    return (
        f"The rewards of {flat} of the first {len(batch.groups)} prompts are all equal: with an advantage "
        "that compares them they have none, and train nothing."
    )
