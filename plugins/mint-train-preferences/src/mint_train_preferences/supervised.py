"""Losses on the chosen completions alone: imitation, and the NLL that others add.

In the formulas p_t is the policy's logprob of token t of a chosen completion, and h_t its log-ratio of policy
and reference.
"""

from __future__ import annotations

import torch
from pydantic import Field

from mint_train.plugin import Batch, Metric, Options, loss, packed_logprobs, segment_sums
from mint_train_dpo.pairs import Logprobs, LossAndMetrics, Pairs
from mint_train_preferences.options import ReferenceOptions
from mint_train_preferences.regularisers import kl_estimates
from mint_train_preferences.stable_math import probabilities

NLL = Metric(".4f", "nats per token", better="lower")
"""The metric `nll`, of several losses: the NLL of the chosen completions."""


KL = Metric(".6f", "nats per token", kind="batch")


class ASFTOptions(ReferenceOptions):
    """The weight of the leash."""

    alpha: float = Field(default=0.1, ge=0, description="Weight of the KL to the reference.")


@loss(extends="dpo", options=Options, traits={"UNTRAINED_DATUMS": (1,), "LINEAR": True})
def sft(batch: Batch, logprobs: Logprobs) -> LossAndMetrics:
    """SFT: the mean NLL of the chosen completions' tokens.

    Formula: -mean p_t, over all chosen tokens of the batch
    Paper: none needed: cross-entropy
    Use: a first stage before preferences, or a regulariser: `dpo+0.1*sft`
    """
    pairs = Pairs.of(batch, logprobs, reference=False)
    return token_nll(batch, pairs), pairs.metrics()


@loss(
    extends="dpo",
    options=Options,
    metrics={"nll": NLL},
    traits={"UNTRAINED_DATUMS": (1,), "STOPS_GRADIENT": True},
)
def dft(batch: Batch, logprobs: Logprobs) -> LossAndMetrics:
    """DFT: SFT with each token weighted by its own probability, which keeps what the model can do.

    The value says little, since it rises with the weights; the NLL is in the metrics.

    Formula: -mean sg(exp(p_t)) p_t, over all chosen tokens of the batch
    Paper: Wu et al., 2025, arXiv 2508.05629
    Use: imitation that forgets less than SFT, for a model that can nearly write the completions
    """
    weights = batch.weights * probabilities(packed_logprobs(logprobs).detach())
    weighted = Pairs.of(batch, logprobs, reference=False, weights=weights)
    pairs = Pairs.of(batch, logprobs, reference=False)
    nll = float(token_nll(batch, pairs).detach())
    return token_nll(batch, weighted), pairs.metrics() | {"nll": nll}


@loss(
    extends="dpo",
    options=ASFTOptions,
    metrics={"nll": NLL, "kl": KL},
    traits={"UNTRAINED_DATUMS": (1,), "STOPS_GRADIENT": True},
)
def asft(batch: Batch, logprobs: Logprobs, options: ASFTOptions) -> LossAndMetrics:
    """ASFT: DFT on a leash, so that it does not drift from the model that it began as.

    The paper's KL is over the vocabulary; here it is estimated at the chosen tokens, as in `kl`.

    Formula: -mean sg(exp(p_t)) p_t + alpha mean (exp(-h_t) - 1 + h_t), both over all chosen tokens of the
        batch
    Paper: Zhu et al., 2025, arXiv 2509.23753; with an estimate of its KL
    Defaults: alpha is that of LLaMA-Factory, second hand
    Use: DFT on data that the model finds unlikely
    """
    weights = batch.weights * probabilities(packed_logprobs(logprobs).detach())
    weighted = Pairs.of(batch, logprobs, reference=False, weights=weights)
    pairs = Pairs.of(batch, logprobs)
    moved = segment_sums(kl_estimates(batch, logprobs), batch.lengths, batch.weights)[::2]
    kl = batch.mean(moved, pairs.chosen_tokens)
    found = {"nll": float(token_nll(batch, pairs).detach()), "kl": float(kl.detach())}
    return token_nll(batch, weighted) + options.alpha * kl, pairs.metrics() | found


def token_nll(batch: Batch, pairs: Pairs) -> torch.Tensor:
    """Compute the NLL per token over all chosen completions, a scalar, nats: long ones count more."""
    return -batch.mean(pairs.chosen, pairs.chosen_tokens)


def sequence_nll(batch: Batch, pairs: Pairs) -> torch.Tensor:
    """Compute the mean over completions of their NLL per token, a scalar, nats; all count the same."""
    return -batch.mean(pairs.mean_logprobs[0])
