"""A dry run for another program: a line of JSON for the data, and one for each example."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from mint_train.batches.groups import Group
from mint_train.groups.inspection import DataReport
from mint_train.observers.terminal import echo
from mint_train.settings.prices import Prices


def print_events(report: DataReport, tokenizer: Any, prices: Prices | None = None) -> None:
    """Print a report as events: `data`, then an `example` for each row that is shown."""
    events = [
        data_event(report, prices),
        *(example_event(report, *shown, tokenizer) for shown in report.examples),
    ]
    for event in events:
        echo(json.dumps(event, ensure_ascii=False, default=str))


def data_event(report: DataReport, prices: Prices | None) -> dict[str, Any]:
    """Return what is in the data and what the run would send, as JSON has it."""
    sent = report.expected.after(0) if report.expected else {}
    return {
        "event": "data",
        "data": report.data,
        "render": report.rendering.form,
        "groups": report.groups,
        "steps": report.steps,
        "tokens": sum(report.tokens),
        "trained_tokens": sum(report.trained),
        "tokens_sent": dict(sent),
        "cost": asdict(prices.cost(sent)) if prices else None,
        "bad_rows": [bad.describe() for bad in report.bad_rows],
        "broken": report.broken,
        "left_out": report.left_out,
        "unread_columns": dict(report.unread),
        "notes": [*report.notes, *report.remarks],
    }


def example_event(report: DataReport, group: Group, form: str | None, tokenizer: Any) -> dict[str, Any]:
    """Return one row as it is trained: each datum's tokens, the weight of each as a target, and if it is."""
    return {
        "event": "example",
        "source": str(group.source),
        "form": form,
        "render": report.rendering.form,
        "tokenizer": str(tokenizer.name_or_path),
        "datums": list(datums_of(group, report, tokenizer)),
    }


def datums_of(group: Group, report: DataReport, tokenizer: Any) -> Iterator[dict[str, Any]]:
    """Yield the datums of a group as JSON has them."""
    for index, arrays in enumerate(group.arrays):
        tokens = [*arrays.inputs.tolist(), int(arrays.targets[-1])]
        yield {
            "name": datum_name(report, index),
            "text": tokenizer.decode(tokens),
            "tokens": tokens,
            # nothing predicts the first token
            "weights": [0.0, *arrays.weights.tolist()],
            "trained": index not in report.untrained,
            "attached": dict(group.attached[index]) if group.attached else {},
        }


def datum_name(report: DataReport, index: int) -> str:
    """Return what the loss calls a datum of a group, or its number from 1."""
    return report.datum_names[index] if index < len(report.datum_names) else str(index + 1)
