"""Losses that compare the sorted rewards of a batch: optimal transport in one dimension.

In the formulas w is the chosen and l the rejected completion, p the logprobs and h the log-ratio of policy
and reference, e the label smoothing, and sort the values of a batch in ascending order.
"""

from __future__ import annotations

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
    z = options.beta * (policy.sort().values - pairs.reference_margins.sort().values)
    return smoothed(z, options.label_smoothing).mean(), pairs.metrics(pairs.rewards(options.beta))


@loss(extends="dpo", options=AOTOptions)
def aot_unpaired(batch: Batch, logprobs: Logprobs, options: AOTOptions) -> LossAndMetrics:
    """AOT, unpaired: push the chosen's log-ratios, sorted, to dominate the rejected's, sorted.

    Formula: z = beta (sort(h_w) - sort(h_l)); -(1 - e) log sigma(z) - e log sigma(-z)
    Paper: Melnyk et al., 2024, arXiv 2406.05882, section 3, unpaired
    Defaults: as for aot
    Use: chosen and rejected completions do not belong together one by one
    """
    pairs = Pairs.of(batch, logprobs)
    chosen, rejected = (log_ratios.sort().values for log_ratios in pairs.log_ratios)
    z = options.beta * (chosen - rejected)
    return smoothed(z, options.label_smoothing).mean(), pairs.metrics(pairs.rewards(options.beta))


aot.answer("data_note", note_single_pair)
aot_unpaired.answer("data_note", note_single_pair)
