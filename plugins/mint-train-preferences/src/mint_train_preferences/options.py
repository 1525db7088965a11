"""The options that the losses of the family share."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from mint_train.plugin import NeededReference, Options

Beta: TypeAlias = Annotated[
    float, Field(gt=0, allow_inf_nan=False, description="Inverse temperature: the reward is beta log-ratios.")
]

LabelSmoothing: TypeAlias = Annotated[
    float, Field(ge=0, lt=0.5, description="Probability that a pair's label is wrong.")
]


InitialReference: TypeAlias = Annotated[
    Literal["initial"],
    Field(description="The policy before its first step: no other model is at hand beside it."),
]
"""The reference of a loss that compares whole distributions, which cannot be kept from before the run."""


class ReferenceOptions(Options):
    """The options of a loss that is defined against a reference."""

    reference: NeededReference = "initial"


class AnchoredOptions(ReferenceOptions):
    """A reference and a beta: DPO's own 0.1 unless a loss says otherwise."""

    beta: Beta = 0.1
