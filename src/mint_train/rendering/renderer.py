"""The renderer: turns a prompt and its completions into datums, as a loss's `flatten` hook asks for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

from mint_train.batches.datums import build_datum, build_datums, build_weighted_datum
from mint_train.errors import DoesNotFit, OptionError, RowError
from mint_train.rendering.offsets import text_offsets
from mint_train.rendering.options import Rendering
from mint_train.rendering.raw import raw_completion_tokens, raw_prompt_tokens
from mint_train.rendering.recipe import build_completion_tokens, recipe_prompt_tokens
from mint_train.rendering.special_tokens import GuardedTokenizer
from mint_train.rendering.text_only import completion_text, text_messages
from mint_train.rendering.turn_markers import TurnMarkers
from mint_train.rendering.turns import TemplateRenderer, weights_of, written
from mint_train.rows.conversations import (
    Completion,
    Conversation,
    Prompt,
    as_conversation,
    as_messages,
    texts_of,
)

if TYPE_CHECKING:
    from mint_train.rows.messages import ChatMessage
    from mint_train.sdk import Datum
    from mint_train.settings.model import Settings

RenderedPrompt: TypeAlias = Prompt | Sequence[int]
"""A prompt: a user's text, messages, a conversation, or token ids, which are taken as they are."""
RenderedCompletion: TypeAlias = Completion | Sequence[int]
"""A completion: the assistant's text, messages, or token ids, which are taken as they are."""
CLOSER = "the completion"
SYSTEM_ROLES = ("system", "developer")
MADE_UP = build_datum([0], [1, 2], None)
"""What `flatten` gets while it is called to note the texts that it asks for, which have no tokens yet."""


@dataclass(frozen=True)
class Renderer:
    """What `flatten` builds datums with: the run's tokenizer, its rendering and its `--max-length`."""

    tokenizer: Any
    """The tokenizer of the model that is trained, a `PreTrainedTokenizerBase` or one that behaves alike."""
    max_length: int | None = None
    """The most tokens, prompt and completion together, that a datum may have; None for no limit."""
    rendering: Rendering = field(default_factory=Rendering)
    """The form: the recipe's, the chat template's, or raw."""

    @classmethod
    def of(cls, settings: Settings, tokenizer: Any, max_length: int | None = None) -> Renderer:
        """Return what renders as a run with these settings does; texts of any length unless one is given.

        Raises:
            OptionError: the chat template is missing or has a syntax error.
        """
        guarded = GuardedTokenizer(tokenizer, settings.special_tokens)
        return cls(guarded, max_length, Rendering.of(settings))

    def __post_init__(self) -> None:
        if self.rendering.form != "template" or self.rendering.template or self.tokenizer.chat_template:
            return
        raise OptionError(
            "--render template: this model's tokenizer has no chat template; give one with --chat-template "
            "FILE, or take --render recipe or raw"
        )

    @cached_property
    def _templates(self) -> TemplateRenderer:
        """What renders whole conversations."""
        return TemplateRenderer(self._guarded, self.rendering)

    @cached_property
    def _markers(self) -> TurnMarkers:
        """What looks for turn markers in the texts of a row."""
        return TurnMarkers(self._guarded, self.rendering)

    @cached_property
    def _guarded(self) -> GuardedTokenizer:
        """The tokenizer, which tells special tokens of texts from the template's own."""
        own = self.tokenizer
        return own if isinstance(own, GuardedTokenizer) else GuardedTokenizer(own, "allow")

    @property
    def _notes(self) -> bool:
        """Whether texts are noted alone, to be encoded together."""
        return getattr(self.tokenizer, "notes", False) is True

    def _check_markers(self, value: Any) -> None:
        """Look for turn markers in the texts of a value, unless they are noted alone.

        Raises:
            SpecialTokenError: there is one, and `--special-tokens fail` refuses it.
        """
        if not self._notes:
            self._markers.check(texts_of(value))

    def prompt_tokens(self, prompt: RenderedPrompt) -> list[int]:
        """Return the token ids of a prompt, up to where the assistant's answer begins.

        Raises:
            RowError: the prompt holds what this form cannot render, or the chat template refuses it.
        """
        if are_tokens(prompt):
            return list(prompt)  # type: ignore[arg-type]
        given: Prompt = prompt  # type: ignore[assignment]
        if self.rendering.form == "raw":
            return raw_prompt_tokens(given, self.tokenizer)
        conversation = as_conversation(given)
        self._check_markers(conversation)
        if self.rendering.form == "template":
            return self._templates.prompt_tokens(conversation)
        return self._recipe_prompt(conversation)

    def _recipe_prompt(self, conversation: Conversation) -> list[int]:
        """Render a prompt as MinT's recipe does."""
        messages = text_messages(conversation)
        arguments = self.rendering.call(conversation.template_arguments, self.tokenizer)
        systems = [index for index, message in enumerate(messages) if message["role"] in SYSTEM_ROLES]
        if systems:
            self._refuse_dropped(messages, systems, arguments)
        tokens = recipe_prompt_tokens(messages, self.tokenizer, arguments)
        if not conversation.opening:
            return tokens
        return tokens + list(self.tokenizer.encode(f" {conversation.opening}", add_special_tokens=False))

    def _refuse_dropped(
        self, messages: list[ChatMessage], systems: Sequence[int], arguments: Mapping[str, Any]
    ) -> None:
        """Refuse system messages that the chat template leaves out; the template form checks all messages.

        Raises:
            RowError: naming the first.
        """
        templated = self.rendering.template or self.tokenizer.chat_template
        if not templated or (systems == [0] and self._templates.probe.writes_system):
            return
        asked = {**arguments, "add_generation_prompt": True}
        rendered = self._guarded.once((messages, asked), lambda render: render(messages, **asked))
        for index in systems:
            if not written(str(messages[index]["content"]).strip(), self._guarded.shown(rendered)):
                problem = (
                    f"message {index}, of the {messages[index]['role']}, is left out by this chat template"
                )
                raise RowError(
                    "prompt", f"{problem}; give a template that writes it with --chat-template FILE"
                )

    def completion_tokens(self, completion: RenderedCompletion, name: str = CLOSER) -> list[int]:
        """Return the token ids of a completion, with the token that ends it.

        In template form a completion's tokens hang on its prompt, so only `datum` and `datums` give them.

        Raises:
            RowError: the completion holds what this form cannot render.
        """
        if are_tokens(completion):
            return list(completion)  # type: ignore[arg-type]
        given: Completion = completion  # type: ignore[assignment]
        if self.rendering.form == "raw":
            return raw_completion_tokens(given, self.tokenizer, name)
        text = completion_text(given, name)
        self._check_markers(text)
        return build_completion_tokens(text, self.tokenizer)

    def token_offsets(self, completion: str, name: str = CLOSER) -> list[tuple[int, int]]:
        """Return the characters of a completion that each of its tokens covers, for spans of a text.

        Args:
            completion: a text.
            name: what a message calls it.

        Returns:
            Per token of `completion_tokens` its first character, from 0, and the one behind its last. The
            token that ends the completion covers nothing, and stands behind the text.

        Raises:
            RowError: the tokenizer does not say where its tokens lie, or the form is that of a chat
                template, which sets tokens of its own.
        """
        if self.rendering.form == "template":
            raise RowError(name, "cannot be aligned with its tokens in template form; take --render recipe")
        return text_offsets(completion, self.completion_tokens(completion, name), self.tokenizer, name)

    def datum(self, prompt: RenderedPrompt, completion: RenderedCompletion) -> Datum:
        """Build the datum that trains a completion and not its prompt.

        Raises:
            DoesNotFit: the prompt alone fills `max_length`.
            RowError: the row holds what this form cannot render.
        """
        return self.datums(prompt, [completion], [CLOSER])[0]

    def datums(
        self, prompt: RenderedPrompt, completions: Sequence[RenderedCompletion], names: Sequence[str] = ()
    ) -> list[Datum]:
        """Build the datums of several completions of one prompt, in their order.

        Args:
            prompt: the prompt that they share.
            completions: each is cut at its end to fit `max_length`.
            names: what a message calls the completions, in their order; those without are counted from 0.

        Raises:
            DoesNotFit: the prompt alone fills `max_length`, or two completions are equal once they are cut.
            RowError: the row holds what this form cannot render, or two completions render alike.
        """
        unnamed = [f"completion {index}" for index in range(len(names), len(completions))]
        names = [*names, *unnamed][: len(completions)]
        if (
            self.rendering.form == "template"
            and not are_tokens(prompt)
            and not any(map(are_tokens, completions))
        ):
            conversation = as_conversation(prompt)  # type: ignore[arg-type]
            return self._by_template(conversation, [as_messages(one) for one in completions], names)  # type: ignore[arg-type]
        tokens = self.prompt_tokens(prompt)
        answers = [
            self.completion_tokens(completion, name)
            for completion, name in zip(completions, names, strict=True)
        ]
        if self._notes:
            return [MADE_UP] * len(completions)
        self._refuse_alike(len(tokens), answers, names)
        return build_datums(tokens, answers, self.max_length)

    def _by_template(
        self, prompt: Conversation, completions: Sequence[Any], names: Sequence[str]
    ) -> list[Datum]:
        """Build datums of whole conversations."""
        self._check_markers([prompt, *completions])
        asked = self._templates.asked(prompt, completions, names)
        if self._notes:
            self._templates.note(asked)
            return [MADE_UP] * len(completions)
        rendered = [self._templates.placed(one) for one in asked]
        start = rendered[0].spans[0][0]
        for one, name in zip(rendered, names, strict=True):
            if one.tokens[: one.spans[0][0]] != rendered[0].tokens[:start]:
                problem = "its trained turn follows other turns than that of"
                raise RowError(name, f"{problem} {names[0]}; train all turns, with --train-turns all")
        answers = [one.tokens[start:] for one in rendered]
        self._refuse_alike(start, answers, names)
        if all(one.spans[0][1] == len(one.tokens) for one in rendered):
            return build_datums(rendered[0].tokens[:start], answers, self.max_length)
        return [build_weighted_datum(one.tokens, weights_of(one), self.max_length) for one in rendered]

    def _refuse_alike(self, prompt: int, answers: Sequence[list[int]], names: Sequence[str]) -> None:
        """Refuse completions that differ, but not in what is left of them."""
        if self.max_length is not None:
            refuse_equal_once_cut(answers, self.max_length - prompt, names)


def are_tokens(value: Any) -> bool:
    """Return whether a prompt or a completion is a list of token ids rather than text or messages."""
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and bool(value)
        and isinstance(value[0], int)
    )


def refuse_equal_once_cut(answers: Sequence[list[int]], room: int, names: Sequence[str]) -> None:
    """Refuse completions that differ, but not in the tokens that `room` leaves of them.

    Raises:
        DoesNotFit: naming the two.
    """
    # a prompt that is too long alone is refused where datums are built, and what is not cut parts somewhere
    if room <= 0 or room >= max(map(len, answers), default=0):
        return
    first: dict[tuple[int, ...], int] = {}
    for index, answer in enumerate(answers):
        other = first.setdefault(tuple(answer[:room]), index)
        if other != index and answers[other] != answer:
            one, two = (names[n] for n in (other, index))
            raise DoesNotFit(
                f"{one} and {two} begin with the same {room} tokens, all that --max-length leaves of them"
            )
