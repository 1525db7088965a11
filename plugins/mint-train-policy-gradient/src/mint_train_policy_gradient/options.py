"""Options that losses on rollouts share."""

from __future__ import annotations

from typing import Annotated, ClassVar, TypeAlias

from pydantic import Field

from mint_train.plugin import OptionalReference
from mint_train_policy_gradient.advantages import FROM_REWARDS, Advantage
from mint_train_policy_gradient.reinforce import RolloutOptions
from mint_train_policy_gradient.samples import Average

Clip: TypeAlias = Annotated[float, Field(gt=0, description="How far below 1 a ratio counts.")]
ClipHigh: TypeAlias = Annotated[float, Field(gt=0, description="How far above 1 a ratio counts.")]
HowAveraged: TypeAlias = Annotated[
    Average, Field(description="Mean over all tokens, over each completion's first, or their sum.")
]
HowAdvantaged: TypeAlias = Annotated[Advantage, Field(description=FROM_REWARDS)]


class RatioOptions(RolloutOptions):
    """The options of a loss that compares the policy with the one that sampled.

    The reference stands for that one where rows have no `old_logprobs`.
    """

    NEEDS_OLD: ClassVar[bool] = True
    advantage: HowAdvantaged = "group"
    reference: OptionalReference = "initial"


class PPOOptions(RatioOptions):
    """Ratios of tokens, clipped as in PPO."""

    clip: Clip = 0.2
    clip_high: ClipHigh = 0.2
    average: HowAveraged = "tokens"


class GRPOOptions(PPOOptions):
    """GRPO's KL and average."""

    kl: float = Field(default=0.04, ge=0, description="Weight of the KL to the reference, per token.")
    average: HowAveraged = "sequences"


class DrGRPOOptions(PPOOptions):
    """Dr. GRPO's average, and the constant that it divides by."""

    advantage: HowAdvantaged = "centre"
    average: HowAveraged = "none"
    length: float = Field(
        default=1.0,
        gt=0,
        description="Constant that sums over tokens are divided by: the most tokens sampled.",
    )


class DAPOOptions(PPOOptions):
    """DAPO's wider upper bound."""

    clip_high: ClipHigh = 0.28


class GSPOOptions(RatioOptions):
    """GSPO's narrow bounds, for ratios per token of a completion."""

    clip: Clip = 3e-4
    clip_high: ClipHigh = 4e-4


class RLOOOptions(RatioOptions):
    """RLOO's advantage, and bounds for ratios of completions."""

    advantage: HowAdvantaged = "leave-one-out"
    clip: Clip = 0.2
    clip_high: ClipHigh = 0.2


class CISPOOptions(RatioOptions):
    """The bound of CISPO's weights."""

    upper: float = Field(default=5.0, gt=0, description="Most that a ratio, as a weight, counts.")
    average: HowAveraged = "tokens"


class GMPOOptions(RatioOptions):
    """GMPO's bounds, of log-ratios."""

    clip: float = Field(default=0.4, gt=0, description="How far below 0 a token's log-ratio counts.")
    clip_high: float = Field(default=0.4, gt=0, description="How far above 0 a token's log-ratio counts.")


class SAPOOptions(RatioOptions):
    """SAPO's temperatures."""

    tau: float = Field(default=1.0, gt=0, description="Temperature where the advantage is positive.")
    tau_negative: float = Field(default=1.05, gt=0, description="Temperature where it is not.")
    average: HowAveraged = "sequences"


class TOPROptions(RatioOptions):
    """TOPR takes rewards as they are."""

    advantage: HowAdvantaged = "raw"
