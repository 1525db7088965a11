"""The held-out rows that a report shows: which they are, their figures, and their texts."""

from __future__ import annotations

import csv
import gzip
import json
import re
from collections.abc import Callable, Sequence
from html import unescape
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from few_rows import HELD_OUT, lines
from run_files import run_description

from mint_train.report.curves import Run
from mint_train.report.row_texts import row_texts
from mint_train.rows.readers import DataSource, open_data
from mint_train.run_folder.description import HeldOutDescription
from mint_train.settings.data_items import DataItem, written_held_out

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


@pytest.fixture
def make_described(tmp_path: Path) -> Callable[..., Run]:
    """Describe a run that was evaluated on the given sources: one, or several by the names of their sets."""

    def make(eval_data: DataSource | dict[str, DataSource]) -> Run:
        sets = eval_data if isinstance(eval_data, dict) else {"": eval_data}
        held_out = [
            HeldOutDescription(name=name, path=str(data), sha256=data.fingerprint(), groups=3, left_out=[])
            for name, data in sets.items()
        ]
        recorded = written_held_out({name: DataItem(str(data)) for name, data in sets.items()})
        described = run_description(settings={"loss": "dpo", "eval_data": recorded})
        described = described.model_copy(
            update={"data": described.data.model_copy(update={"held_out": held_out})}
        )
        return Run("run", tmp_path / "run", described, [], [], [])

    return make


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


def test_only_the_file_that_was_evaluated_is_quoted(
    train: Callable[..., None],
    examples: Callable[..., str],
    write_rows: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    held = write_rows(HELD_OUT, "held.jsonl")
    train("--eval-data", held.name)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "held.jsonl").write_text(held.read_text().replace("Say", "Shout"))
    monkeypatch.chdir(elsewhere)
    shown = examples(tmp_path / "run")
    assert "Say seven." in shown
    assert "Shout" not in shown
    held.write_text(held.read_text().replace("Say", "Shout"))
    shown = examples(tmp_path / "run")
    assert "\nheld.jsonl:2: mean margin" in shown
    assert "seven" not in shown


def write_csv(path: Path, rows: Sequence[dict[str, str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def write_parquet(path: Path, rows: Sequence[dict[str, str]]) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)


def write_gzip(path: Path, rows: Sequence[dict[str, str]]) -> None:
    path.write_bytes(gzip.compress(b"".join(json.dumps(row).encode() + b"\n" for row in rows)))


@pytest.mark.parametrize(
    ("files", "write", "given"),
    [
        (["held.csv"], write_csv, "held.csv"),
        (["held.parquet"], write_parquet, "held.parquet"),
        (["one.jsonl.gz", "two.jsonl.gz"], write_gzip, "*.jsonl.gz"),
    ],
)
def test_rows_of_every_kind_of_file_have_their_texts(
    make_described: Callable[..., Run],
    files: list[str],
    write: Callable[..., None],
    given: str,
    tmp_path: Path,
) -> None:
    for name in files:
        write(tmp_path / name, [row | {"prompt": f"{row['prompt']} ({name})"} for row in HELD_OUT])
    data = open_data(str(tmp_path / given))
    sources = [str(row.source) for row in data.rows()]
    run = make_described(eval_data=data)
    assert [texts["prompt"] for texts in row_texts(run, sources).values()] == [
        f"{row['prompt']} ({name})" for name in files for row in HELD_OUT
    ]
    assert list(row_texts(run, sources[-1:])) == sources[-1:]


def test_one_changed_set_of_two_does_not_lend_the_other_s_texts(
    make_described: Callable[..., Run], write_rows: Callable[..., Path]
) -> None:
    files = {name: write_rows(HELD_OUT, f"{name}.jsonl") for name in ("easy", "hard")}
    run = make_described({name: open_data(file) for name, file in files.items()})
    files["hard"].write_text("")
    sources = [f"{file}:2" for file in files.values()]
    assert list(row_texts(run, sources)) == sources[:1]


def test_a_share_of_the_loss_s_own_rows_has_texts(
    run_cli: RunCli, examples: Callable[..., str], starter_model_folder: Path
) -> None:
    given = ("--model", starter_model_folder, "--eval-fraction", "0.5", "--output", "run")
    assert run_cli("--loss", "dpo", *COMMON, *given).status == 0
    assert re.search("prompt.+chosen.+rejected", examples())


def test_rows_without_a_loss_of_their_own_are_not_those_of_the_highest(
    run_cli: RunCli, examples: Callable[..., str], starter_model_folder: Path
) -> None:
    given = ("--model", starter_model_folder, "--eval-fraction", "0.5", "--output", "run")
    assert run_cli("--loss", "kto", "--lr", "1e-2", *given).status == 0
    assert all("loss" not in row["metrics"] for row in lines("run/evaluations/step-000003.jsonl"))
    assert "highest loss" not in examples()
