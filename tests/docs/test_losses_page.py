"""The page of losses has a row for each loss of the family, and the row tells the truth."""

from __future__ import annotations

import re
import runpy
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from mint_train.losses.loss import Loss
from mint_train.plugins.discovery import load_plugin

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "losses.md").read_text(encoding="utf-8")
FAMILY = sorted(
    entry.name
    for entry in entry_points(group="mint_train.losses")
    if entry.dist is not None and entry.dist.name in ("mint-train-dpo", "mint-train-preferences")
)


def row(name: str) -> list[str]:
    """Return the cells of a loss's row in the first table that has one."""
    (line,) = re.findall(rf"^\| `{re.escape(name)}` \| `.*$", PAGE, flags=re.MULTILINE)
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


@pytest.mark.parametrize("name", FAMILY)
def test_row_names_each_option_with_its_default(name: str) -> None:
    _, formula, reference, options, paper, use = row(name)
    assert formula
    assert paper
    assert use
    loss = Loss.of(load_plugin(name))
    own = loss.options.model_dump()
    wants = own.pop("reference", None)
    assert (reference == "no") == (wants is None)
    listed = dict(part.strip("`").split("=") for part in options.split(", ")) if options != "none" else {}
    assert set(listed) == set(own)
    for option, text in listed.items():
        given = None if text == "none" else text
        assert getattr(loss.options_model.model_validate({option: given}), option) == own[option]


@pytest.mark.parametrize("name", FAMILY)
def test_result_stands_on_the_page(name: str) -> None:
    results = PAGE.partition("<!-- results")[2]
    (line,) = re.findall(rf"^\| `(?:sft\+)?{re.escape(name)}` \|.*$", results, flags=re.MULTILINE)
    first, last = (float(cell) for cell in line.split("|")[2:4])
    assert last < first or name == "dft"  # its weights rise with what they weigh


def test_page_is_not_stale() -> None:
    assert runpy.run_path(str(DOCS / "make_losses_page.py"))["losses_page"]() == PAGE, (
        "run python docs/make_losses_page.py"
    )
