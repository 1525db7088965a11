"""DFT on single completions: SFT with each token weighted by its own probability.

The value says little, since it rises with the weights; the NLL is in the metrics.

In the formula p_t is the policy's logprob of token t of a completion.

Formula: -mean sg(exp(p_t)) p_t, over all tokens of the batch's completions
Paper: Wu et al., 2025, arXiv 2508.05629
Use: imitation that forgets less than SFT, for a model that can nearly write the completions
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mint_train.plugin import Batch, hookimpl, packed_logprobs, sequence_logprobs
from mint_train_sft.sft_unpaired import completion_nll

EXTENDS = "sft-unpaired"
STOPS_GRADIENT = True


@hookimpl
def compute_loss(batch: Batch, logprobs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
    """Compute the NLL per token, each token weighted by its probability, which is held constant."""
    # rounding may leave a logprob a little above 0
    weights = batch.weights * packed_logprobs(logprobs).detach().clamp(max=0).exp()
    value = -batch.mean(sequence_logprobs(logprobs, batch, weights), batch.trained_tokens)
    return value, {"completion_nll": completion_nll(batch, logprobs)}
