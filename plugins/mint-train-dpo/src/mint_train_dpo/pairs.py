"""What losses on pairs share: a batch's pairs, their rewards and metrics, and the Bradley-Terry loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import torch
from torch.nn.functional import logsigmoid

from mint_train.plugin import Batch, Metric, reference_sequence_logprobs, sequence_logprobs

Scores: TypeAlias = tuple[torch.Tensor, torch.Tensor]
"""A number per pair for the chosen and for the rejected completion, `[pairs]` each."""

Logprobs: TypeAlias = Sequence[torch.Tensor]
"""Per datum, the policy's logprobs of its target tokens, `[target tokens]`, in nats."""

LossAndMetrics: TypeAlias = tuple[torch.Tensor, dict[str, float]]


def chosen_and_rejected(scores: torch.Tensor) -> Scores:
    """Split scores `[2 pairs]` into those of the chosen and of the rejected completions, `[pairs]` each."""
    return scores[::2], scores[1::2]


@dataclass(frozen=True)
class Pairs:
    """The pairs of a batch as the papers write them. Logprobs are sums over completions' tokens, in nats."""

    chosen: torch.Tensor
    """log pi(y_w | x), `[pairs]`, differentiable."""
    rejected: torch.Tensor
    """log pi(y_l | x), `[pairs]`, differentiable."""
    chosen_tokens: torch.Tensor
    """|y_w|, the chosen completions' trained tokens, `[pairs]`, of the logprobs' dtype."""
    rejected_tokens: torch.Tensor
    """|y_l|, the rejected completions' trained tokens, `[pairs]`, of the logprobs' dtype."""
    reference: Scores | None
    """log pi_ref(y_w | x) and log pi_ref(y_l | x), `[pairs]` each, or None for a loss without a reference."""

    @classmethod
    def of(
        cls,
        batch: Batch,
        logprobs: Logprobs,
        *,
        reference: bool = True,
        weights: torch.Tensor | None = None,
    ) -> Pairs:
        """Sum the logprobs of a batch of pairs.

        Args:
            batch: even datums are chosen, odd ones rejected.
            logprobs: the policy's, per datum.
            reference: whether the loss compares the policy with the batch's reference.
            weights: floating `[tokens]`, what each token counts instead of the batch's own weights.

        Raises:
            PluginError: a reference is wanted and the batch has none.
        """
        chosen, rejected = chosen_and_rejected(sequence_logprobs(logprobs, batch, weights))
        tokens = chosen_and_rejected(batch.trained_tokens.to(chosen.dtype))
        anchor = reference_sequence_logprobs(batch, weights).to(chosen.dtype) if reference else None
        return cls(chosen, rejected, *tokens, None if anchor is None else chosen_and_rejected(anchor))

    @cached_property
    def log_ratios(self) -> Scores:
        """The log-ratios log pi(y | x) - log pi_ref(y | x); without a reference, log pi(y | x)."""
        if self.reference is None:
            return self.chosen, self.rejected
        return self.chosen - self.reference[0], self.rejected - self.reference[1]

    @cached_property
    def margins(self) -> torch.Tensor:
        """The log-ratio of the chosen minus that of the rejected completion, nats, `[pairs]`."""
        chosen, rejected = self.log_ratios
        return chosen - rejected

    @cached_property
    def reference_margins(self) -> torch.Tensor:
        """Log pi_ref(y_w | x) - log pi_ref(y_l | x), nats, `[pairs]`; 0 without a reference."""
        if self.reference is None:
            return torch.zeros_like(self.chosen)
        return self.reference[0] - self.reference[1]

    @cached_property
    def mean_log_ratios(self) -> Scores:
        """The log-ratios, each divided by its completion's tokens."""
        return self.per_token(self.log_ratios)

    @cached_property
    def mean_logprobs(self) -> Scores:
        """The policy's logprobs per token: log pi(y | x) / |y|."""
        return self.per_token((self.chosen, self.rejected))

    def per_token(self, scores: Scores) -> Scores:
        """Divide scores by the number of tokens of their completions."""
        return scores[0] / self.chosen_tokens, scores[1] / self.rejected_tokens

    def rewards(self, beta: float) -> Scores:
        """Compute the implicit rewards beta (log pi(y | x) - log pi_ref(y | x)) (arXiv 2305.18290, eq. 5)."""
        chosen, rejected = self.log_ratios
        return beta * chosen, beta * rejected

    def metrics(self, rewards: Scores | None = None) -> dict[str, float]:
        """Summarise the pairs: means over the batch.

        Args:
            rewards: what the loss compares, for a loss that has a reward.

        Returns:
            `pair_accuracy`, `mean_margin`, `mean_chosen_score` and `mean_rejected_score` on the policy's
            sequence logprobs; with rewards, `rewards/chosen`, `rewards/rejected`, `rewards/margin` and
            `rewards/accuracy`; with a reference, `drift`, the log-ratio per token (nats; 0 before any step).
        """
        with torch.no_grad():
            named = dict(zip(SCORE_METRICS, comparison(self.chosen, self.rejected), strict=True))
            if rewards is not None:
                named |= zip(REWARD_METRICS, comparison(*rewards), strict=True)
            if self.reference is not None:
                tokens = self.chosen_tokens.sum() + self.rejected_tokens.sum()
                named["drift"] = (self.log_ratios[0].sum() + self.log_ratios[1].sum()) / tokens
            return dict(zip(named, torch.stack(list(named.values())).tolist(), strict=True))


ACCURACY = Metric(".2f", kind="share", better="higher", shown=True)
MARGIN = Metric(".6f", "nats", better="higher", shown=True)
NATS = Metric(".6f", "nats")
METRICS = {
    "pair_accuracy": ACCURACY,
    "mean_margin": MARGIN,
    "rewards/accuracy": ACCURACY,
    "rewards/margin": MARGIN,
    "mean_chosen_score": NATS,
    "mean_rejected_score": NATS,
    "rewards/chosen": NATS,
    "rewards/rejected": NATS,
    "drift": Metric(".6f", "nats per token", kind="batch"),
}
"""What `Pairs.metrics` returns, with and without rewards and a reference."""

SCORE_METRICS = ("pair_accuracy", "mean_margin", "mean_chosen_score", "mean_rejected_score")
REWARD_METRICS = ("rewards/accuracy", "rewards/margin", "rewards/chosen", "rewards/rejected")


def comparison(chosen: torch.Tensor, rejected: torch.Tensor) -> list[torch.Tensor]:
    """Return how often chosen beats rejected, and the means of their difference and of each; scalars."""
    accuracy = (chosen > rejected).to(chosen.dtype).mean()
    return [accuracy, (chosen - rejected).mean(), chosen.mean(), rejected.mean()]


def bradley_terry(margins: torch.Tensor) -> torch.Tensor:
    """Compute -log sigma(margin) of each pair, `[pairs]` (Rafailov et al., 2023, arXiv 2305.18290, eq. 7).

    Args:
        margins: chosen minus rejected reward, `[pairs]`.
    """
    return -logsigmoid(margins)
