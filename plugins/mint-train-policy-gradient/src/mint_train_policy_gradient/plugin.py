"""Offline policy gradient: sampled completions with old logprobs and advantages, clipped where asked.

In the formula A is a token's advantage and r its ratio: its probability under the policy, divided by that
under the policy that sampled it.

Formula: -r A per token; with `clip`, -min(r A, clip(r, 1 - clip, 1 + clip_high) A)
Paper: Schulman et al., 2017, arXiv 1707.06347, eq. 6 and 7
Defaults: choices made here: nothing is clipped
Use: completions that you sampled and scored yourself, with their logprobs
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import Field, model_validator

from mint_train.plugin import (
    AttachedDatum,
    Batch,
    ContractError,
    Forms,
    Metric,
    Options,
    Renderer,
    RowError,
    attach,
    hookimpl,
    packed_logprobs,
    require_group_size,
    require_trained,
)
from mint_train_policy_gradient.rows import FORMS, Rollout
from mint_train_policy_gradient.surrogate import Average, average_tokens, log_ratios, surrogate

OLD_LOGPROBS, ADVANTAGES = "old_logprobs", "advantages"


class PolicyGradientOptions(Options):
    """The options of the offline policy gradient; the defaults clip nothing."""

    clip: float | None = Field(
        default=None, gt=0, lt=1, description="How far a ratio moves before its gradient stops; PPO's is 0.2."
    )
    clip_high: float | None = Field(default=None, gt=0, description="The same above 1, where it differs.")
    average: Average = Field(
        default="tokens", description="Mean over all tokens, over each completion's first, or their sum."
    )

    @model_validator(mode="after")
    def clip_high_needs_clip(self) -> PolicyGradientOptions:
        """Refuse an upper bound without a lower one."""
        if self.clip_high is not None and self.clip is None:
            raise ValueError("clip_high is set without clip; set both")
        return self


@hookimpl
def loss_options() -> type[PolicyGradientOptions]:
    """Return the options of the policy gradient."""
    return PolicyGradientOptions


@hookimpl
def bundled_rows() -> Path:
    """Return eight rollouts to try the loss on; their token ids are small, so that any tokenizer has them."""
    return Path(__file__).with_name("rollouts.jsonl")


@hookimpl
def row_forms() -> Forms:
    """Return every form of a rollout."""
    return FORMS


@hookimpl
def flatten(example: Rollout, renderer: Renderer) -> list[AttachedDatum]:
    """Flatten a rollout into one datum with its values per token attached; over the prompt they are 0.0."""
    prompt = renderer.prompt_tokens(example.prompt)
    known = len(renderer.tokenizer)
    for field, ids in (("prompt_tokens", prompt), ("completion_tokens", example.completion_tokens)):
        if max(ids) >= known:
            raise RowError(field, f"token {max(ids)} is beyond the tokenizer's {known} tokens")
    datum = renderer.datum(prompt, example.completion_tokens)
    before = [0.0] * (len(prompt) - 1)
    length = len(datum.loss_fn_inputs["target_tokens"].data)
    old, advantages = ([*before, *values][:length] for values in (example.old_logprobs, example.advantages))
    return [attach(datum, **{OLD_LOGPROBS: old, ADVANTAGES: advantages})]


@hookimpl
def check_batch(batch: Batch) -> None:
    """Require one trained datum a group, with an old logprob and an advantage per target token.

    Raises:
        ContractError: naming the first group that breaks the contract.
    """
    require_group_size(batch, 1, "rollout")
    require_trained(batch, "rollout", ("completion",))
    for number, group in enumerate(batch.groups):
        attached = group.attached[0] if group.attached else {}
        for name in (OLD_LOGPROBS, ADVANTAGES):
            values = attached.get(name)
            if not isinstance(values, Sequence) or len(values) != group.lengths[0]:
                raise ContractError(f"rollout {number} lacks one of its {name} per target token", number)


@hookimpl
def compute_loss(
    batch: Batch, logprobs: Sequence[torch.Tensor], options: PolicyGradientOptions
) -> tuple[torch.Tensor, dict[str, float]]:
    """Compute -r A per token, clipped and averaged as the options ask (Schulman et al., 2017).

    The metrics: `mean_ratio`, `approx_kl` = mean of r - 1 - log r (Schulman, 2020, an unbiased estimate of
    KL(pi_old || pi), nats per token) and `clipped`, the share of tokens whose gradient the clip stops.
    """
    trained = batch.weights != 0
    policy = packed_logprobs(logprobs)
    # where nothing is trained a logprob has no meaning and must not reach exp
    policy = torch.where(trained, policy, 0.0)
    old, advantages = (batch.attached(name).to(policy.dtype) for name in (OLD_LOGPROBS, ADVANTAGES))
    logs = log_ratios(policy, old)
    ratios = logs.exp()
    gains = surrogate(ratios, advantages, options.clip, options.clip_high)
    with torch.no_grad():
        metrics = {
            "mean_ratio": float(ratios[trained].mean()),
            "approx_kl": float((ratios - 1 - logs)[trained].mean()),
            "clipped": float((gains < ratios * advantages)[trained].float().mean()),
        }
    return -average_tokens(gains, batch, options.average), metrics


@hookimpl
def metrics() -> dict[str, Metric]:
    """Describe how far the policy has moved from the one that sampled."""
    return {
        "mean_ratio": Metric(".4f", shown=True),
        "approx_kl": Metric(".6f", "nats per token", shown=True),
        "clipped": Metric(".2f"),
    }
