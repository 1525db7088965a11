"""Losses that need no reference model.

In the formulas w is the chosen and l the rejected completion, |y| a completion's tokens,
p = log pi(y) the policy's logprob, p_t that of one token of a chosen completion, and m = p/|y|.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch.nn.functional import logsigmoid

from mint_train.plugin import Batch, Options, loss
from mint_train_dpo.pairs import Logprobs, LossAndMetrics, Pairs, bradley_terry
from mint_train_preferences.options import Beta
from mint_train_preferences.stable_math import log1mexp, power_reward, probabilities
from mint_train_preferences.supervised import NLL, sequence_nll, token_nll


class SimPOOptions(Options):
    """SimPO's beta and target margin."""

    beta: Beta = 2.0
    gamma: float = Field(default=1.0, ge=0, description="Target margin between the two rewards.")


class AlphaPOOptions(SimPOOptions):
    """SimPO's options, and how the reward is bent."""

    beta: Beta = 2.5
    gamma: float = Field(default=0.1, ge=0, description="Target margin between the two rewards.")
    alpha: float = Field(default=0.25, description="Curvature of the reward transform; 0 is SimPO.")


class CPOOptions(Options):
    """Beta, and the weight of the NLL."""

    beta: Beta = 0.1
    alpha: float = Field(default=1.0, ge=0, description="Weight of the chosen's NLL per token.")


class ORPOOptions(Options):
    """The weight of the odds ratio."""

    beta: float = Field(default=0.1, gt=0, description="Weight of the odds ratio (lambda in the paper).")


class RePOOptions(Options):
    """RePO's target margin."""

    gamma: float = Field(default=0.6, ge=0, description="Margin per token at which a pair stops pulling.")


class SimNPOOptions(Options):
    """Beta, and the margin at which a completion is forgotten."""

    beta: Beta = 2.5
    gamma: float = Field(
        default=0.0, ge=0, description="Margin below which a completion counts as forgotten."
    )


@loss(extends="dpo", options=SimPOOptions)
def simpo(batch: Batch, logprobs: Logprobs, options: SimPOOptions) -> LossAndMetrics:
    """SimPO: logprobs per token as the reward, and a target margin.

    Formula: -log sigma(beta (m_w - m_l) - gamma)
    Paper: Meng et al., 2024, arXiv 2405.14734, eq. 6
    Defaults: the authors' llama-3-8b-base-simpo.yaml, with gamma_beta_ratio 0.5
    Use: no memory or time for a reference, completions of uneven length
    """
    pairs = Pairs.of(batch, logprobs, reference=False)
    chosen, rejected = (options.beta * m for m in pairs.mean_logprobs)
    return batch.mean(bradley_terry(chosen - rejected - options.gamma)), pairs.metrics((chosen, rejected))


@loss(extends="dpo", options=RePOOptions)
def repo(batch: Batch, logprobs: Logprobs, options: RePOOptions) -> LossAndMetrics:
    """RePO: SimPO without beta, a hinge at the target margin.

    Formula: max(0, gamma - (m_w - m_l))
    Paper: Wu et al., 2025, arXiv 2503.07426; as in the authors' code
    Defaults: the authors' llama-3-8b-instruct-repo.yaml (gamma_beta_ratio 0.6)
    Use: as simpo, with one number to tune; pairs that are won stop pulling
    """
    pairs = Pairs.of(batch, logprobs, reference=False)
    chosen, rejected = pairs.mean_logprobs
    losses = torch.relu(options.gamma - (chosen - rejected))
    return batch.mean(losses), pairs.metrics((chosen, rejected))


@loss(extends="dpo", options=AlphaPOOptions)
def alphapo(batch: Batch, logprobs: Logprobs, options: AlphaPOOptions) -> LossAndMetrics:
    """AlphaPO: SimPO with a bent reward, against likelihood displacement.

    Beyond e^30 the exponential goes on as its tangent, so that it stays finite.

    Formula: -log sigma(beta (r_w - r_l) - gamma), r = (1 - exp(-alpha m))/alpha
    Paper: Gupta et al., 2025, arXiv 2501.03884
    Defaults: table 3 of the paper for Mistral-Instruct, second hand (TRL)
    Use: SimPO lowers the chosen's likelihood too far
    """
    pairs = Pairs.of(batch, logprobs, reference=False)
    chosen, rejected = (options.beta * power_reward(m, options.alpha) for m in pairs.mean_logprobs)
    return batch.mean(bradley_terry(chosen - rejected - options.gamma)), pairs.metrics((chosen, rejected))


@loss(extends="dpo", options=CPOOptions, metrics={"nll": NLL})
def cpo(batch: Batch, logprobs: Logprobs, options: CPOOptions) -> LossAndMetrics:
    """CPO: DPO with a uniform reference, plus the NLL of the chosen completions.

    Formula: -log sigma(beta (p_w - p_l)) - alpha mean p_t, over all chosen tokens of the batch
    Paper: Xu et al., 2024, arXiv 2401.08417, eq. 3; the NLL per token, as in the authors' code and TRL
    Defaults: TRL's CPOConfig, second hand
    Use: translation, and wherever the chosen is near what the model should write
    """
    pairs = Pairs.of(batch, logprobs, reference=False)
    nll = token_nll(batch, pairs)
    value = batch.mean(bradley_terry(options.beta * pairs.margins)) + options.alpha * nll
    return value, pairs.metrics(pairs.rewards(options.beta)) | {"nll": float(nll.detach())}


@loss(extends="dpo", options=ORPOOptions, metrics={"nll": NLL})
def orpo(batch: Batch, logprobs: Logprobs, options: ORPOOptions) -> LossAndMetrics:
    """ORPO: SFT and preferences in one stage, by an odds ratio.

    The NLL is the paper's: over the completion's tokens, each sequence's mean, averaged over sequences. The
    authors' code and TRL average over all tokens of the batch at once, the prompts' among them (the authors'
    code can leave these out), so that long sequences count more.

    Formula: -m_w - beta log sigma(log odds(m_w) - log odds(m_l)), log odds(m) = m - log(1 - exp(m))
    Paper: Hong et al., 2024, arXiv 2403.07691, eq. 6 and 7
    Defaults: beta is the paper's lambda for Mistral (section 6.1), second hand, and TRL's
    Use: from a base model straight to preferences, without an SFT stage
    """
    pairs = Pairs.of(batch, logprobs, reference=False)
    chosen, rejected = (m - log1mexp(m) for m in pairs.mean_logprobs)
    nll = sequence_nll(batch, pairs)
    value = nll + options.beta * batch.mean(bradley_terry(chosen - rejected))
    return value, pairs.metrics((chosen, rejected)) | {"nll": float(nll.detach())}


@loss(extends="dpo", options=Options)
def simper(batch: Batch, logprobs: Logprobs) -> LossAndMetrics:
    """SimPER: raise the chosen's inverse perplexity above the rejected's, with nothing to tune.

    Formula: exp(m_l) - exp(m_w)
    Paper: Xiao et al., 2025, arXiv 2502.00883
    Use: no budget to tune beta and gamma
    """
    pairs = Pairs.of(batch, logprobs, reference=False)
    chosen, rejected = (probabilities(m) for m in pairs.mean_logprobs)
    return batch.mean(rejected - chosen), pairs.metrics((chosen, rejected))


@loss(extends="dpo", options=SimNPOOptions, traits={"UNTRAINED_DATUMS": (0,)})
def simnpo(batch: Batch, logprobs: Logprobs, options: SimNPOOptions) -> LossAndMetrics:
    """SimNPO: unlearn the rejected completions without a reference; the chosen ones play no part.

    Gamma is the paper's; the authors' code multiplies its own by beta.

    Formula: -(2/beta) log sigma(-beta m_l - gamma)
    Paper: Fan et al., 2024, arXiv 2410.07163
    Defaults: the authors' values for TOFU forget05
    Use: making a model forget texts of uneven length; add `sft` to keep the rest
    """
    pairs = Pairs.of(batch, logprobs, reference=False)
    chosen, rejected = (options.beta * m for m in pairs.mean_logprobs)
    losses = -2 / options.beta * logsigmoid(-rejected - options.gamma)
    return batch.mean(losses), pairs.metrics((chosen, rejected))
