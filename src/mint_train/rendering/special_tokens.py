"""Text that holds a special token: told apart from the chat template's own, and split, allowed or refused."""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast
from uuid import uuid4

from tokenizers import Tokenizer
from transformers import BatchEncoding

from mint_train.errors import RowError, Source
from mint_train.rendering.cutting import Cutter
from mint_train.rendering.encoding import BatchTokenizer, Chunk, can_batch, frozen
from mint_train.rendering.refusals import template_refusals

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from mint_train.rows.row import Example

Made = TypeVar("Made")
Render = Callable[..., str]
"""Returns what a chat template writes of messages, given arguments of `apply_chat_template`."""
SpecialTokens = Literal["allow", "split", "fail"]
RENDERINGS = 8
"""Rendered conversations that are remembered: a plugin encodes what it has just rendered."""
SHOWN = 20
"""Characters of a text that are shown on either side of the token."""


TAKEN = {"split": "as plain text", "allow": "as that token"}
"""What becomes of a special token in a text that is trained on."""


class SpecialTokenError(RowError):
    """A row whose text holds a special token."""

    @property
    def message(self) -> str:
        """What is wrong; the excerpt finds the field, which the tokenizer cannot know."""
        return f"its {self.field} {self.problem}"


def special_token_error(text: str, token: str, advice: str, kind: str = "special token") -> SpecialTokenError:
    """Return the error of a text that holds a special token or a marker, with an excerpt around it."""
    start = text.find(token)
    around = text[max(0, start - SHOWN) : start + len(token) + SHOWN]
    return SpecialTokenError("text", f"{around!r} holds the {kind} {token}; {advice}")


class GuardedTokenizer:
    """A tokenizer that tells the special tokens of texts from those that the chat template adds.

    With "split" a text's characters are always ordinary tokens, as if the tokenizer had no special token of
    that name; with "fail" such a text is a `RowError`; with "allow" it stands for the token. Texts without
    special tokens are encoded as the tokenizer itself does, many in one call where it can.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, special_tokens: SpecialTokens) -> None:
        self._tokenizer = tokenizer
        self._encoder = BatchTokenizer(tokenizer) if can_batch(tokenizer) else tokenizer
        self._policy = special_tokens
        self._names = special_names(tokenizer)
        self._pattern = re.compile("|".join(map(re.escape, self._names)) or r"(?!)")
        self._pattern_of_bytes = re.compile(self._pattern.pattern.encode())
        # drawn, so that no text can hold what stands for a token
        self._nonce = nonce = uuid4().hex
        self._placeholders = {name: f"<{nonce}.{n}>" for n, name in enumerate(self._names)}
        self._originals = {mark: name for name, mark in self._placeholders.items()}
        self._aliases = {name: f"<{nonce}:{n}>" for n, name in enumerate(self._names)}
        self._renderings: deque[tuple[str, str]] = deque(maxlen=RENDERINGS)
        self._source: Source | None = None
        self.met: dict[Source, str] = {}
        """Rows whose text holds a special token, with the first one."""
        self.markers: dict[Source, str] = {}
        """Rows whose text holds a turn marker of ordinary text, with the first one."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def __len__(self) -> int:
        return len(self._tokenizer)

    @property
    def notes(self) -> bool:
        """Whether texts are noted alone, and the tokens that come back are made up."""
        return isinstance(self._encoder, BatchTokenizer) and self._encoder.notes

    @property
    def chat_template(self) -> Any:
        """The tokenizer's own; named here, as each row asks for it."""
        return self._tokenizer.chat_template

    @cached_property
    def eos_token_id(self) -> int | None:
        """The tokenizer's own; kept, as each completion asks for it and transformers is slow to say."""
        return cast("int | None", self._tokenizer.eos_token_id)

    def encoded(self, chunks: Iterable[Chunk], flatten: Callable[[Any], object]) -> Iterator[Chunk]:
        """Yield each chunk once its texts are encoded, where the tokenizer can do that ahead."""

        def note(example: Example) -> None:
            self._source = None
            flatten(example.value)

        if isinstance(self._encoder, BatchTokenizer):
            return self._encoder.encoded(chunks, note)
        return iter(chunks)

    def reading(self, examples: Iterable[Example]) -> Iterator[Example]:
        """Yield the examples, and note what is met in the texts of each under its source."""
        for example in examples:
            self._source = example.source
            yield example

    def encode(self, text: str, add_special_tokens: bool = True, **more: Any) -> list[int]:
        """Encode a text, and what the tokenizer puts around it.

        Raises:
            SpecialTokenError: with "fail", or where this tokenizer cannot split.
        """
        marked, met = self._mark_taken(text)
        if not met or self._allowed(*met[0]):
            return list(self._encoder.encode(text, add_special_tokens=add_special_tokens, **more))
        return self._encode_marked(marked, add_special_tokens)

    def __call__(self, text: Any, add_special_tokens: bool = True, **more: Any) -> Any:
        """Encode a text as `encode` does, anything else as the tokenizer itself does."""
        if not isinstance(text, str) or not self._mark(text)[1]:
            return self._tokenizer(text, add_special_tokens=add_special_tokens, **more)
        return as_encoding(self.encode(text, add_special_tokens=add_special_tokens))

    def apply_chat_template(
        self, conversation: Any, *, tokenize: bool = True, return_dict: bool = True, **more: Any
    ) -> Any:
        """Render messages, and encode the text; only the template's own special tokens are special.

        Raises:
            SpecialTokenError: with "fail", or where this tokenizer cannot split.
        """
        marked, met = self._mark_taken(conversation)
        if not met or self._allowed(*met[0]):
            rendered = self._encoder.apply_chat_template(
                conversation, tokenize=tokenize, return_dict=return_dict, **more
            )
            if rendered and isinstance(rendered, str):
                self._renderings.append((rendered, rendered))
            return rendered
        template = str(self._encoder.apply_chat_template(marked, tokenize=False, **more))
        if not tokenize:
            text = replace(template, self._originals)
            self._renderings.append((text, template))
            return text
        tokens = self._encode_marked(template, add_special_tokens=False)
        return as_encoding(tokens) if return_dict else tokens

    def render(self, messages: list[Any], **arguments: Any) -> str:
        """Return what the chat template writes of messages, for `encode_rendered` alone.

        Special tokens of their texts stand under other names in it, unless they are allowed.

        Raises:
            RowError: the chat template refuses the messages.
            SpecialTokenError: with "fail", or where this tokenizer cannot split.
        """
        marked, met = self._mark(messages)
        if met and self._allowed(*met[0]):
            marked = messages
        return self._render_plain(marked, **arguments)

    def _render_plain(self, messages: list[Any], **arguments: Any) -> str:
        """Return what the chat template writes of messages whose texts are left as they are."""
        with template_refusals():
            if isinstance(self._encoder, BatchTokenizer):
                return self._encoder.templates.render(messages, **arguments)
            return str(self._tokenizer.apply_chat_template(messages, tokenize=False, **arguments))

    def once(self, asked: Any, make: Callable[[Render], Made]) -> Made:
        """Return what is made of rendered messages: once, though a row is flattened twice.

        Args:
            asked: all that decides it, as JSON has it.
            make: gets `render`, or what does the same where no text holds a special token. Where one may, it
                is called both times, as what is met is noted for the row that is being read.
        """
        key = frozen(asked)
        known = self._encoder.rendered if isinstance(self._encoder, BatchTokenizer) else {}
        if key in known:
            return cast("Made", known[key])
        # the bytes of a key hold those of each text
        if not isinstance(key, bytes) or self._pattern_of_bytes.search(key):
            return make(self.render)
        made = known[key] = make(self._render_plain)
        return made

    def encode_rendered(self, text: str) -> list[int]:
        """Encode what `render` returned."""
        if self._nonce in text:
            return self._encode_marked(text, add_special_tokens=False)
        if self._cutter is None or not isinstance(self._encoder, BatchTokenizer):
            return list(self._encoder.encode(text, add_special_tokens=False))
        return self._encoder.encode_cut(text, self._cutter.parts)

    def shown(self, text: str) -> str:
        """Return what `render` returned as a user reads it."""
        return replace(text, self._originals) if self._nonce in text else text

    def note_marker(self, text: str, marker: str) -> None:
        """Note a turn marker of ordinary text in a text of the row that is being read.

        Raises:
            SpecialTokenError: with "fail".
        """
        if self._source is not None:
            self.markers.setdefault(self._source, marker)
        if self._policy == "fail":
            advice = "take it out, or give --special-tokens split, which trains it unchanged"
            raise special_token_error(text, marker, advice, "turn marker")

    def _mark_taken(self, value: Any) -> tuple[Any, list[tuple[str, str]]]:
        """Do what `_mark` does where tokens are taken; where texts are noted, return the value as it is."""
        return (value, []) if self.notes else self._mark(value)

    def _mark(self, value: Any) -> tuple[Any, list[tuple[str, str]]]:
        """Put placeholders for the special tokens of every text in a value, but not for the template's own.

        Returns:
            The value, and by occurrence the text and the token.
        """
        met: list[tuple[str, str]] = []
        return self._marked(value, met), met

    def _marked(self, value: Any, met: list[tuple[str, str]]) -> Any:
        """Return what `_mark` does of a value, and note what is met."""
        if isinstance(value, str):
            return self._marked_text(value, met) if self._pattern.search(value) else value
        if isinstance(value, Mapping):
            return {key: self._marked(inner, met) for key, inner in value.items()}
        return [self._marked(inner, met) for inner in value] if isinstance(value, list | tuple) else value

    def _marked_text(self, text: str, met: list[tuple[str, str]]) -> str:
        """Return what `_mark` does of a text that holds a special token, and note what is met."""
        for rendered, template in self._renderings:
            before, found, after = text.partition(rendered)
            if found:
                met.extend((text, token) for mark, token in self._originals.items() if mark in template)
                return str(self._marked(before, met)) + template + str(self._marked(after, met))
        met.extend((text, token) for token in self._pattern.findall(text))
        return replace(text, self._placeholders)

    def _allowed(self, text: str, token: str) -> bool:
        """Note a special token that was met, and tell whether it may stand for itself."""
        if self._source is not None:
            self.met.setdefault(self._source, token)
        if self._policy == "fail":
            advice = "take it out, or give --special-tokens split (plain text) or allow (the token)"
            raise special_token_error(text, token, advice)
        if self._policy == "split" and self._splitter is None:
            advice = "this tokenizer cannot split it; take it out, or give --special-tokens allow (the token)"
            raise special_token_error(text, token, advice)
        return self._policy == "allow"

    def _encode_marked(self, marked: str, add_special_tokens: bool) -> list[int]:
        """Encode a text with placeholders; what else in it is a special token is the template's."""
        assert self._splitter is not None  # noqa: S101 - `_allowed` has refused
        text = replace(replace(marked, self._aliases), self._originals)
        return list(self._splitter.encode(text, add_special_tokens=add_special_tokens).ids)

    @cached_property
    def _cutter(self) -> Cutter | None:
        """What cuts rendered texts, whose prompts are alike, where they can be encoded in one call."""
        batches = isinstance(self._encoder, BatchTokenizer)
        return Cutter(self._tokenizer.backend_tokenizer) if batches else None

    @cached_property
    def _splitter(self) -> Tokenizer | None:
        """The same tokenizer with its special tokens under other names; made when a text first needs it."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        return rename_tokens(backend, self._aliases) if isinstance(backend, Tokenizer) else None


def replace(text: str, names: Mapping[str, str]) -> str:
    """Replace names by others in one pass, the longest where several fit."""
    longest_first = sorted(names, key=len, reverse=True)
    return re.sub("|".join(map(re.escape, longest_first)), lambda found: names[found[0]], text)


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Return the ids of the special tokens."""
    added = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset({*added, *tokenizer.all_special_ids})


def special_names(tokenizer: Any) -> list[str]:
    """Return the special tokens, the longest first.

    Other added tokens (`<think>`) are a part of what texts may say.
    """
    added = (str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)
    return sorted({*filter(str.strip, (*tokenizer.all_special_tokens, *added))}, key=len, reverse=True)


def rename_tokens(tokenizer: Tokenizer, names: Mapping[str, str]) -> Tokenizer:
    """Return a tokenizer that knows tokens by other names, with the same ids; the old names are text."""
    parts = json.loads(tokenizer.to_str())
    parts["truncation"] = parts["padding"] = None
    for token in parts["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = parts["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(name, name): number for name, number in model["vocab"].items()}
    else:  # pieces with their scores
        model["vocab"] = [[names.get(name, name), score] for name, score in model["vocab"]]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    return Tokenizer.from_str(json.dumps(parts))


def as_encoding(tokens: list[int]) -> BatchEncoding:
    """Return tokens as calling a tokenizer does."""
    return BatchEncoding({"input_ids": tokens, "attention_mask": [1] * len(tokens)})
