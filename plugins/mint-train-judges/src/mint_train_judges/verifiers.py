"""Judges that need no model: an exact answer, a pattern, a length."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import Literal

from pydantic import Field, field_validator

from mint_train.plugin import Candidates, Options, RowError, hookimpl

BOXED = "\\boxed{"
MARKS = re.compile(r"####\s*(?P<gsm>.+)|answer\s*(?:is|:)\s*(?P<said>.+)", re.IGNORECASE)
"""How a final answer is announced: GSM8K's mark, or in words."""
AROUND = " \t\n.,:;!*_`$\"'"
"""What may stand around an answer without being a part of it."""


def compiled(pattern: str) -> str:
    """Return a pattern that can be compiled.

    Raises:
        ValueError: it cannot, with the reason.
    """
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"is not a regular expression: {error}") from error
    return pattern


class Exact:
    """1 where the final answer of a completion is the one of the row, otherwise 0."""

    class Options(Options):
        """Where the right answer stands, and how the completion's is found."""

        column: str = Field(default="answer", min_length=1, description="Column of the right answer.")
        pattern: str | None = Field(
            default=None,
            description="Regular expression whose first group is the answer; by default a \\boxed{...}, what "
            'follows "####" or "answer is", else the whole text.',
        )
        case: bool = Field(default=False, description="Whether upper and lower case differ.")

        _compiled = field_validator("pattern")(lambda value: value if value is None else compiled(value))

    def __init__(self, options: Exact.Options) -> None:
        self.options = options

    @hookimpl
    def score(self, batch: Sequence[Candidates]) -> list[list[float]]:
        """Compare each completion's final answer with the row's."""
        return [self._score(candidates) for candidates in batch]

    def _score(self, candidates: Candidates) -> list[float]:
        column = self.options.column
        right = candidates.row.get(column)
        if right is None or right == "":
            raise RowError(column, "is missing: the judge compares with it; --set column=NAME names another")
        expected = self._plain(final_answer(str(right)))
        return [float(self._plain(self._answer(text)) == expected) for text in candidates.completions]

    def _answer(self, completion: str) -> str:
        if self.options.pattern is None:
            return final_answer(completion)
        found = re.search(self.options.pattern, completion)
        return "" if found is None else (found[1] if found.re.groups else found[0]) or ""

    def _plain(self, answer: str) -> str:
        """Return an answer in the one way of writing it."""
        text = " ".join(answer.strip(AROUND).split())
        number = text.replace(",", "").removesuffix("%")
        try:
            return str(Decimal(number).normalize())
        except InvalidOperation:
            return text if self.options.case else text.lower()


def final_answer(text: str) -> str:
    """Return the answer that a text ends with: in a box, behind a mark, or the whole text."""
    if (boxed := last_boxed(text)) is not None:
        return boxed
    found = [line for line in map(MARKS.search, text.splitlines()) if line is not None]
    return (found[-1]["gsm"] or found[-1]["said"]) if found else text


def last_boxed(text: str) -> str | None:
    r"""Return what the last \boxed{...} holds, braces in it included; None without one that is closed."""
    start = text.rfind(BOXED)
    depth = 1
    for index in range(start + len(BOXED), len(text)) if start >= 0 else ():
        depth += {"{": 1, "}": -1}.get(text[index], 0)
        if depth == 0:
            return text[start + len(BOXED) : index]
    return None


class Regex:
    """1 where a pattern is found in a completion, otherwise 0."""

    class Options(Options):
        """The pattern and how it is applied."""

        pattern: str = Field(min_length=1, description="Regular expression to look for.")
        whole: bool = Field(default=False, description="Whether the whole completion must match.")
        case: bool = Field(default=True, description="Whether upper and lower case differ.")

        _compiled = field_validator("pattern")(compiled)

    def __init__(self, options: Regex.Options) -> None:
        flags = re.DOTALL if options.case else re.DOTALL | re.IGNORECASE
        pattern = re.compile(options.pattern, flags)
        self.find = pattern.fullmatch if options.whole else pattern.search

    @hookimpl
    def score(self, batch: Sequence[Candidates]) -> list[list[float]]:
        """Look for the pattern in each completion."""
        return [[float(bool(self.find(text))) for text in one.completions] for one in batch]


class Length:
    """How far a completion is from a length, or how short or long it is."""

    class Options(Options):
        """The length that is preferred."""

        prefer: Literal["short", "long", "near"] = Field(
            default="short", description="Which scores higher; near: as close as possible to the target."
        )
        target: int = Field(default=0, ge=0, description="The length that prefer=near asks for.")
        unit: Literal["words", "characters"] = Field(default="words", description="What is counted.")

    def __init__(self, options: Length.Options) -> None:
        self.options = options

    @hookimpl
    def score(self, batch: Sequence[Candidates]) -> list[list[float]]:
        """Score each completion by its length."""
        return [[self._score(text) for text in one.completions] for one in batch]

    def _score(self, text: str) -> float:
        length = len(text.split() if self.options.unit == "words" else text)
        if self.options.prefer == "near":
            return -float(abs(length - self.options.target))
        return float(length if self.options.prefer == "long" else -length)
