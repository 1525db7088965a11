"""What a judging model is asked, and how its answer is read: never guessed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from mint_train.plugin import PluginError

FIELD = re.compile(r"\{(\w+)\}")
VERDICT = re.compile(r"\W*\[\[\s*(?P<said>[^\[\]]+?)\s*\]\]\W*")
"""The last line of an answer: a verdict in double brackets, and no word beside it."""
OUTCOMES = {"A": 1.0, "B": 0.0, "C": 0.5}
"""What the first of two completions gets by a verdict."""


def read_template(file: str | None, bundled: str, fields: set[str]) -> str:
    """Read the text that a model is asked with.

    Args:
        file: the user's own template, or None.
        bundled: the name of the one that is taken without it.
        fields: the fields in braces that it must have.

    Raises:
        PluginError: it cannot be read, or lacks a field.
    """
    if file is None:
        return files(__package__).joinpath("templates", bundled).read_text(encoding="utf-8")
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise PluginError(f"--set template={file}: {getattr(error, 'strerror', None) or error}") from error
    for field in sorted(fields - set(FIELD.findall(text))):
        raise PluginError(f"--set template={file}: it does not say where {{{field}}} goes")
    return text


def fill(template: str, values: Mapping[str, str]) -> str:
    """Fill the fields of a template, all in one pass: braces in a completion stay as they are."""
    return FIELD.sub(lambda found: values.get(found[1], found[0]), template)


def said_last(answer: str) -> str | None:
    """Return the verdict that stands alone on the last line of an answer, or None."""
    lines = answer.strip().splitlines()
    found = VERDICT.fullmatch(lines[-1]) if lines else None
    return found["said"] if found else None


def read_outcome(answer: str) -> float | None:
    """Return 1.0 where the answer prefers the first completion, 0.0 the second, 0.5 neither; else None."""
    said = said_last(answer)
    return None if said is None else OUTCOMES.get(said.upper())


def read_grade(answer: str, low: float, high: float) -> float | None:
    """Return the grade that an answer gives, or None where it gives none within the bounds."""
    said = said_last(answer)
    try:
        grade = float(said or "")
    except ValueError:
        return None
    return grade if low <= grade <= high else None
