"""Prompts that a policy completes, as tokens; what it wrote, as text; and a judge's scores of that."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from mint_train.backends.base import Sample
from mint_train.errors import DataError, JudgeError, RowError
from mint_train.groups.prompts import LocatedPrompt, Prompts
from mint_train.judging.judge import Judge, Scores
from mint_train.rendering.renderer import Renderer
from mint_train.rows.candidates import Candidates
from mint_train.rows.conversations import Prompt
from mint_train.settings.model import Settings

JUDGED_AT_ONCE = 16
"""Prompts that a judge gets in one batch, and the most that a kill makes it judge again."""
SHORT = "x"
"""A completion, rendered to see which token ends one."""


@dataclass(frozen=True)
class PromptRenderer:
    """Renders prompts, and reads completions, as the training of a policy does."""

    settings: Settings
    tokenizer: Any

    @cached_property
    def renderer(self) -> Renderer:
        """What renders prompts and completions, as training does."""
        return Renderer.of(self.settings, self.tokenizer)

    def prompt_tokens(self, prompt: Prompt) -> list[int]:
        """Return the token ids of a prompt, up to where the answer begins.

        Raises:
            RowError: the rendering refuses the prompt.
        """
        return self.renderer.prompt_tokens(prompt)

    def end_token(self, prompt: Prompt) -> int:
        """Return the token that ends a completion in training.

        Raises:
            RowError: the rendering refuses the prompt.
        """
        datum = self.renderer.datum(prompt, SHORT)
        return int(datum.loss_fn_inputs["target_tokens"].to_numpy()[-1])

    def text_of(self, sample: Sample) -> str:
        """Return a completion as a row holds it: rendered in training, it becomes the same tokens again."""
        text = str(self.tokenizer.decode(sample.text_tokens, skip_special_tokens=False))
        # the recipe's form puts a space before each completion
        return text.removeprefix(" ") if self.settings.render == "recipe" else text

    def reads_back(self, text: str, sample: Sample) -> bool:
        """Return whether training makes a completion's own tokens of its text, as far as that can be seen."""
        if self.settings.render == "template" or not text.strip():
            return True
        tokens = self.renderer.completion_tokens(text)
        return tokens[: len(sample.text_tokens)] == sample.text_tokens


@dataclass(frozen=True, slots=True)
class Written:
    """A prompt with what the policy wrote."""

    prompt: LocatedPrompt
    texts: Sequence[str]
    samples: Sequence[Sample]

    def candidates(self) -> Candidates:
        """Return what a judge scores: the completions that hold a text."""
        texts = [text for text in self.texts if text.strip()]
        return Candidates(self.prompt.prompt, texts, self.prompt.row)

    def all_scores(self, scores: Scores) -> Scores:
        """Return a score for each completion, None for an empty one, of those of `candidates`."""
        found = iter(scores)
        return [next(found) if text.strip() else None for text in self.texts]


@dataclass(frozen=True, slots=True)
class RenderedPrompts:
    """Prompts as token ids, and those that the model cannot read."""

    prompts: Sequence[LocatedPrompt]
    tokens: Sequence[list[int]]
    left_out: Sequence[str]
    """Why each prompt that is left out is, with its file and line."""
    stop: tuple[int, ...]
    """The tokens that end a completion in training."""

    def lines(self) -> list[str]:
        """Say which prompts are left out."""
        return [f"Left out, as the model cannot read it: {why}" for why in self.left_out]


def render_prompts(renderer: PromptRenderer, prompts: Prompts, window: int | None) -> RenderedPrompts:
    """Render prompts as training does; those that fill the model's window are left out.

    Args:
        renderer: renders them.
        prompts: those of a file.
        window: the most tokens, prompt and completion together, that the model reads; None where unknown.

    Raises:
        DataError: the rendering refuses a prompt, or none is left.
    """
    kept, tokens, left_out = [], [], []
    stop: tuple[int, ...] = ()
    for row in prompts.rows:
        try:
            rendered = renderer.prompt_tokens(row.prompt)
            stop = stop or (renderer.end_token(row.prompt),)
        except RowError as error:
            raise DataError(f"{row.source}: {error}") from None
        if window is not None and len(rendered) >= window:
            left_out.append(
                f"{row.source}: its {len(rendered):,} tokens fill the model's window of {window:,}"
            )
            continue
        kept.append(row)
        tokens.append(rendered)
    if not kept:
        raise DataError(f"no prompt can be completed: {left_out[0]}")
    return RenderedPrompts(kept, tokens, left_out, stop)


class ToJudge(Protocol):
    """Completions of a prompt that a judge is to score."""

    @property
    def prompt(self) -> LocatedPrompt:
        """The prompt, with its row."""
        ...

    def candidates(self) -> Candidates:
        """Return what the judge scores."""
        ...

    def all_scores(self, scores: Scores) -> Scores:
        """Return a score for each completion, of those of `candidates`."""
        ...


def score(judge: Judge, written: Sequence[ToJudge]) -> Iterator[Scores]:
    """Yield the scores of each prompt's completions, None for those that are empty.

    Raises:
        JudgeError: the judge failed.
        DataError: a row lacks what the judge needs, with its file and line.
    """
    batch = [prompt.candidates() for prompt in written]
    not_empty = [candidates for candidates in batch if candidates.completions]
    try:
        scores = iter(judge.score(not_empty) if not_empty else [])
    except RowError as error:
        raise DataError(f"{refused_row(judge, written)}: {error}") from None
    for prompt, candidates in zip(written, batch, strict=True):
        yield prompt.all_scores(next(scores) if candidates.completions else [])


def refused_row(judge: Judge, written: Sequence[ToJudge]) -> str:
    """Return the file and line of the first row that a judge refuses when it gets each by itself."""
    for completed in written:
        with suppress(JudgeError):
            try:
                judge.score([completed.candidates()])
            except RowError:
                return str(completed.prompt.source)
    return str(written[0].prompt.source)
