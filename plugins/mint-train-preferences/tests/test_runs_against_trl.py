"""Whole runs of every loss that TRL has, beside TRL's own trainers: each step's loss, and the weights."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from trl_cases import CASES, Case

PAGE = Path(__file__).parents[3] / "docs" / "losses.md"
BEGIN, END = "<!-- parity: plugins/mint-train-preferences/tests/trl_runs.py -->", "<!-- /parity -->"


def page_rows() -> list[list[str]]:
    """Read the parity table of the losses page, a list of cells a row."""
    table = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    rows = [line.strip("| ").split(" | ") for line in table.strip().splitlines()]
    return rows[2:]


def test_the_page_lists_every_case() -> None:
    assert [row[:2] for row in page_rows()] == [[case.theirs, f"`{case.ours}`"] for case in CASES]


def test_the_page_is_within_the_limits() -> None:
    for theirs, _, loss, weights in page_rows():
        assert re.fullmatch(r"[125]e-\d\d", loss), theirs
        assert float(loss) <= 1e-4, theirs
        assert float(weights) <= 1e-3, theirs


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model that both sides train."""
    pytest.importorskip("trl", reason="TRL is the oracle of these tests and is not installed")
    from trl_runs import make_model

    folder = tmp_path_factory.mktemp("parity")
    make_model(folder)
    return folder


@pytest.mark.oracle
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.ours} {case.theirs}".replace("`", ""))
def test_a_run_is_that_of_trl(case: Case, model_folder: Path) -> None:
    from trl_runs import LOSS_LIMIT, WEIGHTS_LIMIT, differences

    found = differences(case, model_folder)
    assert found.loss <= LOSS_LIMIT
    assert found.weights <= WEIGHTS_LIMIT
