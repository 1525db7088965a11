"""The row of supervised fine-tuning: a prompt, and what the model should write for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mint_train.plugin import Completion, Forms, Prompt, single_answers
from mint_train_dpo.rows import FORMS as PAIR_FORMS
from mint_train_dpo.rows import RESERVED

GRADED = (
    "reward",
    "rewards",
    "advantage",
    "advantages",
    "desirable",
    "kto_tag",
    "thumbs_up",
    "rejected",
    "rejected_response",
    "non_preferred_output",
    "dispreferred",
    "correct",
    "is_correct",
    "is_good",
    "verified",
)
"""Columns that tell good completions from bad ones, where all would be imitated."""
SAMPLED = ("completion_tokens", "old_logprobs", "loss_mask")
"""Columns of a completion's tokens, where its text would be trained."""


@dataclass(frozen=True)
class Demonstration:
    """What the model should write for a prompt."""

    prompt: Prompt
    completion: Completion


def make_demonstration(prompt: Prompt, completions: Sequence[Completion], _: object) -> Demonstration:
    """Put a prompt and the completion to imitate together: the best one where there are several."""
    return Demonstration(prompt, completions[0])


FORMS = Forms(
    [*single_answers(), *PAIR_FORMS.answers], make_demonstration, reserved=(*RESERVED, *GRADED, *SAMPLED)
)
"""Every form of a single completion, and of a pair."""
