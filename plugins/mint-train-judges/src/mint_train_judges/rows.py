"""Rows to train on, made of what a policy wrote and a judge scored."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from pydantic import Field, field_validator

from mint_train.plugin import Judged, JudgeError, Options, hookimpl, text_column

THRESHOLD = "threshold="
CHOICES = ("best-worst", "best-random", "all")

Row = Mapping[str, Any]
Scored = tuple[str, float]


class Pair:
    """A chosen and a rejected completion, with their scores."""

    class Options(Options):
        """Which completions become pairs."""

        take: str = Field(
            default="best-worst",
            description="best-worst; best-random: the best and any that is worse; all: every two that differ "
            "in score; threshold=T: the best and the worst if they differ by T at least.",
        )

        @field_validator("take")
        @classmethod
        def _known(cls, value: str) -> str:
            if value not in CHOICES and not is_threshold(value):
                raise ValueError(f"must be {', '.join(CHOICES)} or threshold=NUMBER")
            return value

    def __init__(self, options: Pair.Options) -> None:
        self.take = options.take
        self.lengths: list[tuple[int, int]] = []

    @hookimpl
    def rows(self, judged: Judged) -> list[Row]:
        """Make the pairs of one prompt; none where all scores are equal."""
        found = self.pairs(judged.usable(), judged.seed)
        self.lengths += [(len(better[0].split()), len(worse[0].split())) for better, worse in found]
        return [
            {
                **judged.prompt,
                "chosen": text_column(better[0]),
                "rejected": text_column(worse[0]),
                "chosen_score": better[1],
                "rejected_score": worse[1],
            }
            for better, worse in found
        ]

    @hookimpl
    def rows_note(self) -> str | None:
        """Say how long the two sides are on average."""
        if not self.lengths:
            return None
        chosen, rejected = (sum(side) / len(self.lengths) for side in zip(*self.lengths, strict=True))
        return f"Chosen completions have {chosen:.1f} words on average, rejected ones {rejected:.1f}."

    def pairs(self, usable: Sequence[Scored], seed: int) -> list[tuple[Scored, Scored]]:
        """Return the pairs among completions with their scores, the better one first."""
        ordered = sorted(usable, key=lambda one: -one[1])
        if not ordered or ordered[0][1] == ordered[-1][1]:
            return []
        best, worst = ordered[0], ordered[-1]
        if self.take == "all":
            return [(one, other) for one, other in combinations(ordered, 2) if one[1] > other[1]]
        if self.take == "best-random":
            worse = [one for one in ordered if one[1] < best[1]]
            return [(best, random.Random(seed).choice(worse))]  # noqa: S311 - a draw, not a secret
        least = float(self.take.removeprefix(THRESHOLD)) if self.take.startswith(THRESHOLD) else 0.0
        return [(best, worst)] if best[1] - worst[1] >= least else []


def is_threshold(value: str) -> bool:
    """Return whether a text is `threshold=NUMBER`."""
    try:
        return value.startswith(THRESHOLD) and float(value.removeprefix(THRESHOLD)) >= 0
    except ValueError:
        return False


class Rank:
    """All completions of a prompt that differ in score, the best first."""

    @hookimpl
    def rows(self, judged: Judged) -> list[Row]:
        """Make the ranking of one prompt; of completions with equal scores the first is taken."""
        by_score: dict[float, str] = {}
        for text, score in judged.usable():
            by_score.setdefault(score, text)
        if len(by_score) < 2:
            return []
        scores = sorted(by_score, reverse=True)
        completions = [text_column(by_score[score]) for score in scores]
        return [{**judged.prompt, "completions": completions, "scores": scores}]


class Rate:
    """Each completion with a thumb up or down, as KTO reads them."""

    class Options(Options):
        """What is good."""

        least: float | None = Field(
            default=None,
            description="The lowest good score; by default those above their prompt's mean are good.",
        )

    def __init__(self, options: Rate.Options) -> None:
        self.least = options.least
        self.up = self.down = 0

    @hookimpl
    def rows(self, judged: Judged) -> list[Row]:
        """Make a row of each completion; one that equals its prompt's mean is left out."""
        usable = judged.usable()
        if self.least is None and usable:
            mean = sum(score for _, score in usable) / len(usable)
            rated = [(text, score > mean) for text, score in usable if score != mean]
        else:
            rated = [(text, score >= (self.least or 0.0)) for text, score in usable]
        self.up += sum(good for _, good in rated)
        self.down += sum(not good for _, good in rated)
        return [{**judged.prompt, "completion": text_column(text), "label": good} for text, good in rated]

    @hookimpl
    def rows_note(self) -> str:
        """Say how many are good."""
        return f"{self.up:,} completions are good, {self.down:,} are not."


class Rollouts:
    """All completions of a prompt as tokens, with rewards and the logprobs that they were sampled with."""

    @hookimpl
    def rows(self, judged: Judged) -> list[Row]:
        """Make the row of one prompt, of the completions that have a score.

        Raises:
            JudgeError: the service gave no logprobs.
        """
        columns = (judged.scores, judged.tokens, judged.logprobs)
        scored = [one for one in zip(*columns, strict=True) if one[0] is not None and one[1]]
        if not scored:
            return []
        if not all(logprobs for _, _, logprobs in scored):
            raise JudgeError("the service gave no logprobs of what it sampled, which rollouts need")
        rewards, tokens, logprobs = (list(column) for column in zip(*scored, strict=True))
        return [{**judged.prompt, "completion_tokens": tokens, "rewards": rewards, "old_logprobs": logprobs}]
