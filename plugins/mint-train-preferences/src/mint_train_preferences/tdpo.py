"""TDPO: DPO that holds the distribution at every token near the reference's, not only the sampled token.

In the formulas w is the chosen and l the rejected completion, h the log-ratio of policy and reference, and D
the sum over a completion's tokens of KL(reference || policy) over the vocabulary; sg stops the gradient.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mint_train.plugin import Batch, Metric, Options, Vocabulary, loss, segment_sums
from mint_train_dpo.pairs import Logprobs, LossAndMetrics, Pairs, bradley_terry, chosen_and_rejected
from mint_train_preferences.options import Beta, InitialReference

DIVERGENCE = Metric(".6f", "nats", better="lower")


class TDPOOptions(Options):
    """Beta, and how far the difference of the divergences counts."""

    beta: Beta = 0.1
    variant: Literal["tdpo1", "tdpo2"] = Field(
        default="tdpo2",
        description="tdpo2 stops the gradient of the chosen side's divergence; tdpo1 does not.",
    )
    alpha: float = Field(default=0.5, ge=0, description="Weight of the divergences in tdpo2; 1 in tdpo1.")
    reference: InitialReference = "initial"


@loss(
    extends="dpo",
    options=TDPOOptions,
    metrics={"kl/chosen": DIVERGENCE, "kl/rejected": DIVERGENCE},
    vocabulary=("forward_kl",),
    traits={"STOPS_GRADIENT": lambda options: options.variant == "tdpo2"},
)
def tdpo(batch: Batch, logprobs: Logprobs, options: TDPOOptions, vocabulary: Vocabulary) -> LossAndMetrics:
    """TDPO: DPO with the KL of every token's distribution balanced between chosen and rejected.

    It needs the whole vocabulary, which only the embedded backend gives.

    Formula: -log sigma(beta (h_w - h_l - alpha (D_l - sg(D_w)))); with variant=tdpo1,
        -log sigma(beta (h_w - h_l - (D_l - D_w))); D is the sum over tokens of KL(reference || policy)
    Paper: Zeng et al., 2024, arXiv 2404.11999; as in the authors' code
    Defaults: the authors' config/loss/tdpo.yaml
    Use: DPO drifts far from the reference on the rejected side; tdpo1 at low learning rates, say the authors
    """
    pairs = Pairs.of(batch, logprobs)
    chosen, rejected = chosen_and_rejected(
        segment_sums(vocabulary["forward_kl"], batch.lengths, batch.weights)
    )
    if options.variant == "tdpo1":
        weight, gaps = 1.0, rejected - chosen
    else:
        weight, gaps = options.alpha, rejected - chosen.detach()
    losses = bradley_terry(options.beta * (pairs.margins - weight * gaps))
    of_chosen, of_rejected = pairs.log_ratios
    rewards = options.beta * (of_chosen + weight * chosen), options.beta * (of_rejected + weight * rejected)
    divergences = {"kl/chosen": float(chosen.detach().mean()), "kl/rejected": float(rejected.detach().mean())}
    return batch.mean(losses), pairs.metrics(rewards) | divergences
