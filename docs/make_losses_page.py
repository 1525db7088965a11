"""Write the table of losses.md from the losses' own docstrings and options, between the page's marks.

Run it after a change: `python docs/make_losses_page.py`. A test fails while the table is stale. The results
further down the page come from `python benchmarks/bundled_pairs.py --write docs/losses.md`.
"""

from __future__ import annotations

import inspect
import re
from importlib.metadata import entry_points
from pathlib import Path

from pydantic import BaseModel

from mint_train.errors import OptionError
from mint_train.losses.loss import Loss
from mint_train.plugins.discovery import load_plugin

PAGE = Path(__file__).with_name("losses.md")
FAMILY = ("mint-train-dpo", "mint-train-preferences")
BEGIN, END = "<!-- table: docs/make_losses_page.py -->", "<!-- /table -->"
COLUMNS = ("loss", "formula, per pair", "reference", "options", "paper", "when to use it")


def losses_page() -> str:
    """Return the page with its table made anew."""
    rows = [COLUMNS, ["---"] * len(COLUMNS), *(row(name) for name in family())]
    table = "\n".join([BEGIN, "", *(table_row(cells) for cells in rows), "", END])
    page = PAGE.read_text(encoding="utf-8")
    return re.sub(f"{re.escape(BEGIN)}.*{re.escape(END)}", lambda _: table, page, flags=re.DOTALL)


def family() -> list[str]:
    """List the installed losses of the family."""
    entries = entry_points(group="mint_train.losses")
    return sorted(entry.name for entry in entries if entry.dist is not None and entry.dist.name in FAMILY)


def row(name: str) -> list[str]:
    """Describe one loss, a cell per column."""
    plugin = load_plugin(name)
    parts = sections(inspect.cleandoc(plugin.plugin.__doc__ or ""))
    loss = Loss.of(plugin)
    formula = re.sub(r"`(reference=none|length_normalized=false|scale=linear)`", r"\1", parts["Formula"])
    return [
        f"`{name}`",
        f"`{formula}`",
        reference_cell(loss, name),
        options_cell(loss.options_model),
        parts["Paper"],
        parts["Use"],
    ]


def sections(docstring: str) -> dict[str, str]:
    """Take the parts `Formula: ...`, `Paper: ...` and `Use: ...` out of a docstring, one line each."""
    found = re.findall(r"^(Formula|Paper|Use): (.*(?:\n +.*)*)", docstring, flags=re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


def reference_cell(loss: Loss, name: str) -> str:
    """Say whether a loss needs a reference."""
    if "reference" not in loss.options_model.model_fields:
        return "no"
    try:
        Loss.of(load_plugin(name), {"reference": "none"})
    except OptionError:
        return "yes"
    return f"as you like (default `{loss.reference or 'none'}`)"


def options_cell(model: type[BaseModel]) -> str:
    """List a loss's own options with their defaults."""
    fields = {name: field for name, field in model.model_fields.items() if name != "reference"}
    return ", ".join(f"`{name}={shown(field.default)}`" for name, field in fields.items()) or "none"


def shown(value: object) -> str:
    """Write a default as `--set` takes it."""
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def table_row(cells: list[str] | tuple[str, ...]) -> str:
    """Lay out one row of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    PAGE.write_text(losses_page(), encoding="utf-8")
