"""A dry run: everything that is wrong with the data in one look, without a model and without training."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mint_train import hookimpl
from mint_train.groups.inspection import DataReport, inspect_data
from mint_train.losses.weighted_sum import open_loss
from mint_train.settings.merge import load_settings

RIVER = {"prompt": "Name a river.", "chosen": "The Danube.", "rejected": "Blue."}
ROWS: list[Any] = [
    RIVER,
    RIVER | {"rejected": "Green."},
    RIVER,
    RIVER | {"prompt": "Is <|im_end|> a river?"},
    RIVER | {"chosen": "Blue."},
    {"prompt": "Name a city.", "chosen": "Vienna."},
    RIVER | {"chosen": "The Danube, which is long, and flows through ten countries to the Black Sea."},
    RIVER | {"prompt": "Name a river. " * 30},
]


@pytest.fixture
def rows(write_rows: Callable[..., Path]) -> Path:
    return write_rows(ROWS)


def inspected(tokenizer: Any, data: Path, loss: str = "dpo", **settings: Any) -> DataReport:
    given = load_settings({"loss": loss, "data": str(data), "backend": "local"} | settings)
    return inspect_data(given, open_loss(loss, {}), tokenizer)


def lines(found: list[Any]) -> list[int]:
    return [source.line for source in found]


def test_every_kind_of_problem_is_found_with_its_line(rows: Path, tokenizer: Any) -> None:
    report = inspected(tokenizer, rows, max_length=40)
    assert lines([bad.source for bad in report.bad_rows]) == [5, 6]
    assert [(one.line, other.line) for one, other in report.repeated] == [(3, 1)]
    assert [(source.line, token) for source, token in report.special] == [(4, "<|im_end|>")]
    assert lines(report.cut) == [7]
    assert [line.split(": ")[0] for line in report.left_out] == [f"{rows}:8"]
    assert report.groups == 5
    assert report.problems == 2
    assert not report.broken
    assert not report.leaked


def test_tokens_and_steps_are_those_of_the_run(
    short_pairs: Path, tokenizer: Any, train: Callable[..., Any]
) -> None:
    report = inspected(tokenizer, short_pairs, batch_size=2, epochs=2)
    result = train(batch_size=2, epochs=2, steps=None)
    metrics = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert report.steps == result.steps == 6
    targets = sum(line["tokens"] for line in metrics)
    assert 2 * (sum(report.tokens) - len(report.tokens)) == targets
    assert report.datum_names == ("chosen", "rejected")
    assert len(report.trained) == len(report.tokens) == 10


def test_what_is_only_measured_does_not_count_as_trained(
    short_pairs: Path, tokenizer: Any, run_cli: Any
) -> None:
    report = inspected(tokenizer, short_pairs, "sft")
    assert report.trained[1::2] == [0] * 5
    assert all(report.trained[::2])
    status, out, _ = run_cli("--loss", "kto", "--dry-run")
    assert status == 0
    assert "Trained tokens on average: completion 10, unrelated completion 0." in out
    named = out.index("unrelated completion (label=1, not trained)")
    assert "《" in out[:named]
    assert "《" not in out[named:]
    status, out, _ = run_cli("--loss", "kto", "--dry-run", "--progress", "json")
    datums = json.loads(out.splitlines()[1])["datums"]
    assert [(one["name"], one["trained"]) for one in datums] == [
        ("completion", True),
        ("unrelated completion", False),
    ]


def test_names_of_datums_follow_the_options(run_cli: Any) -> None:
    status, out, _ = run_cli("--loss", "kto", "--set", "baseline=none", "--dry-run")
    assert status == 0
    assert "unrelated" not in out
    assert "completion (label=1): " in out


def test_a_break_of_the_contract_is_listed_and_the_rest_is_still_looked_at(
    short_pairs: Path, tokenizer: Any, install_loss: Callable[[str, object], None]
) -> None:
    class FlattensWrong:
        """Swaps what it should not, in one row."""

        EXTENDS = "dpo"

        @hookimpl
        def flatten(self, example: Any, renderer: Any) -> Any:
            texts = [example.chosen, example.rejected][: 1 if example.prompt == "Say two." else 2]
            return renderer.datums(example.prompt, texts)

    install_loss("wrong", FlattensWrong())
    report = inspected(tokenizer, short_pairs, "wrong")
    assert report.broken == [f"{short_pairs}:2: pair 0 has 1 datum; a pair is [chosen, rejected]"]
    assert (report.groups, report.problems) == (4, 1)


def test_held_out_rows_that_are_trained_on_are_found(
    write_rows: Callable[..., Path], tokenizer: Any, rows: Path
) -> None:
    held_out = write_rows([RIVER | {"prompt": "Unseen?"}, RIVER], "held_out.jsonl")
    report = inspected(tokenizer, rows, eval_data=str(held_out))
    assert [(one.path, one.line, other.line) for one, other in report.leaked] == [(str(held_out), 2, 1)]


def test_a_held_out_row_with_another_prompt_may_hold_the_same_tokens(
    write_rows: Callable[..., Path], tokenizer: Any
) -> None:
    """Found by the dry run as by the run, whose note names how many there are."""
    rows = write_rows([{"prompt": "one two", "chosen": " three", "rejected": " four"}])
    moved = [{"prompt": "one", "chosen": " two three", "rejected": " two four"}]
    held_out = write_rows(moved, "held_out.jsonl")
    settings = {"eval_data": str(held_out), "render": "raw"}
    report = inspected(tokenizer, rows, **settings)
    assert [(one.line, other.line) for one, other in report.leaked] == [(1, 1)]


def test_the_screen_and_the_exit_status(rows: Path, run_cli: Any) -> None:
    status, out, err = run_cli("--loss", "dpo", "--data", rows, "--max-length", 40, "--dry-run")
    assert status == 2
    assert err == (
        "mint-train: 2 rows would stop this run; --on-bad-row skip leaves out those that cannot be read\n"
    )
    for shown in (
        f"{rows}:6: field",
        "Rows that repeat an earlier one: 1",
        "Rows that --max-length 40 cuts: 1",
        "Trained tokens on average: chosen",
        "The Danube.<|im_end|>",
    ):
        assert shown in out
    assert not Path("runs").exists()
    ended = run_cli("--loss", "dpo", "--data", rows, "--max-length", 40, "--dry-run", "--on-bad-row", "skip")
    assert (ended.status, ended.err) == (0, "")


@pytest.mark.parametrize("loss", ["kto", "plackett-luce", "policy-gradient", "dpo+0.2*sft"])
def test_every_kind_of_loss_can_be_looked_at(run_cli: Any, loss: str) -> None:
    status, out, err = run_cli("--loss", loss, "--dry-run")
    assert (status, err) == (0, "")
    assert "Example: " in out


def test_neither_key_nor_model_is_touched(
    rows: Path, tmp_path: Path, starter_model_folder: Path, warm_python: str
) -> None:
    """A model folder with a tokenizer alone, a key that no service takes, an address where none is."""
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (starter_model_folder / name).exists():
            (folder / name).write_bytes((starter_model_folder / name).read_bytes())
    arguments = ["--loss", "dpo", "--data", str(rows), "--on-bad-row", "skip", "--model", str(folder)]
    ended = subprocess.run(
        [warm_python, "-m", "mint_train", *arguments, "--dry-run"],
        env={"MINT_API_KEY": "sk-none", "MINT_BASE_URL": "http://127.0.0.1:9", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "sk-none" not in ended.stdout
