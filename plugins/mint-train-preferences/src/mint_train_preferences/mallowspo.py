"""MallowsPO: DPO that trusts a pair by how sure the reference is of what it reads there.

In the formulas w is the chosen and l the rejected completion, h the log-ratio of policy and reference, and d
the negative logarithm of the pair's dispersion: the more the reference's distributions spread over the
vocabulary, the nearer d is to 0.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch.nn.functional import logsigmoid

from mint_train.plugin import Batch, Metric, Options, Vocabulary, loss, segment_sums
from mint_train_dpo.pairs import Logprobs, LossAndMetrics, Pairs, chosen_and_rejected
from mint_train_preferences.options import Beta, InitialReference

SMALLEST_SHARE = 1e-6
"""Of a reference without any doubt, whose pair would count without bound."""
SMALLEST = 1e-6
"""Of a reference without any opinion, whose ranking model has no limit in floating point."""
SERIES_BELOW = 0.03


class MallowsPOOptions(Options):
    """Beta, the model of rankings, and what scales the dispersion."""

    beta: Beta = 0.1
    variant: Literal["theta", "phi"] = Field(
        default="theta", description="The distance of rankings: theta, Spearman's rho; phi, Kendall's tau."
    )
    scale: float = Field(default=0.29, gt=0, description="Brings d to 1 on average over the data.")
    reference: InitialReference = "initial"


@loss(
    extends="dpo",
    options=MallowsPOOptions,
    metrics={"neg_log_dispersion": Metric()},
    vocabulary=("reference_entropy_share",),
)
def mallowspo(
    batch: Batch, logprobs: Logprobs, options: MallowsPOOptions, vocabulary: Vocabulary
) -> LossAndMetrics:
    """MallowsPO: pairs count more where the reference's distributions are narrow.

    The dispersion needs the whole vocabulary, which only the embedded backend gives. The authors' code has
    theta alone. With phi the loss jumps where the log-ratios are equal, as they are before the first step:
    the model of rankings has nothing between two neighbours. Training begins where the chosen is ahead.

    Formula: -log sigma(d beta (h_w - h_l)), d = -scale log(mean entropy of w's and l's tokens / log V), each
        completion counting half, V the size of the vocabulary; with variant=phi, z = beta (h_w - h_l),
        -log(g(z)) where z >= 0 and -log(1 - g(-z)) where z < 0, g(z) =
        (z + 1)/(1 - exp(-d (z + 1))) - z/(1 - exp(-d z))
    Paper: Chen et al., 2024, arXiv 2405.14953; theta as in the authors' code, phi second hand
    Defaults: scale is neg_log_dispersion_mean of the authors' mallowsPO_config.py, whose beta of 10 is for
        logprobs per token without a reference; beta is DPO's
    Use: preferences on which people agree here and differ there
    """
    pairs = Pairs.of(batch, logprobs)
    entropies = segment_sums(vocabulary["reference_entropy_share"], batch.lengths, batch.weights)
    chosen, rejected = pairs.per_token(chosen_and_rejected(entropies))
    concentrations = -options.scale * ((chosen + rejected) / 2).clamp(SMALLEST_SHARE, 1).log()
    rewards = options.beta * pairs.log_ratios[0], options.beta * pairs.log_ratios[1]
    if options.variant == "theta":
        rewards = concentrations * rewards[0], concentrations * rewards[1]
        losses = -logsigmoid(rewards[0] - rewards[1])
    else:
        losses = -log_agreement(rewards[0] - rewards[1], concentrations.clamp(min=SMALLEST))
    metrics = pairs.metrics(rewards) | {"neg_log_dispersion": float(concentrations.detach().mean())}
    return batch.mean(losses), metrics


def log_agreement(gaps: torch.Tensor, concentrations: torch.Tensor) -> torch.Tensor:
    """Compute the log-probability that a ranking puts two items in their order, `[pairs]`.

    Items k ranks apart in the central ranking are so ordered with probability g(k) (Mallows, 1957), which is
    continued to gaps that are not whole; at a gap of 0 the limit from above is taken.

    Args:
        gaps: ranks apart, less than 0 for a pair in the other order.
        concentrations: -log phi of the Mallows model, above 0.
    """
    ranks = concentrations * torch.where(gaps < 0, -gaps, gaps)
    # 1 - g(z) = (v(d z) - v(d (z + 1))) / d with v(x) = x / (exp(x) - 1)
    near, far = log_v(ranks), log_v(ranks + concentrations)
    disagreement = near + torch.log(-torch.expm1(far - near)) - concentrations.log()
    agreement = torch.log1p(-disagreement.exp())
    return torch.where(gaps < 0, disagreement, agreement)


def log_v(x: torch.Tensor) -> torch.Tensor:
    """Compute log(x / (exp(x) - 1)) for x >= 0, where both may be close to 0."""
    large = x.clamp(min=SERIES_BELOW)
    series = -x / 2 - x**2 / 24 + x**4 / 2880
    return torch.where(x < SERIES_BELOW, series, large.log() - large - torch.log(-torch.expm1(-large)))
