"""The options of `--rounds`: one model for command line, config file and Python."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from mint_train.settings.booleans import keep_booleans_apart
from mint_train.settings.fields import (
    JUDGE_SECONDS,
    MOST,
    Count,
    JudgeName,
    JudgeOptions,
    JudgeSeconds,
    PathName,
)
from mint_train.settings.model import Settings
from mint_train.settings.sampling import JUDGED


class RoundsSettings(BaseModel):
    """What all rounds have in common, beside the settings of their training."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    _kinds = field_validator("*", mode="wrap")(keep_booleans_apart)

    rounds: Count | None = Field(
        default=None,
        description="Rounds of sampling, judging and training; each begins where the last one ended.",
    )
    prompts: PathName = Field(
        default=None, description="With --rounds: the prompts that are completed in each."
    )
    judge: JudgeName = None
    judge_options: JudgeOptions = Field(default_factory=dict)
    judge_timeout: JudgeSeconds = JUDGE_SECONDS
    samples: int = Field(
        default=JUDGED.samples, ge=2, le=MOST, description="With --rounds: completions per prompt."
    )
    max_tokens: Count = Field(
        default=JUDGED.max_tokens, description="With --rounds: tokens of each, at most."
    )
    temperature: float = Field(
        default=JUDGED.temperature,
        ge=0,
        allow_inf_nan=False,
        description="With --rounds: 0 takes the most likely token.",
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
ONLY_ROUNDS = ROUNDS_FIELDS - Settings.model_fields.keys()
"""Those that a run does not have: it has a judge too."""


def split_rounds(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the fields of rounds among some settings, and those of a run; both have those of the judge."""
    of_rounds = {name: value for name, value in given.items() if name in ROUNDS_FIELDS}
    return of_rounds, {name: value for name, value in given.items() if name not in ONLY_ROUNDS}
