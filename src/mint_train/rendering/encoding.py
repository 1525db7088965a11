"""Many texts through a tokenizer in one call, though a loss's `flatten` sees one example at a time."""

from __future__ import annotations

import marshal
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from mint_train.rendering.direct_templates import DirectTemplates
from mint_train.rendering.refusals import EndlessTemplateError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Chunk = TypeVar("Chunk", bound=Sequence[Any])
Asked = tuple[str, bool]
"""A text, and whether the tokenizer's special tokens are added to it."""
Known = dict[Asked, list[int]]
Rendered = dict[Hashable, Any]
"""What was rendered, by what decides it, as `frozen` makes it."""
Parts = dict[str, list[str]]
"""The parts of a text that is encoded part by part."""
OWN_WAYS = ("apply_chat_template", "__call__", "encode", "_encode_plus")
"""Methods by which a few tokenizers do something else than the `tokenizers` library."""


def can_batch(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the tokenizer uses the stock fast-tokenizer methods, so texts can be batch-encoded."""
    from transformers import PreTrainedTokenizerFast

    return isinstance(tokenizer, PreTrainedTokenizerFast) and all(
        getattr(type(tokenizer), name, None) is getattr(PreTrainedTokenizerFast, name, None)
        for name in OWN_WAYS
    )


class BatchTokenizer:
    """A tokenizer that has encoded already what a chunk of examples will ask it for.

    `flatten` is called twice for each example: first only to note the texts that it asks for, which then go
    through the tokenizer together, on all cores; then to make datums of their tokens. A text that the
    first call did not ask for is encoded alone. Only ids are taken: where each token lies in its text costs a
    fifth more.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._noted: dict[Asked, None] | None = None
        self._known: Known = {}
        self.rendered: Rendered = {}
        """What was rendered when the texts were noted."""
        self._parts: Parts = {}
        self.templates = DirectTemplates(tokenizer)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __len__(self) -> int:
        return len(self._tokenizer)

    @property
    def notes(self) -> bool:
        """Whether texts are noted alone, and the tokens that come back are made up."""
        return self._noted is not None

    def encoded(self, chunks: Iterable[Chunk], flatten: Callable[[Any], object]) -> Iterator[Chunk]:
        """Yield each chunk of examples once its texts are encoded; those of the next one are meanwhile.

        Args:
            chunks: examples.
            flatten: what is done with each of them, called here to note the texts that it asks for.
        """
        self._tokenizer("")  # the library takes over that nothing is cut, nor padded
        ahead: deque[tuple[Chunk, Rendered, Parts, Future[Known]]] = deque()
        with ThreadPoolExecutor(1) as worker:  # the library needs no interpreter while it encodes
            for chunk in chunks:
                noted = self._note(flatten, chunk)
                known = worker.submit(self._encode_all, noted)
                ahead.append((chunk, self.rendered, self._parts, known))
                if len(ahead) > 1:
                    yield self._take(*ahead.popleft())
            if ahead:
                yield self._take(*ahead.popleft())

    def _note(self, flatten: Callable[[Any], object], examples: Iterable[Any]) -> list[Asked]:
        """Return the texts that flattening the examples asks for."""
        self._noted, self.rendered, self._parts = {}, {}, {}
        for example in examples:
            try:
                flatten(example)
            except EndlessTemplateError:
                raise
            except Exception:  # noqa: S112 - it fails on made-up tokens; what is wrong shows in the second call
                continue
        noted, self._noted = self._noted, None
        return list(noted)

    def _encode_all(self, noted: Iterable[Asked]) -> Known:
        """Encode texts, all in one call."""
        known: Known = {}
        encode = self._tokenizer.backend_tokenizer.encode_batch_fast
        for special in (True, False):
            texts = [text for text, own in noted if own is special]
            if texts:
                encoded = encode(texts, add_special_tokens=special)
                known |= {(text, special): one.ids for text, one in zip(texts, encoded, strict=True)}
        return known

    def _take(self, chunk: Chunk, rendered: Rendered, parts: Parts, known: Future[Known]) -> Chunk:
        """Answer from now on with what a chunk asks for; return the chunk."""
        self.rendered, self._parts, self._known = rendered, parts, known.result()
        return chunk

    def encode(self, text: str, add_special_tokens: bool = True, **more: Any) -> list[int]:
        """Encode as the tokenizer itself does."""
        if more or not isinstance(text, str):
            return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens, **more))
        asked = (text, add_special_tokens)
        if self._noted is not None:
            self._noted[asked] = None
            # a token unlike another text's, so that equal beginnings stop nothing before all is noted
            return [len(self._noted) % len(self)]
        if asked in self._known:
            return list(self._known[asked])
        return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens))

    def encode_cut(self, text: str, cut: Callable[[str], list[str]]) -> list[int]:
        """Encode the parts that `cut` makes of a text, which its special tokens keep apart."""
        if self._noted is not None:
            parts = self._parts[text] = cut(text)
            self._noted.update(dict.fromkeys((part, False) for part in parts))
            return [len(self._noted) % len(self)]
        tokens: list[int] = []
        for part in self._parts.get(text) or cut(text):
            tokens += self._known.get((part, False)) or self.encode(part, add_special_tokens=False)
        return tokens

    def apply_chat_template(
        self,
        conversation: Any,
        *,
        tokenize: bool = True,
        return_dict: bool = True,
        **more: Any,
    ) -> Any:
        """Render as the tokenizer itself does, and encode the text."""
        if not tokenize or return_dict:
            return self._tokenizer.apply_chat_template(
                conversation, tokenize=tokenize, return_dict=return_dict, **more
            )
        asked = frozen((conversation, more))
        if asked not in self.rendered:
            self.rendered[asked] = self.templates.render(conversation, **more)
        return self.encode(self.rendered[asked], add_special_tokens=False)


def frozen(value: Any) -> Hashable:
    """Return what stands for a value of JSON as a key: 1, 1.0 and true, which are equal, are told apart."""
    try:
        return marshal.dumps(value, 2)  # later versions write an object that is met again as a reference
    except ValueError:  # of a type that JSON does not have
        return slowly_frozen(value)


def slowly_frozen(value: Any) -> Hashable:
    """Return a key as `frozen` does, of values that JSON does not have too."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return (dict, *value, *map(slowly_frozen, value.values()))
    if isinstance(value, list | tuple):
        return (type(value), *map(slowly_frozen, value))
    return type(value), repr(value)
