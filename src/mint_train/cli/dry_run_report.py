"""A dry run on the screen: what is in the data, how long it is, what is wrong with it, and one example."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from mint_train.batches.datums import Attachment, DatumArrays
from mint_train.batches.groups import Group
from mint_train.cli.dry_run_events import datum_name
from mint_train.errors import counted
from mint_train.groups.expected_tokens import ExpectedTokens
from mint_train.groups.inspection import DataReport
from mint_train.observers.screen import Screen
from mint_train.observers.terminal import wrapped
from mint_train.rendering.special_tokens import TAKEN
from mint_train.settings.prices import TOKEN_KINDS, Prices

SHOWN = 5
BINS = 8
BAR = 30
OPENED, CLOSED = "\N{LEFT DOUBLE ANGLE BRACKET}", "\N{RIGHT DOUBLE ANGLE BRACKET}"
"""What stands around trained tokens on a screen."""


def print_report(report: DataReport, tokenizer: Any, prices: Prices | None = None) -> None:
    """Print a report; on a terminal in colour."""
    screen = Screen(highlight=False)

    def line(text: object, style: str = "") -> None:
        shown = wrapped(str(text), screen.width) if screen.is_terminal else str(text)
        screen.print(Text(shown, style), soft_wrap=True)

    line(f"{report.data}.")
    if report.unread:
        line(f"Columns of which nothing is read: {', '.join(sorted(report.unread))}.")
    screen.print(summary(report, prices))
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
    for note in (*report.notes, *report.remarks):
        line(note)
    for group, form in report.examples:
        line(f"Example: {group.source}{f' ({form})' if form else ''}, {rendered_as(report, tokenizer)}")
        for index, arrays in enumerate(group.arrays):
            screen.print(datum_text(report, group, index, arrays, tokenizer), soft_wrap=True)


def rendered_as(report: DataReport, tokenizer: Any) -> str:
    """Name the rendering, and the tokenizer that it was made with."""
    name = str(tokenizer.name_or_path) or "the starter model"
    form = report.rendering.form
    return f"rendered in {form} form with the tokenizer of {name}; {OPENED}trained{CLOSED}:"


def datum_text(report: DataReport, group: Group, index: int, arrays: DatumArrays, tokenizer: Any) -> Text:
    """Return one datum whole, decoded, its trained tokens marked, and what is attached to it."""
    attached = group.attached[index] if group.attached else {}
    beside = [f"{name}={value_of(value)}" for name, value in attached.items()]
    beside += ["not trained"] * (index in report.untrained)
    noted = f" ({', '.join(beside)})" if beside else ""
    text = Text(f"{datum_name(report, index)}{noted}: ", style="bold")
    tokens = [*arrays.inputs.tolist(), int(arrays.targets[-1])]
    weights = np.array([0.0, *arrays.weights]) * (index not in report.untrained)
    for trained, run in groupby(range(len(tokens)), key=lambda n: bool(weights[n] != 0)):
        said = tokenizer.decode([tokens[n] for n in run])
        text.append(f"{OPENED}{said}{CLOSED}" if trained else said, style="green" if trained else "dim")
    return text


def value_of(value: Attachment) -> str:
    """Return what is attached to a datum: a number, or how many of them there are."""
    return f"{len(value)} numbers" if isinstance(value, Sequence) else f"{value:g}"


def summary(report: DataReport, prices: Prices | None) -> Table:
    """Lay out what a run would do with the data."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    every = sum(report.tokens)
    share = 100 * sum(report.trained) / every if every else 0
    table.add_row("groups", f"{report.groups:,}")
    table.add_row("steps", f"{report.steps:,}")
    table.add_row("tokens of the data", f"{every:,}, of which {share:.0f} % are trained")
    if report.expected is not None:
        add_tokens_sent(table, report.expected, prices)
    return table


def add_tokens_sent(table: Table, expected: ExpectedTokens, prices: Prices | None) -> None:
    """Add to a table what a run would send, what that costs, and how far a budget goes."""
    sent = expected.after(0)
    most = "at most " if any(sent[kind] for kind in expected.at_most) else ""
    table.add_row("tokens of the run", f"{most}{sent.total():,}")
    for kind in TOKEN_KINDS:
        if sent[kind]:
            table.add_row(f"  {kind}", f"{'at most ' if kind in expected.at_most else ''}{sent[kind]:,}")
    if prices is not None:
        table.add_row("cost", f"{most}{prices.cost(sent)}")
    budget = expected.settings.token_budget
    if budget is not None:
        steps = expected.steps_within(budget)
        table.add_row("token budget", f"{budget:,}, enough for {counted(steps, 'step')}")


def histogram(tokens: Sequence[int]) -> Table:
    """Draw how many tokens the datums have."""
    width = -(
        -(max(tokens) - min(tokens) + 1) // BINS
    )  # of whole numbers, so that no bin is empty by rounding
    edges = range(min(tokens), max(tokens) + width + 1, width)
    counts, _ = np.histogram(tokens, bins=np.array(edges))
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("tokens", justify="right")
    table.add_column("datums", justify="right")
    table.add_column("")
    for count, start, end in zip(counts, edges[:-1], edges[1:], strict=True):
        bar = "█" * round(BAR * count / max(counts))
        bounds = str(start) if width == 1 else f"{start} to {end - 1}"
        table.add_row(bounds, f"{count:,}", Text(bar, style="cyan"))
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
