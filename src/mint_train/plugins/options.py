"""The options of losses: a base model that refuses what it does not know, and the option `reference`."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

from mint_train.settings.booleans import keep_booleans_apart

NO_REFERENCE = "none"
"""The reference of a loss that compares the policy with no other model."""


class Options(BaseModel):
    """The base of a loss's options: unknown names, NaN and infinity are refused, and values are constant."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    _kinds = field_validator("*", mode="wrap")(keep_booleans_apart)


def refuse_no_reference(reference: str) -> str:
    """Refuse "none" as the reference of a loss that is defined against one."""
    if reference == NO_REFERENCE:
        raise PydanticCustomError(
            "reference_needed",
            'this loss is defined against a reference; give "initial", or a model or checkpoint',
        )
    return reference


NeededReference: TypeAlias = Annotated[
    str,
    Field(
        min_length=1,
        description='The reference: "initial" (the policy before its first step), or a model or checkpoint.',
    ),
    AfterValidator(refuse_no_reference),
]
"""The option `reference` of a loss that is defined against a reference."""

OptionalReference: TypeAlias = Annotated[
    str,
    Field(
        min_length=1,
        description='The reference: "none", "initial" (the policy before its first step), or a model or '
        "checkpoint.",
    ),
]
"""The option `reference` of a loss that can do without one."""
