"""On-policy distillation: a student's own samples, each token pulled towards what a teacher would write.

The teacher is the reference: `--set reference=MODEL`, with the student's tokenizer. The KL is estimated at
the sampled tokens; the KL over the vocabulary cannot be had from logprobs of target tokens.

In the formula p_t is the policy's and q_t the teacher's logprob of a sampled token, and r_t the ratio of the
policy to the one that sampled; without `old_logprobs` r_t is 1.

Formula: sg(r_t (p_t - q_t)) p_t, the mean over all tokens
Paper: Agarwal et al., 2024, arXiv 2306.13649, with the reverse KL; Lu, 2025, "On-policy distillation"
Use: a strong model's behaviour for a small one; sample from the student first
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from mint_train.plugin import (
    AttachedDatum,
    Batch,
    Forms,
    Metric,
    NeededReference,
    Options,
    Renderer,
    hookimpl,
    packed_reference_logprobs,
)
from mint_train_policy_gradient import reinforce
from mint_train_policy_gradient.rows import OLD_LOGPROBS, SAMPLE_FORMS, Rollout
from mint_train_policy_gradient.samples import MAX_LOG_RATIO, LossAndMetrics, Samples, attached_or

DATUMS_MAY_REPEAT = True
STOPS_GRADIENT = True


class DistillOptions(Options):
    """The teacher."""

    reference: NeededReference = "initial"


@hookimpl
def loss_options() -> type[DistillOptions]:
    """Return the option that names the teacher."""
    return DistillOptions


@hookimpl
def bundled_rows() -> Path:
    """Return eight prompts with some completions each to try the loss on."""
    return Path(__file__).with_name("samples.jsonl")


@hookimpl
def row_forms() -> Forms:
    """Return every form of samples, whatever they are worth."""
    return SAMPLE_FORMS


@hookimpl
def flatten(example: Rollout, renderer: Renderer) -> list[AttachedDatum]:
    """Flatten a rollout into a datum per completion."""
    return reinforce.flatten(example, renderer)


@hookimpl
def check_batch(batch: Batch) -> None:
    """Require trained completions of one prompt, all that the row has."""
    reinforce.require_rollouts(batch)


@hookimpl
def compute_loss(batch: Batch, logprobs: Sequence[torch.Tensor]) -> LossAndMetrics:
    """Compute the policy gradient of the reverse KL, the mean over tokens."""
    samples = Samples.of(batch, logprobs, "raw")
    policy = samples.policy.detach()
    teacher = torch.where(samples.trained, packed_reference_logprobs(batch).to(policy.dtype), 0.0)
    old = attached_or(batch, OLD_LOGPROBS, policy)
    ratios = (policy - old.to(policy.dtype)).clamp(max=MAX_LOG_RATIO).exp()
    value = samples.token_mean(ratios * (policy - teacher) * samples.policy, "tokens")
    kl = samples.token_mean(policy - teacher, "tokens")
    return value, {"reverse_kl": float(kl.detach())}


@hookimpl
def metrics() -> dict[str, Metric]:
    """Describe the estimate of the KL."""
    return {"reverse_kl": Metric(".6f", "nats per token", kind="batch", better="lower", shown=True)}
