"""What a loss's docstring says of it: its formula, its paper, where its defaults are from, when to use it."""

from __future__ import annotations

import inspect
import re
from typing import NamedTuple

PART = re.compile(r"^(Formula|Paper|Defaults|Use): (.*(?:\n +.*)*)\n?", flags=re.MULTILINE)


class Description(NamedTuple):
    """A docstring, taken apart."""

    text: str
    """What precedes the first part: the first line and the paragraphs behind it."""
    parts: dict[str, str]
    """By name, each part in one line."""


def describe_loss(plugin: object) -> Description:
    """Take the docstring of a loss plugin apart; empty where it has none."""
    text = inspect.cleandoc(plugin.__doc__ or "")
    parts = {part: " ".join(words.split()) for part, words in PART.findall(text)}
    return Description(PART.sub("", text).strip(), parts)
