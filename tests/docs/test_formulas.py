"""The losses' formulas as mathematics."""

from __future__ import annotations

import html
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parents[2] / "docs"
FORMULAS = re.findall(r"^- Formula: `(.*)`$", (DOCS / "losses.md").read_text("utf-8"), re.MULTILINE)


@pytest.fixture(scope="module")
def formulas() -> ModuleType:
    spec = importlib.util.spec_from_file_location("formulas", DOCS / "formulas.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("p_t", "<math><msub><mi>p</mi><mi>t</mi></msub></math>"),
        ("beta'", "<math><msup><mi>\u03b2</mi><mo>&#8242;</mo></msup></math>"),
        ("z^2, over a list", "<math><msup><mi>z</mi><mn>2</mn></msup></math>, over a list"),
    ],
)
def test_a_formula_is_mathml_and_the_words_beside_it_are_not(
    formulas: ModuleType, text: str, shown: str
) -> None:
    assert formulas.formula_html(text) == shown


def test_no_formula_loses_a_sign(formulas: ModuleType) -> None:
    assert len(FORMULAS) > 60
    letters = {letter: name for name, letter in formulas.GREEK.items()}
    signs = {shown: written for written, shown in formulas.SIGNS.items()} | {"\u2032": "'"}
    for text in FORMULAS:
        shown = formulas.formula_html(text.replace("`", ""))
        for tag in ("math", "mrow", "msub", "msup"):
            assert shown.count(f"<{tag}>") == shown.count(f"</{tag}>"), text
        kept = html.unescape(re.sub(r"<[^>]*>", "", shown))
        for drawn, written in (letters | signs).items():
            kept = kept.replace(drawn, written)
        assert re.sub(r"[\s\xa0_]", "", kept) == re.sub(r"[\s^_`]", "", without_commas(text)), text


def without_commas(text: str) -> str:
    """The text with a comma between indices, as they are shown."""
    return re.sub(r"_ref_(\w)", r"_ref,\1", text)
