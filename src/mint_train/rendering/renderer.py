"""The renderer: turns a prompt and its completions into datums, as a loss's `flatten` hook asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from mint_train.batches.datums import build_datum
from mint_train.errors import DoesNotFit
from mint_train.rendering.recipe import Prompt, build_completion_tokens, build_prompt_tokens

if TYPE_CHECKING:
    from mint_train.sdk import Datum

RenderedPrompt: TypeAlias = Prompt | Sequence[int]
"""A prompt: a user's text, chat messages, or token ids, which are taken as they are."""
RenderedCompletion: TypeAlias = str | Sequence[int]
"""A completion: the assistant's text, or token ids, which are taken as they are."""


@dataclass(frozen=True)
class Renderer:
    """What `flatten` builds datums with: the run's tokenizer, its form of rendering and its `--max-length`.

    The form is the recipe's: the prompt by the chat template, a space, the completion's text, the
    end-of-sequence token.
    """

    tokenizer: Any
    """The tokenizer of the model that is trained, a `PreTrainedTokenizerBase` or one that behaves alike."""
    max_length: int | None = None
    """The most tokens, prompt and completion together, that a datum may have; None for no limit."""

    def prompt_tokens(self, prompt: RenderedPrompt) -> list[int]:
        """Return the token ids of a prompt, up to where the assistant's answer begins."""
        if are_tokens(prompt):
            return list(prompt)  # type: ignore[arg-type]
        return build_prompt_tokens(prompt, self.tokenizer)  # type: ignore[arg-type]

    def completion_tokens(self, completion: RenderedCompletion) -> list[int]:
        """Return the token ids of a completion, with the token that ends it."""
        if isinstance(completion, str):
            return build_completion_tokens(completion, self.tokenizer)
        return list(completion)

    def datum(self, prompt: RenderedPrompt, completion: RenderedCompletion) -> Datum:
        """Build the datum that trains a completion and not its prompt.

        Raises:
            DoesNotFit: the prompt alone fills `max_length`.
        """
        tokens = self.prompt_tokens(prompt)
        return build_datum(tokens, self.completion_tokens(completion), self.max_length)

    def datums(
        self, prompt: RenderedPrompt, completions: Sequence[RenderedCompletion], names: Sequence[str] = ()
    ) -> list[Datum]:
        """Build the datums of several completions of one prompt, in their order.

        Args:
            prompt: the prompt that they share.
            completions: each is cut at its end to fit `max_length`.
            names: what a message calls the completions; without names they are counted from 0.

        Raises:
            DoesNotFit: the prompt alone fills `max_length`, or two completions are equal once they are cut.
        """
        tokens = self.prompt_tokens(prompt)
        answers = [self.completion_tokens(completion) for completion in completions]
        if self.max_length is not None:
            refuse_equal_once_cut(answers, self.max_length - len(tokens), names)
        return [build_datum(tokens, answer, self.max_length) for answer in answers]


def are_tokens(prompt: Any) -> bool:
    """Return whether a prompt is a list of token ids rather than text or messages."""
    return not isinstance(prompt, str) and bool(prompt) and isinstance(prompt[0], int)


def refuse_equal_once_cut(answers: Sequence[list[int]], room: int, names: Sequence[str]) -> None:
    """Refuse completions that differ, but not in the tokens that `room` leaves of them.

    Raises:
        DoesNotFit: naming the two.
    """
    if room <= 0:  # the prompt alone is too long, which building a datum says
        return
    first: dict[tuple[int, ...], int] = {}
    for index, answer in enumerate(answers):
        other = first.setdefault(tuple(answer[:room]), index)
        if other != index and answers[other] != answer:
            one, two = (names[n] if names else f"completion {n}" for n in (other, index))
            raise DoesNotFit(
                f"{one} and {two} begin with the same {room} tokens, all that --max-length leaves of them"
            )
