"""A batch of sampled completions as the papers write it: ratios, advantages, and how tokens are averaged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias, TypeVar

import torch

from mint_train.plugin import Batch, Metric, packed_logprobs, packed_reference_logprobs, segment_sums
from mint_train_policy_gradient.advantages import Advantage, advantages, flat_groups
from mint_train_policy_gradient.rows import OLD_LOGPROBS

MAX_LOG_RATIO = 20.0
"""exp(20) is 5e8, and float32 overflows at exp(88)."""
TOKEN_ADVANTAGES = "advantages"  # noqa: S105 - a name

Average: TypeAlias = Literal["tokens", "sequences", "none"]
Otherwise = TypeVar("Otherwise", bound="torch.Tensor | None")
LossAndMetrics: TypeAlias = tuple[torch.Tensor, dict[str, float]]
METRICS = {
    "mean_ratio": Metric(".4f", kind="batch", shown=True),
    "approx_kl": Metric(".6f", "nats per token", kind="batch", shown=True),
    "clipped": Metric(".2f", kind="batch"),
    "flat_groups": Metric(".2f", kind="share", better="lower"),
}


@dataclass(frozen=True)
class Samples:
    """The completions of a batch. Where a token is not trained its logprob has no meaning, and is 0 here."""

    batch: Batch
    policy: torch.Tensor
    """Log pi of each token, nats, `[tokens]`, differentiable."""
    advantages: torch.Tensor
    """A of each token, `[tokens]`."""

    @classmethod
    def of(cls, batch: Batch, logprobs: Sequence[torch.Tensor], kind: Advantage) -> Samples:
        """Read a batch; `kind` says how rewards become advantages."""
        packed = packed_logprobs(logprobs)
        policy = torch.where(batch.weights != 0, packed, 0.0)
        whole = advantages(batch, kind).repeat_interleave(batch.lengths)
        own = attached_or(batch, TOKEN_ADVANTAGES, torch.zeros_like(whole))
        return cls(batch, policy, (whole + own).to(policy.dtype))

    @cached_property
    def trained(self) -> torch.Tensor:
        """Which tokens are trained, bool `[tokens]`."""
        return self.batch.weights != 0

    @cached_property
    def old(self) -> torch.Tensor:
        """Log pi_old of each token, `[tokens]`: the row's, else the reference's."""
        reference = self.batch.reference_logprobs
        given = attached_or(self.batch, OLD_LOGPROBS, reference)
        old = packed_reference_logprobs(self.batch) if given is None else given
        return torch.where(self.trained, old.to(self.policy.dtype), 0.0)

    @cached_property
    def differences(self) -> torch.Tensor:
        """Log pi - log pi_old of each token, `[tokens]`."""
        return self.policy - self.old

    @cached_property
    def logs(self) -> torch.Tensor:
        """Log r of each token, at most 20 and without gradient above, `[tokens]`."""
        return self.differences.clamp(max=MAX_LOG_RATIO)

    @cached_property
    def ratios(self) -> torch.Tensor:
        """Each token's r = pi / pi_old, `[tokens]`."""
        return self.logs.exp()

    def per_completion(self, values: torch.Tensor) -> torch.Tensor:
        """Sum token values over each completion's trained tokens, float64 `[datums]`."""
        return segment_sums(values, self.batch.lengths, self.batch.weights)

    @cached_property
    def sequence_advantages(self) -> torch.Tensor:
        """A of each completion, the mean over its tokens, float64 `[datums]`."""
        return self.per_completion(self.advantages) / self.batch.trained_tokens

    def sequence_mean(self, values: torch.Tensor) -> torch.Tensor:
        """Average a value of each completion, `[datums]`, over the batch."""
        sizes = self.batch.group_sizes
        return self.batch.mean(segment_sums(values, sizes), sizes)

    def token_mean(self, values: torch.Tensor, average: Average) -> torch.Tensor:
        """Average values of tokens, `[tokens]`, over the batch, to a scalar.

        Args:
            values: `[tokens]`.
            average: `tokens` over all trained tokens, `sequences` over each completion's and then over the
                completions, `none` a sum over each completion's and then the mean over the completions.
        """
        sums = self.per_completion(values)
        if average == "sequences":
            return self.sequence_mean(sums / self.batch.trained_tokens)
        if average == "none":
            return self.sequence_mean(sums)
        counts = segment_sums(self.batch.trained_tokens.double(), self.batch.group_sizes)
        return self.batch.mean(segment_sums(sums, self.batch.group_sizes), counts)

    def kl(self, average: Average) -> torch.Tensor:
        """Estimate the KL to the reference at the sampled tokens (Schulman, 2020, k3), a scalar, nats.

        exp(-h) - 1 + h, h the log-ratio of policy and reference; beyond e^20 it goes on as its tangent.
        """
        reference = packed_reference_logprobs(self.batch).to(self.policy.dtype)
        falls = torch.where(self.trained, reference - self.policy, 0.0)
        near = falls.clamp(max=MAX_LOG_RATIO)
        return self.token_mean(near.exp() * (1 + falls - near) - 1 - falls, average)

    def sequence_ratios(self, *, per_token: bool) -> torch.Tensor:
        """Return each completion's ratio, `[datums]`, or the geometric mean of its tokens'."""
        sums = self.per_completion(self.differences)
        logs = sums / self.batch.trained_tokens if per_token else sums
        return logs.clamp(max=MAX_LOG_RATIO).exp()

    def metrics(self, clipped: torch.Tensor | None = None) -> dict[str, float]:
        """Summarise how far the policy has moved from the one that sampled.

        Args:
            clipped: which tokens, `[tokens]`, or completions, `[datums]`, have no gradient as they are
                clipped.

        Returns:
            `mean_ratio`, `approx_kl` (the mean of r - 1 - log r, an estimate of KL(pi_old || pi)), `clipped`
            (a share, where the loss clips) and `flat_groups` (the share of groups without an advantage, as
            their rewards are all equal).
        """
        with torch.no_grad():
            found = {
                "mean_ratio": float(self.ratios[self.trained].mean()),
                "approx_kl": float((self.ratios - 1 - self.logs)[self.trained].mean()),
            }
            if clipped is not None:
                counted = clipped[self.trained] if len(clipped) == len(self.trained) else clipped
                found["clipped"] = float(counted.double().mean())
            return found | {"flat_groups": float(flat_groups(self.batch).double().mean())}


def clipped_gains(
    ratios: torch.Tensor, advantages: torch.Tensor, clip: float | None, clip_high: float | None = None
) -> torch.Tensor:
    """Compute min(r A, clip(r, 1 - clip, 1 + clip_high) A) (Schulman et al., 2017, arXiv 1707.06347, eq. 7).

    Args:
        ratios: r, of tokens or of completions.
        advantages: A, of the same.
        clip: how far below 1 a ratio counts, and above 1 too where `clip_high` is None; without it, r A.
        clip_high: how far above 1 a ratio counts.
    """
    if clip is None:
        return ratios * advantages
    clipped = ratios.clamp(1 - clip, 1 + (clip if clip_high is None else clip_high))
    return torch.minimum(ratios * advantages, clipped * advantages)


def attached_or(batch: Batch, name: str, otherwise: Otherwise) -> torch.Tensor | Otherwise:
    """Return what is attached per token, `[tokens]`; where a datum has nothing, its part of another tensor.

    Args:
        batch: the batch.
        name: what is attached.
        otherwise: `[tokens]`; None makes the result None where a datum has nothing.
    """
    attached = [values.get(name) for group in batch.groups for values in group.attached]
    if all(values is None for values in attached):
        return otherwise
    if all(values is not None for values in attached):
        return batch.attached(name)
    if otherwise is None:
        return otherwise
    parts = torch.split(otherwise.double(), batch.lengths.tolist())
    return torch.cat(
        [
            part if values is None else torch.tensor(values, dtype=torch.float64)
            for values, part in zip(attached, parts, strict=True)
        ]
    )
