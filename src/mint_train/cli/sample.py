"""`mint-train sample`: completions before and after training, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from mint_train.backends.base import Sampling
from mint_train.cli.trained import Trained
from mint_train.groups.build import build_dataset
from mint_train.groups.examples import find_data, read_examples
from mint_train.groups.held_out import open_held_out
from mint_train.losses.weighted_sum import open_loss
from mint_train.observers.screen import Screen
from mint_train.observers.terminal import echo, echo_problem
from mint_train.rendering.options import Rendering
from mint_train.rendering.renderer import Renderer
from mint_train.rendering.special_tokens import GuardedTokenizer
from mint_train.settings.recorded import with_given

NOT_SHOWN = "\N{REPLACEMENT CHARACTER}"


def sample_and_print(
    trained: Trained, prompt: str | None, data: str | None, rows: int, sampling: Sampling
) -> None:
    """Print completions of prompts by the base policy and by the trained one.

    Args:
        trained: the trained policy.
        prompt: the text of a user's turn.
        data: rows whose prompts are completed instead; by default the run's held-out or training rows.
        rows: the maximum number of prompts from the rows.
        sampling: how completions are drawn.

    Raises:
        MintTrainError: the data is wrong, or the backend fails.
    """
    folder = trained.folder.path if trained.folder else Path()
    samplers = trained.backend.open_samplers(folder, trained.checkpoint, echo_problem)
    tokenizer = samplers.tokenizer
    if prompt is not None:
        guarded = GuardedTokenizer(tokenizer, trained.settings.special_tokens)
        prompts = [Renderer(guarded, None, Rendering.of(trained.settings)).prompt_tokens(prompt)]
    else:
        prompts = prompts_of_rows(trained, tokenizer, data)[:rows]

    def decoded(completions: list[list[int]]) -> list[str]:
        texts = tokenizer.batch_decode(completions, skip_special_tokens=True)
        return [printable(text) for text in texts]

    shown = [prompt] if prompt is not None else decoded(prompts)
    before = [decoded(drawn) for drawn in samplers.before.sample(prompts, sampling)]
    after = [decoded(drawn) for drawn in samplers.after.sample(prompts, sampling)]
    samplers.close()
    print_side_by_side(list(zip(shown, before, after, strict=True)))


def prompts_of_rows(trained: Trained, tokenizer: Any, data: str | None) -> list[list[int]]:
    """Return the distinct prompts of rows, as the tokens that the loss sees.

    Raises:
        MintTrainError: the rows are wrong.
    """
    settings = trained.settings
    loss = open_loss(settings.loss, settings.options)
    if data is not None:
        settings = with_given(settings, {"eval_data": data, "eval_fraction": None})
    examples = next(iter(open_held_out(settings, loss).values()), None)
    if examples is None:
        rows = find_data(settings.data, loss, settings.max_row_bytes)
        examples = read_examples(rows, loss, settings.columns, settings.on_bad_row)
    groups = build_dataset(
        examples, loss, tokenizer, settings.max_length, settings.special_tokens, Rendering.of(settings)
    ).groups
    return [list(tokens) for tokens in dict.fromkeys(tuple(group.prompts[0].tolist()) for group in groups)]


def printable(text: str) -> str:
    """Replace characters that would move a terminal's cursor: an untrained model may write any."""
    return "".join(
        character if character.isprintable() or character == "\n" else NOT_SHOWN for character in text.strip()
    )


def print_side_by_side(completed: list[tuple[str, list[str], list[str]]]) -> None:
    """Print prompts with their completions before and after: a table on a terminal, otherwise plain lines."""
    console = Screen()
    if console.is_terminal:
        table = Table("prompt", "before", "after", show_lines=True)
        for prompt, before, after in completed:
            for number, pair in enumerate(zip(before, after, strict=True)):
                table.add_row(*(Text(text) for text in ("" if number else prompt, *pair)))
        console.print(table)
        return
    for prompt, before, after in completed:
        echo(f"Prompt: {prompt}")
        for old, new in zip(before, after, strict=True):
            echo(f"Before: {old}")
            echo(f"After:  {new}")
