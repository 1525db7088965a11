"""The options of `--rounds`: one model for command line, config file and Python."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, field_validator

from mint_train.settings.booleans import keep_booleans_apart
from mint_train.settings.fields import MOST, Count, JudgeName, JudgeOptions, JudgeSeconds, PathName
from mint_train.settings.model import Settings


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
    judge_timeout: JudgeSeconds = 600.0
    samples: int = Field(default=8, ge=2, le=MOST, description="With --rounds: completions per prompt.")
    max_tokens: Count = Field(default=256, description="With --rounds: tokens of each, at most.")
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
ONLY_ROUNDS = ROUNDS_FIELDS - Settings.model_fields.keys()
"""Those that a run does not have: it has a judge too."""
