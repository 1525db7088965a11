"""TIS: GRPO that corrects for a sampler whose numbers differ from the trainer's, by truncating or by masking.

The row's `old_logprobs` are the sampler's, such as a vLLM server's; the reference is the policy before its
first step, which the trainer computes itself. Their ratio corrects each token or completion, and PPO's ratio
is that of the policy to the reference.

In the formula A is an advantage, r the ratio of the policy to the reference, and c that of the reference to
the sampler, of a token or of a whole completion.

Formula: -C min(r A, clip(r, 1 - clip, 1 + clip_high) A), the mean over all tokens; C = min(c, cap) where
    mode truncates; where it masks, c while c <= cap, else 0; A as in grpo
Paper: Yao et al., 2025, "Your efficient RL framework secretly brings you off-policy RL training"; as in TRL
Defaults: cap is that of TRL; mode is the one that TIS is named for
Use: samples of an inference server, whose rows have its logprobs
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field

from mint_train.plugin import (
    Batch,
    ContractError,
    Metric,
    NeededReference,
    hookimpl,
    packed_reference_logprobs,
)
from mint_train_policy_gradient.options import PPOOptions
from mint_train_policy_gradient.reinforce import with_kl
from mint_train_policy_gradient.rows import OLD_LOGPROBS
from mint_train_policy_gradient.samples import (
    MAX_LOG_RATIO,
    METRICS,
    LossAndMetrics,
    Samples,
    clipped_gains,
)

EXTENDS = "reinforce"


class TISOptions(PPOOptions):
    """PPO's clip, and the correction for the sampler."""

    mode: Literal["token-truncate", "token-mask", "sequence-truncate", "sequence-mask"] = Field(
        default="token-truncate",
        description="Truncate or mask the ratio to the sampler, of tokens or completions.",
    )
    cap: float = Field(default=3.0, gt=0, description="Most that the ratio to the sampler may be.")
    reference: NeededReference = "initial"


@hookimpl
def loss_options() -> type[TISOptions]:
    """Return the options of TIS."""
    return TISOptions


@hookimpl
def bundled_rows() -> Path:
    """Return eight prompts with sampled completions and the sampler's logprobs."""
    return Path(__file__).with_name("sampled_groups.jsonl")


@hookimpl
def check_batch(batch: Batch) -> None:
    """Require the sampler's logprobs.

    Raises:
        ContractError: naming the first group without them.
    """
    for number, group in enumerate(batch.groups):
        if any(OLD_LOGPROBS not in attached for attached in group.attached):
            raise ContractError(f"rollout {number} has no old_logprobs, those of its sampler", number)


def corrections(samples: Samples, logs: torch.Tensor, options: TISOptions) -> torch.Tensor:
    """Return C of each token, `[tokens]`, given log c of each, `[tokens]`."""
    if options.mode.startswith("sequence"):
        logs = samples.per_completion(logs).repeat_interleave(samples.batch.lengths).to(logs.dtype)
    ratios = logs.clamp(max=MAX_LOG_RATIO).exp()
    if options.mode.endswith("truncate"):
        return ratios.clamp(max=options.cap)
    return torch.where(ratios <= options.cap, ratios, 0.0)


@hookimpl
def compute_loss(batch: Batch, logprobs: Sequence[torch.Tensor], options: TISOptions) -> LossAndMetrics:
    """Compute PPO's clipped surrogate against the reference, corrected for the sampler."""
    samples = Samples.of(batch, logprobs, options.advantage)
    trainer = torch.where(samples.trained, packed_reference_logprobs(batch).to(samples.policy.dtype), 0.0)
    weights = corrections(samples, trainer - samples.old, options)
    ratios = (samples.policy - trainer).clamp(max=MAX_LOG_RATIO).exp()
    gains = clipped_gains(ratios, samples.advantages, options.clip, options.clip_high)
    value = with_kl(-samples.token_mean(weights * gains, options.average), samples, options, options.average)
    found = samples.metrics(gains < ratios * samples.advantages)
    return value, found | {"corrected": float((weights == 0)[samples.trained].double().mean())}


@hookimpl
def metrics() -> dict[str, Metric]:
    """Describe how far policies are apart, and the share of tokens that are masked."""
    return METRICS | {"corrected": Metric(".2f", kind="batch")}
