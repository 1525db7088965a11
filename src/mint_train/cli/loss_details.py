"""What `mint-train losses NAME` prints of one loss: formula, sources, options, rows and an example row."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable
from itertools import islice

from mint_train.batches.vocabulary import QUANTITIES
from mint_train.losses.loss import Loss
from mint_train.losses.loss_options import option_rows
from mint_train.observers.terminal import column_count, wrapped
from mint_train.plugins.discovery import load_plugin
from mint_train.plugins.docstrings import describe_loss
from mint_train.rows.readers import read_rows

MOST_FORMS = 12
INDENT = "  "


def loss_details(name: str) -> str:
    """Describe one loss in full, wrapped to the terminal's width.

    Raises:
        PluginError: no such loss is installed, or it cannot be loaded.
    """
    plugin = load_plugin(name)
    loss = Loss.of(plugin)
    described = describe_loss(plugin.plugin)
    sections = [f"{name} ({plugin.origin})\n\n{indented(described.text)}"]
    sections += [f"{part}\n{indented(words)}" for part, words in described.parts.items()]
    reference = loss.reference or "none"
    sections.append(f"Reference\n{indented(f'{reference} by default')}")
    needs = "\n\n".join(f"{name}: {QUANTITIES[name].text}" for name in loss.vocabulary)
    if needs:
        sections.append(f"Needs of the whole vocabulary, on the embedded backend only\n{indented(needs)}")
    options = [row for row in option_rows(loss.options_model) if not row[0].startswith("reference ")]
    sections.append("\n".join(["Options (--set NAME=VALUE)", *in_columns(options)]))
    sections += [part for part in (forms_text(loss), example_row(loss)) if part]
    return "\n\n".join(sections)


def indented(text: str) -> str:
    """Indent paragraphs and wrap them to the terminal's width."""
    paragraphs = [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]
    return "\n\n".join(wrapped(f"{INDENT}{each}", column_count()) for each in paragraphs)


def in_columns(options: Iterable[tuple[str, str]]) -> list[str]:
    """Return options with their texts, or that there are none."""
    lines = [f"{INDENT}{name}\n{textwrap.indent(indented(text), INDENT)}" for name, text in options]
    return lines or [f"{INDENT}none"]


def forms_text(loss: Loss) -> str:
    """Name the forms of rows that the loss reads, and the fields of each beside the prompt."""
    forms = loss.terms[0].forms
    if forms is None:
        return ""
    lines = [f"{form.name}: {', '.join(form.needs)}" for form in islice(forms.answers, MOST_FORMS)]
    more = len(forms.answers) - MOST_FORMS
    lines += [f"and {more} more: see docs/data.md"] * (more > 0)
    title = "Rows: a prompt, and in one of these forms its answers (each row may have a weight)"
    return "\n".join([title, *(indented(line) for line in lines)])


def example_row(loss: Loss) -> str:
    """Return the first of the rows that a run without data trains on."""
    path = loss.bundled_rows
    if path is None:
        return ""
    row = json.dumps(read_rows(path)[0].values, ensure_ascii=False)
    return f"An example row\n{indented(row)}"
