"""PPO and its kin on groups of samples: the ratio of each token, clipped.

In the formulas A is a token's advantage, its completion's where the row says no more, and r its ratio: its
probability under the policy, divided by that under the policy that sampled it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mint_train.plugin import Batch, loss
from mint_train_policy_gradient.options import DAPOOptions, DrGRPOOptions, GRPOOptions, PPOOptions
from mint_train_policy_gradient.reinforce import with_kl
from mint_train_policy_gradient.samples import METRICS, LossAndMetrics, Samples, clipped_gains


@loss(extends="reinforce", options=PPOOptions, metrics=METRICS)
def ppo_clip(batch: Batch, logprobs: Sequence[torch.Tensor], options: PPOOptions) -> LossAndMetrics:
    """PPO's clipped surrogate, with advantages from rows or from the rewards of a group.

    Formula: -min(r A, clip(r, 1 - clip, 1 + clip_high) A), the mean over tokens
    Paper: Schulman et al., 2017, arXiv 1707.06347, eq. 7
    Defaults: clip from section 6.1 of the paper, second hand (TRL); advantage is a choice made here
    Use: completions sampled and scored elsewhere, with advantages of your own
    """
    return clipped(batch, logprobs, options)


@loss(extends="reinforce", options=GRPOOptions, metrics=METRICS)
def grpo(batch: Batch, logprobs: Sequence[torch.Tensor], options: GRPOOptions) -> LossAndMetrics:
    """GRPO: PPO whose advantage is a reward beside the others of its prompt, with a KL to the reference.

    The KL counts as in TRL, per token and without a ratio.

    Formula: -min(r A, clip(r, 1 - clip, 1 + clip_high) A) + kl (exp(-h) - 1 + h), h the log-ratio to the
        reference, the mean over each completion's tokens and then over completions;
        A = (reward - mean of the group)/(its standard deviation + 1e-4)
    Paper: Shao et al., 2024, arXiv 2402.03300, eq. 3 and 4
    Defaults: kl from section 4.2 of the paper, second hand; clip is PPO's, and TRL's
    Use: several completions of each prompt, with rewards that can be checked
    """
    return clipped(batch, logprobs, options)


@loss(extends="reinforce", options=DrGRPOOptions, metrics=METRICS)
def dr_grpo(batch: Batch, logprobs: Sequence[torch.Tensor], options: DrGRPOOptions) -> LossAndMetrics:
    """Dr. GRPO: GRPO without the divisions that favour long wrong answers and easy or hard prompts.

    Formula: -sum of min(r A, clip(r, 1 - clip, 1 + clip_high) A) / length, the mean over completions;
        A = reward - mean of the group
    Paper: Liu et al., 2025, arXiv 2503.20783; as in TRL, where length is `max_completion_length`
    Defaults: clip is GRPO's; with length 1 the sum is not divided
    Use: GRPO whose answers grow longer without growing better
    """
    value, metrics = clipped(batch, logprobs, options)
    return value / options.length, metrics


@loss(extends="reinforce", options=DAPOOptions, metrics=METRICS)
def dapo(batch: Batch, logprobs: Sequence[torch.Tensor], options: DAPOOptions) -> LossAndMetrics:
    """DAPO: GRPO with a higher upper bound, and a mean over all tokens of the batch.

    Its other parts are choices of data: leave out prompts whose rewards are all equal, and samples that were
    cut off.

    Formula: -min(r A, clip(r, 1 - clip, 1 + clip_high) A), the mean over all tokens; A as in grpo
    Paper: Yu et al., 2025, arXiv 2503.14476, eq. 8
    Defaults: section 4.1 of the paper, second hand (TRL)
    Use: long answers; more exploration than with GRPO
    """
    return clipped(batch, logprobs, options)


def clipped(batch: Batch, logprobs: Sequence[torch.Tensor], options: PPOOptions) -> LossAndMetrics:
    """Compute the clipped surrogate, averaged as the options ask, with the KL where they ask for one."""
    samples = Samples.of(batch, logprobs, options.advantage)
    gains = clipped_gains(samples.ratios, samples.advantages, options.clip, options.clip_high)
    value = -samples.token_mean(gains, options.average)
    stopped = gains < samples.ratios * samples.advantages
    return with_kl(value, samples, options, options.average), samples.metrics(stopped)
