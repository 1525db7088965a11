"""The held-out rows that a report shows: which they are, their figures, and their texts."""

from __future__ import annotations

import re
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from few_rows import HELD_OUT, lines

RunCli = Callable[..., Any]
COMMON = ("--batch-size", "2", "--lr", "1e-2")


@pytest.fixture
def train(run_cli: RunCli, starter_model_folder: Path, short_pairs: Path) -> Callable[..., None]:
    """Train a few steps into the folder "run"."""

    def run(*arguments: object, loss: str = "dpo", steps: int = 2) -> None:
        given = ("--model", starter_model_folder, "--data", short_pairs, "--steps", steps)
        assert run_cli("--loss", loss, *COMMON, *given, "--output", "run", *arguments).status == 0

    return run


@pytest.fixture
def examples(run_cli: RunCli) -> Callable[..., str]:
    """Plot a run, and return what its page says of held-out rows, as text."""

    def plot(run: str | Path = "run") -> str:
        assert run_cli("plot", run).status == 0
        page = Path(run, "report.html").read_text()
        shown = re.search(r"<h2>(Held-out rows.*?)<div class=.columns", page, re.DOTALL)
        return unescape(re.sub(r"<[^>]+>", "", shown[1])) if shown else ""

    return plot


def replies(*texts: str) -> list[dict[str, Any]]:
    return [{"role": "assistant", "text": text, "rank": rank} for rank, text in enumerate(texts)]


def test_groups_of_one_row_have_their_own_figures(
    train: Callable[..., None], examples: Callable[..., str], write_rows: Callable[..., Path]
) -> None:
    first = replies("One.", "No.")
    first[0]["replies"] = [{"role": "prompter", "text": "And two?", "replies": replies("Two it is.", "Why?")}]
    tree = {"role": "prompter", "text": "Say one.", "replies": first}
    train("--eval-data", write_rows([{"prompt": tree}], "tree.jsonl"))
    margins = [
        [row["metrics"]["mean_margin"] for row in lines(f"run/evaluations/step-{step:06d}.jsonl")]
        for step in (0, 2)
    ]
    shown = re.findall(r"mean margin (\S+) → (\S+)", examples())
    assert sorted(shown) == sorted(
        (f"{before:.4g}", f"{after:.4g}") for before, after in zip(*margins, strict=True)
    )


def test_a_resumed_run_is_compared_with_how_it_began(
    train: Callable[..., None], examples: Callable[..., str], run_cli: RunCli, write_rows: Callable[..., Path]
) -> None:
    train("--eval-data", write_rows(HELD_OUT, "held.jsonl").name)
    assert run_cli("resume", "run", "--steps", 3).status == 0
    sources = [
        [row["source"] for row in lines(f"run/evaluations/step-{step:06d}.jsonl")] for step in (0, 2, 3)
    ]
    assert sources[0] == sources[1] == sources[2]
    assert sources[0][0] == f"{Path('held.jsonl').absolute()}:1"
    assert len(re.findall(r"mean margin (\S+) → (\S+)", examples())) == len(HELD_OUT)
