"""Losses that are told by how much a completion is better, on the scored pairs of `odpo`.

In the formulas w is the chosen and l the rejected completion, h the log-ratio of policy and reference, s the
row's score, and KL(p, q) that between coins that show heads with probability p and q.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch.nn.functional import logsigmoid

from mint_train.plugin import Batch, ContractError, loss
from mint_train_dpo.pairs import Logprobs, LossAndMetrics, Pairs, bradley_terry
from mint_train_preferences.odpo import score_gaps
from mint_train_preferences.options import AnchoredOptions, Beta

PAIR = 2


class RewardAwareOptions(AnchoredOptions):
    """Beta, the scale of the scores, and how the two gaps are compared."""

    beta: Beta = 0.2
    eta: float = Field(
        default=1.0, gt=0, description="Scale of the scores: the target gap is eta (s_w - s_l)."
    )
    distance: Literal["backward-kl", "forward-kl", "squared"] = Field(
        default="backward-kl", description="How the policy's gap is compared with the target gap."
    )


class MaPPOOptions(AnchoredOptions):
    """Beta, and the scale of the scores."""

    scale: float = Field(
        default=1.0, gt=0, description="The greatest gap of two scores: 1 for scores from 0 to 1."
    )


@loss(extends="odpo", options=RewardAwareOptions)
def reward_aware_rpo(batch: Batch, logprobs: Logprobs, options: RewardAwareOptions) -> LossAndMetrics:
    """Reward-aware preference optimisation: bring the gap of the implicit rewards to that of the scores.

    The names of the distances are NeMo-Aligner's. It is called RPO there, as is another loss (`rpo`).

    Formula: KL(sigma(g), sigma(z)), z = beta (h_w - h_l), g = eta (s_w - s_l); KL(sigma(z), sigma(g)) with
        distance=forward-kl, (z - g)^2 with distance=squared
    Paper: Nemotron-4 340B, Adler et al., 2024, arXiv 2406.11704; as in NeMo-Aligner
    Defaults: NeMo-Aligner's (ref_policy_kl_penalty 0.2, gt_reward_scale 1)
    Use: scores of a reward model whose differences mean something; DPO pushes small and large gaps alike
    """
    pairs = Pairs.of(batch, logprobs)
    policy, target = options.beta * pairs.margins, options.eta * score_gaps(batch, pairs.margins.dtype)
    if options.distance == "squared":
        losses = (policy - target).square()
    elif options.distance == "forward-kl":
        losses = coin_divergence(policy, target)
    else:
        losses = coin_divergence(target, policy)
    return batch.mean(losses), pairs.metrics(pairs.rewards(options.beta))


def coin_divergence(logits: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Compute the KL divergence from coins of these logits to coins of other ones, nats."""
    heads = torch.sigmoid(logits) * (logsigmoid(logits) - logsigmoid(others))
    tails = torch.sigmoid(-logits) * (logsigmoid(-logits) - logsigmoid(-others))
    return heads + tails


@loss(extends="odpo", options=MaPPOOptions)
def mappo(batch: Batch, logprobs: Logprobs, options: MaPPOOptions) -> LossAndMetrics:
    """MaPPO: the rejected reward counts by the gap of the scores, so that a near tie lowers it little.

    Formula: -log sigma(beta (h_w - g h_l)), g = (s_w - s_l)/scale
    Paper: Lan et al., 2025, arXiv 2507.21183, eq. 8, where scores are from 0 to 1
    Defaults: beta from table 4 of the paper
    Use: pairs of two good completions, whose likelihoods DPO lowers together
    """
    pairs = Pairs.of(batch, logprobs)
    chosen, rejected = rewards = pairs.rewards(options.beta)
    gaps = score_gaps(batch, pairs.margins.dtype) / options.scale
    return batch.mean(bradley_terry(chosen - gaps * rejected)), pairs.metrics(rewards)


def check_gaps(batch: Batch, options: MaPPOOptions) -> None:
    """Refuse a gap of scores that is greater than the options say.

    Raises:
        ContractError: naming the first pair with such a gap.
    """
    for number, group in enumerate(batch.groups):
        scores = [values.get("score") for values in group.attached]
        if len(scores) != PAIR or not all(isinstance(score, float) for score in scores):
            continue  # the contract of pairs says what is wrong
        gap = scores[0] - scores[1]  # type: ignore[operator]
        if gap > options.scale:
            raise ContractError(
                f"pair {number}: its scores are {gap:g} apart, and this loss expects at most "
                f"{options.scale:g}: set the option scale to the greatest possible gap",
                number,
            )


mappo.answer("check_batch", check_gaps)
mappo.answer("bundled_rows", lambda: Path(__file__).with_name("unit_scored_pairs.jsonl"))
