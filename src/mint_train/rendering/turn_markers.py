"""Turn markers that are ordinary text to the tokenizer, such as `[INST]`, looked for in the texts of rows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from mint_train.errors import Source, counted
from mint_train.rendering.special_tokens import special_names
from mint_train.rendering.template_probe import PROBED, TemplateProbe

if TYPE_CHECKING:
    from mint_train.rendering.options import Rendering
    from mint_train.rendering.special_tokens import GuardedTokenizer

RECIPE = [(f"{role}:", True) for role in ("User", "Assistant", "System")]
"""The markers of the recipe's form for a model without a chat template."""
THOUGHT = re.compile(r"</?think(?:ing)?>")
"""A part of what an answer may say, though a template writes it too."""


class TurnMarkers:
    """The markers of one rendering that a text can hold as the template writes them.

    A model reads such a text as further turns: no tokenizer can tell the two apart.
    """

    def __init__(self, tokenizer: GuardedTokenizer, rendering: Rendering) -> None:
        self._tokenizer = tokenizer
        self._rendering = rendering

    def check(self, texts: Iterable[str]) -> None:
        """Note the first marker in the texts of a row.

        Raises:
            SpecialTokenError: there is one, and `--special-tokens fail` refuses it.
        """
        if self._pattern is None:
            return
        for text in texts:
            # nearly no text has one, and this is several times faster than the pattern
            if not any(marker in text for marker, _ in self._markers):
                continue
            if found := self._pattern.search(text):
                self._tokenizer.note_marker(text, found[0])

    @cached_property
    def _pattern(self) -> re.Pattern[str] | None:
        """What finds a marker, or None where the rendering has none of ordinary text."""
        return re.compile("|".join(map(pattern_of, self._markers)), re.MULTILINE) if self._markers else None

    @cached_property
    def _markers(self) -> list[tuple[str, bool]]:
        """The markers, each with whether it stands at the start of a line."""
        if self._rendering.form == "raw":
            return []
        if not (self._rendering.template or self._tokenizer.chat_template):
            return RECIPE
        written = TemplateProbe(self._tokenizer, self._rendering).dialogue
        # what precedes the first text belongs to no turn: a first token, or words of the template's own
        pieces = re.split("|".join(PROBED), written)[1:]
        special = "|".join(map(re.escape, special_names(self._tokenizer))) or r"(?!)"
        found = {marker for piece in pieces for part in re.split(special, piece) for marker in lines_of(part)}
        return sorted(found)


def lines_of(part: str) -> Iterator[tuple[str, bool]]:
    """Yield the lines of a template that can mark a turn, each with whether a line starts there.

    A word alone, such as `user` behind a special token, marks nothing by itself.
    """
    lines = part.split("\n")
    for number, line in enumerate(lines):
        marker = THOUGHT.sub("", line).strip()
        if re.search(r"\w", marker) and re.search(r"[^\w\s]", marker):
            yield marker, number > 0 or not line.startswith(" ")


def pattern_of(marker: tuple[str, bool]) -> str:
    """Return the pattern of a marker: a word such as `User:` counts where the template has it."""
    text, starts_line = marker
    if not re.match(r"\w", text):
        return re.escape(text)
    return (r"^" if starts_line else r"\b") + re.escape(text)


def markers_note(found: Sequence[tuple[Source, str]]) -> list[str]:
    """Return a line for the user about the rows whose text holds a marker, or none."""
    if not found:
        return []
    source, marker = found[0]
    return [
        f"{counted(len(found), 'row')} with a turn marker in a text, the first {source} ({marker}): it is "
        "ordinary text to this tokenizer, so the model reads further turns; --special-tokens fail refuses "
        "such rows."
    ]
