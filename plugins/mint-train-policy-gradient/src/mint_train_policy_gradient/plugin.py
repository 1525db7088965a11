"""Offline policy gradient: sampled completions with old logprobs and advantages, clipped where asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from mint_train import Batch, RowError, attach, hookimpl
from mint_train.batches.datums import AttachedDatum
from mint_train.batches.logprobs import packed_logprobs
from mint_train.rendering.renderer import Renderer
from mint_train.rows.forms import recognise
from mint_train_policy_gradient.contract import ADVANTAGES, OLD_LOGPROBS, check_rollouts
from mint_train_policy_gradient.loss import Average, average_tokens, log_ratios, surrogate
from mint_train_policy_gradient.rollouts import FORMS, Rollout, parse_rollout


class PolicyGradientOptions(BaseModel):
    """The options of the offline policy gradient; the defaults clip nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    clip: float | None = Field(
        default=None, gt=0, lt=1, description="How far a ratio moves before its gradient stops; PPO's is 0.2."
    )
    clip_high: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="The same above 1, where it is not `clip`."
    )
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
def loss_options() -> type[BaseModel]:
    """Options of the loss."""
    return PolicyGradientOptions


@hookimpl
def bundled_rows() -> Path:
    """Eight rollouts to try the loss on; their tokens are arbitrary, so that any tokenizer has them."""
    return Path(__file__).with_name("rollouts.jsonl")


@hookimpl
def parse_row(row: Mapping[str, Any]) -> Rollout:
    """Read a sampled completion with its old logprobs and its advantage."""
    return parse_rollout(row)


@hookimpl
def row_form(row: Mapping[str, Any]) -> str:
    """Name the form of a rollout."""
    return recognise(row, FORMS).name


@hookimpl
def flatten(example: Rollout, renderer: Renderer) -> list[AttachedDatum]:
    """Flatten a rollout into one datum, its values per token attached; over the prompt they are 0.0."""
    tokens = renderer.prompt_tokens(example.prompt)
    known = len(renderer.tokenizer)
    for field, ids in (("prompt_tokens", tokens), ("completion_tokens", example.completion_tokens)):
        if max(ids) >= known:
            raise RowError(field, f"token {max(ids)} is beyond the tokenizer's {known} tokens")
    datum = renderer.datum(tokens, example.completion_tokens)
    before = [0.0] * (len(tokens) - 1)
    length = len(datum.loss_fn_inputs["target_tokens"].data)
    old, advantages = ([*before, *values][:length] for values in (example.old_logprobs, example.advantages))
    return [attach(datum, **{OLD_LOGPROBS: old, ADVANTAGES: advantages})]


@hookimpl
def check_batch(batch: Batch) -> None:
    """Enforce one datum a group, with an old logprob and an advantage per target token."""
    check_rollouts(batch)


@hookimpl
def compute_loss(
    batch: Batch, logprobs: Sequence[torch.Tensor], options: PolicyGradientOptions
) -> tuple[torch.Tensor, dict[str, float]]:
    """-r A per token, clipped where asked, averaged as asked (Schulman et al., 2017, arXiv 1707.06347).

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
def step_line() -> dict[str, str]:
    """Show how far the policy has moved from the one that sampled."""
    return {"mean_ratio": ".4f", "approx_kl": ".6f"}
