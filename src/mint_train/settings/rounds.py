"""The options of `--rounds`: one model for command line, config file and Python."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from mint_train.settings.model import PathName

ROUNDS_OPTION_NAMES = {"judge_options": "--judge-set"}
"""Options that are not called like their field."""


class RoundsSettings(BaseModel):
    """What all rounds have in common, beside the settings of their training."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rounds: int | None = Field(
        default=None,
        ge=1,
        description="Rounds of sampling, judging and training; each begins where the last one ended.",
    )
    prompts: PathName = Field(
        default=None, description="With --rounds: the prompts that are completed in each."
    )
    judge: str | None = Field(default=None, description="With --rounds: the judge, an installed plugin.")
    judge_options: dict[str, Any] = Field(
        default_factory=dict, description="With --rounds: an option of the judge; repeatable."
    )
    judge_timeout: float = Field(
        default=600.0,
        gt=0,
        allow_inf_nan=False,
        description="With --rounds: seconds that the judge may take for a batch.",
    )
    samples: int = Field(default=8, ge=2, description="With --rounds: completions per prompt.")
    max_tokens: int = Field(default=256, ge=1, description="With --rounds: tokens of each, at most.")
    temperature: float = Field(
        default=1.0, ge=0, allow_inf_nan=False, description="With --rounds: 0 takes the most likely token."
    )
    pair: str = Field(
        default="best-worst",
        description="With --rounds: which completions make a pair; see `mint-train pairs`.",
    )
    mix_previous: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="With --rounds: share of an epoch that rows of earlier rounds have.",
    )


ROUNDS_FIELDS = frozenset(RoundsSettings.model_fields)


def rounds_option(field: str) -> str:
    """Return the command-line option of a field."""
    return ROUNDS_OPTION_NAMES.get(field, "--" + field.replace("_", "-"))
