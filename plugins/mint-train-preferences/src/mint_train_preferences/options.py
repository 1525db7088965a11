"""The options that the losses of the family share."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from mint_train_dpo.loss import NO_REFERENCE

REFERENCE_HELP = '"initial" (the policy before its first step), or a model or checkpoint.'


def refuse_none(reference: str) -> str:
    """Refuse to leave out the reference of a loss that is defined against one."""
    if reference == NO_REFERENCE:
        raise PydanticCustomError(
            "reference_needed",
            'this loss is defined against a reference; give "initial", or a model or checkpoint '
            "(losses without one: cpo, orpo, simpo, simper, alphapo; dpo and hinge take both)",
        )
    return reference


Reference: TypeAlias = Annotated[str, AfterValidator(refuse_none)]

Beta: TypeAlias = Annotated[
    float, Field(gt=0, allow_inf_nan=False, description="Inverse temperature: the reward is beta log-ratios.")
]

LabelSmoothing: TypeAlias = Annotated[
    float, Field(ge=0, lt=0.5, description="Probability that a pair's label is wrong.")
]


class Options(BaseModel):
    """The base of all options: unknown keys are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ReferenceOptions(Options):
    """The options of a loss that is defined against a reference."""

    reference: Reference = Field(default="initial", min_length=1, description=REFERENCE_HELP)


class AnchoredOptions(ReferenceOptions):
    """A reference and a beta, DPO's own 0.1 unless the loss's paper has another."""

    beta: Beta = 0.1
