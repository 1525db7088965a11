"""Losses that compare the sorted rewards of a batch: optimal transport in one dimension.

In the formulas w is the chosen and l the rejected completion, p the logprobs and h the log-ratio of policy
and reference, e the label smoothing, and sort the values of a batch in ascending order.
"""

from __future__ import annotations

import torch

from mint_train.plugin import Batch, loss
from mint_train_dpo.pairs import Logprobs, LossAndMetrics, Pairs
from mint_train_preferences.noise import smoothed
from mint_train_preferences.options import AnchoredOptions, Beta, LabelSmoothing
from mint_train_preferences.whole_batch import note_single_pair


class AOTOptions(AnchoredOptions):
    """Beta, and optional label smoothing."""

    beta: Beta = 0.01
    label_smoothing: LabelSmoothing = 0.0


@loss(extends="dpo", options=AOTOptions)
def aot(batch: Batch, logprobs: Logprobs, options: AOTOptions) -> LossAndMetrics:
    """AOT: push the policy's margins, sorted, to dominate the reference's, sorted.

    Formula: z = beta (sort(p_w - p_l) - sort(p_ref_w - p_ref_l));
        -(1 - e) log sigma(z) - e log sigma(-z)
    Paper: Melnyk et al., 2024, arXiv 2406.05882, section 3, paired
    Defaults: beta 0.01 stands under the paper's figure 2, second hand (TRL)
    Use: the distribution of rewards matters more than each pair; wants larger batches
    """
    pairs = Pairs.of(batch, logprobs)
    policy = pairs.chosen - pairs.rejected
    value = transport_cost(batch, policy, pairs.reference_margins, options)
    return value, pairs.metrics(pairs.rewards(options.beta))


@loss(extends="dpo", options=AOTOptions)
def aot_unpaired(batch: Batch, logprobs: Logprobs, options: AOTOptions) -> LossAndMetrics:
    """AOT, unpaired: push the chosen's log-ratios, sorted, to dominate the rejected's, sorted.

    Formula: z = beta (sort(h_w) - sort(h_l)); -(1 - e) log sigma(z) - e log sigma(-z)
    Paper: Melnyk et al., 2024, arXiv 2406.05882, section 3, unpaired
    Defaults: as for aot
    Use: chosen and rejected completions do not belong together one by one
    """
    pairs = Pairs.of(batch, logprobs)
    value = transport_cost(batch, *pairs.log_ratios, options)
    return value, pairs.metrics(pairs.rewards(options.beta))


def transport_cost(batch: Batch, one: torch.Tensor, other: torch.Tensor, options: AOTOptions) -> torch.Tensor:
    """Compute the mean loss of the differences between two sorted batches, a scalar.

    A pair of weight 2 is two pairs with the same values: the weights are masses, and each part of the mass of
    one batch meets the part of the other at the same quantile.

    Args:
        batch: the pairs.
        one: what should be greater, `[pairs]`.
        other: what should be smaller, `[pairs]`.
        options: beta and label smoothing.
    """
    if not batch.carries_weights:
        z = options.beta * (one.sort().values - other.sort().values)
        return batch.mean(smoothed(z, options.label_smoothing))
    orders = [values.argsort(stable=True) for values in (one, other)]
    ends = [batch.group_weights[order].cumsum(0) for order in orders]
    edges = torch.cat(ends).sort().values
    masses = edges.diff(prepend=edges.new_zeros(1))
    middles = edges - masses / 2
    last = len(one) - 1
    met = [
        values[order[torch.searchsorted(end, middles).clamp(max=last)]]
        for values, order, end in zip((one, other), orders, ends, strict=True)
    ]
    losses = smoothed(options.beta * (met[0] - met[1]), options.label_smoothing)
    return (masses.to(losses.dtype) * losses).sum() / batch.total_weight


aot.answer("data_note", note_single_pair)
aot_unpaired.answer("data_note", note_single_pair)
