"""A dry run on the screen: what is in the data, how long it is, what is wrong with it, and one example."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mint_train.batches.groups import Group
from mint_train.groups.inspection import DataReport
from mint_train.rendering.special_tokens import TAKEN

SHOWN = 5
BINS = 8
BAR = 30
EXAMPLE_CHARACTERS = 1200


def print_report(report: DataReport, tokenizer: Any) -> None:
    """Print a report; on a terminal in colour."""
    screen = Console(highlight=False)

    def line(text: object, style: str = "") -> None:
        screen.print(Text(str(text), style), soft_wrap=True)

    line(f"{report.data}.")
    screen.print(summary(report))
    if report.tokens:
        screen.print(histogram(report.tokens))
    if len(report.datum_names) > 1 and report.trained:
        line(average_lengths(report))
    for title, found in findings(report):
        line(f"{title}: {len(found):,}", "bold yellow")
        for row in found[:SHOWN]:
            line(f"  {row}")
        if len(found) > SHOWN:
            line(f"  ... and {len(found) - SHOWN:,} more")
    for remark in report.remarks:
        line(remark)
    if report.example is not None:
        screen.print(example(report.example, report.datum_names, tokenizer))


def summary(report: DataReport) -> Table:
    """Lay out what a run would do with the data."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    every = sum(report.tokens)
    share = 100 * sum(report.trained) / every if every else 0
    table.add_row("groups", f"{report.groups:,}")
    table.add_row("steps", f"{report.steps:,}")
    table.add_row("tokens of the data", f"{every:,}, of which {share:.0f} % are trained")
    table.add_row("tokens of the run", f"about {report.steps * report.tokens_per_step:,.0f}")
    return table


def histogram(tokens: Sequence[int]) -> Table:
    """Draw how many tokens the datums have."""
    counts, edges = np.histogram(tokens, bins=BINS)
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("tokens", justify="right")
    table.add_column("datums", justify="right")
    table.add_column("")
    for count, start, end in zip(counts, edges[:-1], edges[1:], strict=True):
        bar = "█" * round(BAR * count / max(counts))
        table.add_row(f"{start:.0f} to {end:.0f}", f"{count:,}", Text(bar, style="cyan"))
    return table


def average_lengths(report: DataReport) -> str:
    """Say how the datums of a group differ: a bias in length is the easiest thing to learn."""
    means = np.reshape(report.trained, (-1, len(report.datum_names))).mean(0)
    said = [f"{name} {mean:.0f}" for name, mean in zip(report.datum_names, means, strict=True)]
    return f"Trained tokens on average: {', '.join(said)}."


def findings(report: DataReport) -> list[tuple[str, Sequence[object]]]:
    """Name what is to be looked at, the worst first, with file and line each."""
    found: list[tuple[str, Sequence[object]]] = [
        ("Rows that cannot be read or trained on", report.bad_rows),
        ("Rows that break the loss's contract", report.broken),
        ("Held-out rows that are trained on too", equal_rows(report.leaked)),
        ("Rows that --max-length leaves with nothing to train", report.left_out),
        (f"Rows that --max-length {report.max_length} cuts", report.cut),
        ("Rows that repeat an earlier one", equal_rows(report.repeated)),
        (
            f"Rows whose text holds a special token, taken {TAKEN.get(report.special_tokens)}",
            [f"{source}: {token}" for source, token in report.special],
        ),
    ]
    return [(title, lines) for title, lines in found if lines]


def equal_rows(sources: Sequence[tuple[object, object]]) -> list[str]:
    """Lay out rows that are equal."""
    return [f"{one} is {other}" for one, other in sources]


def example(group: Group, names: Sequence[str], tokenizer: Any) -> Table:
    """Show one group as the model sees it: what it reads, and what it is trained on."""
    table = Table(title=f"Example: {group.source}", title_justify="left", show_lines=True)
    table.add_column("datum")
    table.add_column("what the model reads")
    table.add_column("what is trained")
    for index, datum in enumerate(group.datums):
        name = names[index] if index < len(names) else str(index + 1)
        untrained = len(group.prompts[index])
        tokens = [*datum.model_input.to_ints(), int(group.targets[index][-1])]
        table.add_row(
            name,
            Text(shorten(tokenizer.decode(tokens[:untrained])), style="dim"),
            Text(shorten(tokenizer.decode(tokens[untrained:])), style="green"),
        )
    return table


def shorten(text: str) -> str:
    """Leave out the middle of a long text."""
    if len(text) <= EXAMPLE_CHARACTERS:
        return text
    half = EXAMPLE_CHARACTERS // 2
    return f"{text[:half]} ... {text[-half:]}"
