"""The template form: whole conversations by the chat template, the completion's own turns trained."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any, NamedTuple

from mint_train.errors import RowError
from mint_train.rendering.options import Rendering
from mint_train.rendering.special_tokens import GuardedTokenizer, Render, special_ids
from mint_train.rendering.template_probe import TemplateProbe
from mint_train.rows.conversations import Conversation
from mint_train.rows.messages import ASSISTANT, ChatMessage
from mint_train.rows.tool_calls import tool_name

SHOWN = 60
"""Characters that are shown on either side of where two renderings part."""
UNLIKE = "\N{WHITE SQUARE}7f"
"""A text that no answer begins with."""


class Rendered(NamedTuple):
    """A prompt with one completion, as tokens."""

    tokens: list[int]
    """Up to and with the token that ends the last turn."""
    spans: list[tuple[int, int]]
    """The trained tokens: where each turn begins behind its header, and where it ends."""


@dataclass(frozen=True)
class Turns:
    """One conversation as the template writes it, with the texts that show where its turns are."""

    name: str
    """What the row calls its completion."""
    prompt: Conversation
    messages: list[ChatMessage]
    """Those of the prompt, and of the completion."""
    whole: str
    """All of it."""
    trained: list[int]
    """The indexes of the messages that are trained."""
    openings: list[str]
    """Per trained message, what the model reads before it writes it."""
    until: list[str]
    """Per trained message but the last, the conversation up to and with it."""


@dataclass(frozen=True)
class TemplateRenderer:
    """Renders conversations by a chat template, the model's own or another one."""

    tokenizer: GuardedTokenizer
    rendering: Rendering

    @cached_property
    def probe(self) -> TemplateProbe:
        """What the template writes around a turn."""
        return TemplateProbe(self.tokenizer, self.rendering)

    @cached_property
    def _special(self) -> frozenset[int]:
        """The ids of the special tokens."""
        return special_ids(self.tokenizer)

    def prompt_tokens(self, prompt: Conversation) -> list[int]:
        """Return the tokens of a prompt up to where the assistant's answer begins.

        Raises:
            RowError: the chat template refuses it.
        """

        def opening(render: Render) -> str:
            render = self._given(prompt, render)
            return render(prompt.messages, add_generation_prompt=True) + prompt.opening

        return self.tokenizer.encode_rendered(self.tokenizer.once(parts_of(prompt), opening))

    def asked(
        self, prompt: Conversation, completions: Sequence[Sequence[ChatMessage]], names: Sequence[str]
    ) -> list[Turns]:
        """Render every text of a prompt with its completions.

        Args:
            prompt: the messages before each completion.
            completions: messages that end with the assistant's.
            names: what the row calls the completions.

        Raises:
            RowError: the template refuses one, or would drop its reasoning.
        """

        def turns(render: Render) -> list[Turns]:
            render = self._given(prompt, render)

            @cache
            def opening() -> str:
                return render(prompt.messages, add_generation_prompt=True) + prompt.opening

            return [
                self._asked(prompt, completion, name, render, opening)
                for completion, name in zip(completions, names, strict=True)
            ]

        return self.tokenizer.once((*parts_of(prompt), completions, names), turns)

    def _asked(
        self,
        prompt: Conversation,
        completion: Sequence[ChatMessage],
        name: str,
        render: Render,
        opening: Callable[[], str],
    ) -> Turns:
        """Render every text of a prompt with one completion; `opening` gives that before its first turn."""
        answer = [self._with_reasoning(message, name) for message in completion]
        if prompt.opening:
            answer[0] = {**answer[0], "content": prompt.opening + (answer[0]["content"] or "")}
        messages = [*prompt.messages, *answer]
        first = len(prompt.messages)
        trained = [index for index in range(first, len(messages)) if messages[index]["role"] == ASSISTANT]
        if self.rendering.turns == "last":
            trained = trained[-1:]
        return Turns(
            name,
            prompt,
            messages,
            render(messages),
            trained,
            openings=[
                opening() if index == first else render(messages[:index], add_generation_prompt=True)
                for index in trained
            ],
            until=[render(messages[: index + 1]) for index in trained[:-1]],
        )

    def note(self, asked: Iterable[Turns]) -> None:
        """Ask for the tokens of every text and look at none: so those of many rows are made in one call."""
        for turns in asked:
            for text in (turns.whole, *turns.openings, *turns.until):
                self.tokenizer.encode_rendered(text)

    def placed(self, turns: Turns) -> Rendered:
        """Find the trained turns of a conversation in its tokens.

        Raises:
            RowError: the template would drop a part of it, or the prompt's own rendering is not the beginning
                of the whole.
        """
        tokens = self.tokenizer.encode_rendered(turns.whole)
        self._refuse_dropped(turns)
        starts = [
            self._start(turns, tokens, index, opening)
            for index, opening in zip(turns.trained, turns.openings, strict=True)
        ]
        ends = [
            self._end_within(turns, tokens, index, start, text)
            for index, start, text in zip(turns.trained, starts, turns.until, strict=False)
        ]
        ends.append(self._end(tokens, starts[-1], turns.name))
        return Rendered(tokens[: ends[-1]], list(zip(starts, ends, strict=True)))

    def _given(self, prompt: Conversation, render: Render) -> Render:
        """Return a function that renders messages with the tools and the arguments of a prompt."""
        arguments = self.rendering.call(prompt.template_arguments, self.tokenizer)
        return partial(render, tools=prompt.tools or None, **arguments)

    def _with_reasoning(self, message: ChatMessage, name: str) -> ChatMessage:
        """Return a message that the template writes with its reasoning.

        A template that opens `<think>` in its prompt and knows no `reasoning_content` gets it in the text.

        Raises:
            RowError: it would drop the reasoning.
        """
        if "reasoning_content" not in message or self.probe.writes_reasoning:
            return message
        if not self.probe.opens_thinking:
            problem = (
                "holds reasoning_content, which this chat template does not write; take it out of the row"
            )
            raise RowError(name, f"{problem}, or give a template that does with --chat-template FILE")
        thought, text = message["reasoning_content"].strip("\n"), message["content"] or ""
        rest = {key: value for key, value in message.items() if key != "reasoning_content"}
        return rest | {"content": f"<think>\n{thought}\n</think>\n\n{text}"}

    def _refuse_dropped(self, turns: Turns) -> None:
        """Refuse a conversation of which the template leaves something out.

        Raises:
            RowError: naming the tool, the call or the message.
        """
        advice = "give a template that does with --chat-template FILE"
        whole = self.tokenizer.shown(turns.whole)
        for tool in turns.prompt.tools:
            if not written(tool_name(tool), whole):
                problem = f'the tool "{tool_name(tool)}" is not written by this chat template; {advice}'
                raise RowError("tools", f"{problem}, or leave the tools out with --columns tools=")
        for index, message in enumerate(turns.messages):
            for call in message.get("tool_calls", ()):
                if not written(call["function"]["name"], whole):
                    problem = f'calls "{call["function"]["name"]}", which this chat template does not write'
                    raise RowError(turns.name, f"message {index} {problem}; {advice}")
            said = message["content"]
            if said and message["role"] != ASSISTANT and not written(said.strip(), whole):
                problem = f"of the {message['role']} is not written by this chat template as it stands"
                raise RowError(turns.name, f"message {index} {problem}; {advice}")
        for index in turns.trained:
            thought = reasoning_of(turns.messages[index])
            if not thought or thought in whole:
                continue
            problem = f"the reasoning of message {index} is dropped by this chat template"
            if index < len(turns.messages) - 1:
                problem += ", as other turns follow; --train-turns last trains the last"
                raise RowError(turns.name, problem)
            tail = whole[-2 * SHOWN :]
            raise RowError(turns.name, f"{problem}: of {thought[:SHOWN]!r} it writes {tail!r}; {advice}")

    def _start(self, turns: Turns, tokens: list[int], index: int, opening: str) -> int:
        """Return where the tokens of a turn begin behind its header.

        Raises:
            RowError: what the model reads before it is not the beginning of the whole.
        """
        before = self.tokenizer.encode_rendered(opening)
        if tokens[: len(before)] == before:
            return len(before)
        later = index > len(turns.prompt.messages)
        if later and (found := self._behind_header(turns, tokens, index)) is not None:
            return found
        one, other = parting(self.tokenizer.shown(opening), self.tokenizer.shown(turns.whole))
        raise RowError(
            turns.name,
            f"the chat template's generation prompt is not how it begins the answer: it asks {one!r} and "
            f"writes {other!r}",
        )

    def _behind_header(self, turns: Turns, tokens: list[int], index: int) -> int | None:
        """Find the beginning of a later turn whose own prompt is rendered in another way.

        As where a template drops the thinking of earlier turns. None where the tokens do not allow it.
        """
        changed = list(turns.messages)
        changed[index] = {**changed[index], "content": UNLIKE + (changed[index]["content"] or "")}
        other = self._given(turns.prompt, self.tokenizer.render)(changed)
        header = other[: other.find(UNLIKE)]
        whole = self.tokenizer.shown(turns.whole)
        if UNLIKE not in other or not whole.startswith(self.tokenizer.shown(header)):
            return None
        before = self.tokenizer.encode_rendered(header)
        return len(before) if tokens[: len(before)] == before else None

    def _end(self, tokens: Sequence[int], start: int, name: str) -> int:
        """Return where the last turn ends: behind the token that ends it.

        Raises:
            RowError: the template writes no special token behind it.
        """
        for wanted in ({self.probe.end_token}, self._special):
            for index in range(len(tokens) - 1, start - 1, -1):
                if tokens[index] in wanted:
                    return index + 1
        raise RowError(
            name,
            "is ended by no special token in this chat template, so the trained model would not stop; give "
            "another one with --chat-template FILE",
        )

    def _end_within(self, turns: Turns, tokens: list[int], index: int, start: int, text: str) -> int:
        """Return where a turn ends that others follow.

        Args:
            turns: the conversation.
            tokens: its tokens.
            index: the turn's message.
            start: where its tokens begin.
            text: the conversation up to and with this turn, as if it were the last.

        Raises:
            RowError: the turn is not found in the whole.
        """
        until = self.tokenizer.encode_rendered(text)
        if until[:start] == tokens[:start]:
            end = self._end(until, start, turns.name)
            shared = next((n for n in range(start, end) if n >= len(tokens) or tokens[n] != until[n]), end)
            # some templates end the last turn with another token than the turns before
            if shared == end or (shared == end - 1 and tokens[shared] in self._special):
                return min(shared, end - 1) + 1
        ending = until[self._end(until, 0, turns.name) - 1]
        for position in range(start, len(tokens)):
            if tokens[position] == ending:
                return position + 1
        raise RowError(turns.name, f"the end of message {index} is not found in the whole conversation")


def parts_of(prompt: Conversation) -> tuple[Any, ...]:
    """Return all that decides how a prompt is rendered."""
    return prompt.messages, prompt.tools, dict(prompt.template_arguments), prompt.opening


def written(text: object, whole: str) -> bool:
    """Return whether a text stands in a rendering, as it is or as JSON writes it."""
    words = str(text)
    return (
        words in whole
        or json.dumps(words, ensure_ascii=False)[1:-1] in whole
        or json.dumps(words)[1:-1] in whole
    )


def reasoning_of(message: ChatMessage) -> str:
    """Return the reasoning of a turn, whether it has a field of its own or stands in the text."""
    if "reasoning_content" in message:
        return str(message["reasoning_content"]).strip()
    before, closed, _ = (message["content"] or "").partition("</think>")
    return before.partition("<think>")[2].strip() if closed else ""


def parting(one: str, other: str) -> tuple[str, str]:
    """Return what two texts have around the position where they part."""
    lengths = range(min(len(one), len(other)) + 1)
    shared = bisect_left(lengths, True, key=lambda length: one[:length] != other[:length]) - 1
    begin = max(0, shared - SHOWN // 2)
    return one[begin : shared + SHOWN], other[begin : shared + SHOWN]


def weights_of(rendered: Rendered) -> list[float]:
    """Return 1.0 for each trained token and 0.0 for the others."""
    weights = [0.0] * len(rendered.tokens)
    for start, end in rendered.spans:
        weights[start:end] = [1.0] * (end - start)
    return weights
