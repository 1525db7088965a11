"""`mint-train sample`: completions before and after training, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from rich.table import Table
from rich.text import Text

from mint_train.observers.screen import Screen
from mint_train.observers.terminal import echo
from mint_train.trained.sample import Completed


def print_side_by_side(completed: Sequence[Completed]) -> None:
    """Print prompts with their completions before and after: a table on a terminal, otherwise plain lines."""
    console = Screen()
    if console.is_terminal:
        table = Table("prompt", "before", "after", show_lines=True)
        for each in completed:
            for number, pair in enumerate(zip_longest(each.before, each.after, fillvalue="")):
                table.add_row(*(Text(text) for text in ("" if number else each.prompt, *pair)))
        console.print(table)
        return
    for each in completed:
        echo(f"Prompt: {each.prompt}")
        for old, new in zip_longest(each.before, each.after):
            if old is not None:
                echo(f"Before: {old}")
            echo(f"After:  {new}")
