"""The page of losses has a section for each loss, and its figures are those of the code."""

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


ALL = sorted({entry.name for entry in entry_points(group="mint_train.losses")})


def section(name: str) -> dict[str, str]:
    """Return the parts of a loss's section by name, its options too."""
    (text,) = re.findall(rf"^### {re.escape(name)}\n(.*?)(?=^##)", PAGE, flags=re.MULTILINE | re.DOTALL)
    options = dict(re.findall(r"^  - `(\w+)=(.*?)`: .", text, flags=re.MULTILINE))
    return dict(re.findall(r"^- (\w+): (.+)$", text, flags=re.MULTILINE)) | options


@pytest.mark.parametrize("name", ALL)
def test_a_section_names_each_option_with_its_default(name: str) -> None:
    listed = section(name)
    assert listed.pop("Formula")
    assert listed.pop("Paper")
    assert listed.pop("Use")
    loss = Loss.of(load_plugin(name))
    assert re.findall(r"`(\w+)`", listed.pop("Vocabulary", "")) == list(loss.vocabulary)
    own = loss.options.model_dump()
    wants = own.pop("reference", None)
    assert (listed.pop("Reference") == "none") == (wants is None)
    assert (listed.pop("Options", None) == "none") == (not own)
    assert bool(listed.pop("Defaults", "")) == bool(own), "say where the defaults are from"
    assert set(listed) == set(own)
    for option, text in listed.items():
        given = None if text == "none" and own[option] is None else text
        assert getattr(loss.options_model.model_validate({option: given}), option) == own[option]


@pytest.mark.parametrize("name", FAMILY)
def test_result_stands_on_the_page(name: str) -> None:
    results = PAGE.partition("<!-- results")[2]
    (line,) = re.findall(rf"^\| `(?:sft\+)?{re.escape(name)}` \|.*$", results, flags=re.MULTILINE)
    first, last = (float(cell) for cell in line.split("|")[2:4])
    assert last < first or name in ("asft", "dft")  # their weights rise with what they weigh


def test_page_is_not_stale() -> None:
    assert runpy.run_path(str(DOCS / "make_losses_page.py"))["losses_page"]() == PAGE, (
        "run python docs/make_losses_page.py"
    )
