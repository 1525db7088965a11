"""Completions of a trained policy, beside those of the policy that training began with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mint_train.backends.base import Sampler, Samplers
from mint_train.backends.start import refuse_changed_start
from mint_train.errors import DataError, RowError, UserError
from mint_train.groups.build import build_dataset
from mint_train.groups.held_out import held_out_or_trained
from mint_train.groups.prompts import read_prompts
from mint_train.observers.terminal import echo_problem
from mint_train.rendering.renderer import Renderer
from mint_train.rows.row import BadRow
from mint_train.run_folder.records import Checkpoint
from mint_train.settings.recorded import with_given
from mint_train.settings.sampling import Sampling
from mint_train.trained.find import Trained

NOT_SHOWN = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True, slots=True)
class Completed:
    """A prompt with its completions."""

    prompt: str
    before: Sequence[str]
    """Those of the adapter that the run began with, or of the base model; none where that adapter is gone."""
    after: Sequence[str]
    """The trained policy's, as many."""


def complete(
    trained: Trained, prompts: Sequence[str] | None, data: Any, rows: int, sampling: Sampling
) -> list[Completed]:
    """Complete prompts by the policy that training began with, and by the trained one.

    Args:
        trained: the trained policy.
        prompts: texts of a user's turn.
        data: rows whose prompts are completed where there are no `prompts`; by default the run's held-out
            rows, else those that it was trained on.
        rows: the maximum number of prompts from the rows.
        sampling: how completions are drawn.

    Raises:
        MintTrainError: the data is wrong, or the backend fails.
    """
    start = start_of(trained)
    with open_samplers(trained, trained.checkpoint) as samplers:
        tokenizer = samplers.tokenizer
        if prompts is not None:
            renderer = Renderer.of(trained.settings, tokenizer)
            tokens = [renderer.prompt_tokens(prompt) for prompt in prompts]
        else:
            tokens = prompts_of_rows(trained, tokenizer, data)[:rows]
        shown = decoded(tokens, tokenizer) if prompts is None else prompts
        before: Sequence[Sequence[str]] = [()] * len(tokens)
        if trained.start is None:
            before = completions(samplers.before, tokens, sampling, tokenizer)
        after = completions(samplers.after, tokens, sampling, tokenizer)
    if start is not None:
        with open_samplers(trained, start) as samplers:
            before = completions(samplers.after, tokens, sampling, tokenizer)
    return [Completed(*each) for each in zip(shown, before, after, strict=True)]


def start_of(trained: Trained) -> Checkpoint | None:
    """Return the adapter that a run began with; None, with a word to the user, where it is that no more."""
    if trained.start is None:
        return None
    try:
        refuse_changed_start(trained.start)
    except UserError as error:
        echo_problem(f"Nothing is shown from before training, which began with {trained.start.name}: {error}")
        return None
    return Checkpoint(0, trained.start.path, None, {})


@contextmanager
def open_samplers(trained: Trained, checkpoint: Checkpoint) -> Iterator[Samplers]:
    """Open what samples from a state of a trained policy, and close it.

    Raises:
        UserError: the state is not there any more.
        BackendError: the backend fails.
    """
    folder = trained.folder.path if trained.folder else Path()
    samplers = trained.backend.open_samplers(folder, checkpoint, echo_problem)
    try:
        yield samplers
    finally:
        samplers.close()


def completions(
    sampler: Sampler, prompts: list[list[int]], sampling: Sampling, tokenizer: Any
) -> list[list[str]]:
    """Return the texts of each prompt's completions."""
    return [decoded(each, tokenizer) for each in sampled_tokens(sampler, prompts, sampling)]


def sampled_tokens(sampler: Sampler, prompts: list[list[int]], sampling: Sampling) -> list[list[list[int]]]:
    """Return the tokens of each prompt's completions, without the one that ends them.

    Raises:
        BackendError: the backend fails.
    """
    drawn = dict(sampler.draw(prompts, sampling))
    return [[one.text_tokens for one in drawn[index]] for index in range(len(prompts))]


def decoded(tokens: list[list[int]], tokenizer: Any) -> list[str]:
    """Return texts as a terminal can show them."""
    return [printable(text) for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)]


def prompts_of_rows(trained: Trained, tokenizer: Any, data: Any) -> list[list[int]]:
    """Return the distinct prompts of rows, as the tokens that the loss sees.

    Raises:
        MintTrainError: the rows are wrong.
    """
    settings = trained.settings
    loss = trained.open_loss()
    if data is not None:
        settings = with_given(settings, {"eval_data": data, "eval_fraction": None})
    try:
        examples = held_out_or_trained(settings, loss)
        groups = build_dataset(examples, loss, tokenizer, settings).groups
    except DataError:
        alone = [] if data is None else prompts_alone(trained, tokenizer, data)
        if not alone:
            raise
        return alone
    if data is not None:
        tell_skipped(examples.bad_rows)
    return [list(tokens) for tokens in dict.fromkeys(tuple(group.prompts[0].tolist()) for group in groups)]


def prompts_alone(trained: Trained, tokenizer: Any, data: Any) -> list[list[int]]:
    """Return the distinct prompts of rows that hold nothing for the loss; none where they hold no prompts.

    Raises:
        DataError: some rows hold prompts, and another one does not, or its prompt cannot be rendered.
    """
    renderer, settings = Renderer.of(trained.settings, tokenizer), trained.settings
    try:
        prompts = read_prompts(data, settings.model_copy(update={"on_bad_row": "skip"}))
    except DataError:
        return []
    if prompts.bad_rows and settings.on_bad_row == "fail":
        raise DataError(str(prompts.bad_rows[0]))
    tell_skipped(prompts.bad_rows)
    tokens = []
    for row in prompts.rows:
        try:
            tokens.append(renderer.prompt_tokens(row.prompt))
        except RowError as error:
            raise DataError(f"{row.source}: {error}") from None
    return tokens


def tell_skipped(rows: Sequence[BadRow]) -> None:
    """Name the rows whose prompts are not completed."""
    for row in rows:
        echo_problem(f"Skipped: {row}")


def printable(text: str) -> str:
    """Replace characters that would move a terminal's cursor: an untrained model may write any."""
    return "".join(
        character if character.isprintable() or character == "\n" else NOT_SHOWN for character in text.strip()
    )
