"""What a chat template writes around a turn, found out by rendering conversations of our own."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from mint_train.errors import RowError
from mint_train.rendering.special_tokens import special_ids

if TYPE_CHECKING:
    from mint_train.rendering.options import Rendering
    from mint_train.rendering.special_tokens import GuardedTokenizer

ASKED, ANSWERED, THOUGHT = "7fQuestion7f", "7fAnswer7f", "7fThought7f"
"""Texts that no template writes of its own."""
PROBED = ("7fSystem7f", ASKED, ANSWERED, "7fAgain7f")
"""The texts of a dialogue, in its order."""


class TemplateProbe:
    """The parts of a chat template that decide what is trained of a turn."""

    def __init__(self, tokenizer: GuardedTokenizer, rendering: Rendering) -> None:
        self._tokenizer = tokenizer
        self._rendering = rendering

    @cached_property
    def tail(self) -> str:
        """What the template writes behind the text of a last turn; nothing where it refuses the probe."""
        return self._render({"content": ANSWERED}).rpartition(ANSWERED)[2]

    @cached_property
    def end_token(self) -> int | None:
        """The token that ends a last turn: the first special one behind its text."""
        special = special_ids(self._tokenizer)
        tokens = self._tokenizer.encode_rendered(self.tail)
        return next((token for token in tokens if token in special), None)

    @cached_property
    def writes_reasoning(self) -> bool:
        """Whether the template writes the `reasoning_content` of a last turn."""
        return THOUGHT in self._render({"content": ANSWERED, "reasoning_content": THOUGHT})

    @cached_property
    def opens_thinking(self) -> bool:
        """Whether the generation prompt opens `<think>`, which the assistant's text then goes on with."""
        prompt = self._render(None).rpartition(ASKED)[2]
        return "<think>" in prompt.rpartition("</think>")[2]

    @cached_property
    def dialogue(self) -> str:
        """What the template writes of a short dialogue, with a system message where it takes one."""
        roles = ("system", "user", "assistant", "user")
        messages = [{"role": role, "content": text} for role, text in zip(roles, PROBED, strict=True)]
        return self._written(messages, opened=True) or self._written(messages[1:], opened=True)

    @cached_property
    def writes_system(self) -> bool:
        """Whether the template writes a system message that a conversation begins with."""
        return PROBED[0] in self.dialogue

    def _render(self, answer: dict[str, Any] | None) -> str:
        """Render a question with an answer, or with the generation prompt."""
        messages: list[dict[str, Any]] = [{"role": "user", "content": ASKED}]
        if answer is not None:
            messages.append({"role": "assistant", **answer})
        return self._written(messages, opened=answer is None)

    def _written(self, messages: list[dict[str, Any]], *, opened: bool) -> str:
        """Render messages of our own; nothing where the template refuses them."""
        try:
            return self._tokenizer.render(
                messages, add_generation_prompt=opened, **self._rendering.call({}, self._tokenizer)
            )
        except RowError:
            return ""
