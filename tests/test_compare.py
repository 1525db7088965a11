"""`mint-train compare`: each loss a run of its own, one table, and one failure that ends no other run."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from few_rows import PAIRS, lines, write_lines

import mint_train
from mint_train.cli.compare import Contender, print_results
from mint_train.errors import INTERRUPTED, OptionError, PluginError
from mint_train.report.comparison import Compared, comparison_rows, print_comparison
from mint_train.run_folder.metric import Metric

RunCli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def data(write_rows: Callable[..., Path]) -> Path:
    return write_rows([row | {"prompt": f"{row['prompt']} {n}"} for n in range(4) for row in PAIRS])


def test_three_losses_on_one_split(
    run_cli: RunCli, data: Path, starter_model_folder: Path, warm_python: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In processes of their own, as a user has them, with what is one loss's own given to that one."""
    monkeypatch.setattr(sys, "executable", warm_python)
    own_loss()
    status, out, err = run_cli(
        "compare",
        "dpo",
        "./own.py",
        "simpo",
        "--data",
        data,
        "--model",
        starter_model_folder,
        "--steps",
        "2",
        "--lr",
        "1e-2",
        "--batch-size",
        "4",
        "--no-pipeline",
        "--set",
        "simpo.beta=3",
        *("--sample-prompts", write_lines(Path("prompts.jsonl"), [{"prompt": "Say six."}])),
        *("--sample-tokens", "2", "--judge", "length", "--judge-set", "unit=characters"),
        "--output",
        "all",
    )
    assert status == 1, out + err
    for folder in ("dpo", "simpo"):
        assert all(
            line["score"] == -len(line["completion"])
            for line in lines(Path("all", folder, "samples/step-000002.jsonl"))
        )
        described = json.loads(Path("all", folder, "run.json").read_text())
        assert (described["status"], described["settings"]["pipeline"]) == ("done", False)
        assert described["settings"]["eval_fraction"] == 0.1
        assert not described["settings"]["second_adapter"], "runs side by side have a slot each"
        assert described["data"]["held_out"][0]["groups"] == 2
    assert described["losses"][0]["options"]["beta"] == 3
    rows = [
        [row["source"] for row in lines(Path("all", folder, "evaluations/step-000002.jsonl"))]
        for folder in ("dpo", "simpo")
    ]
    assert rows[0] == rows[1]
    written = out.splitlines()
    start = next(place for place, line in enumerate(written) if line.startswith("loss "))
    table = written[start : start + 4]
    assert written[start + 4 :] == ["Wrote all/comparison.png", "Wrote all/comparison.html", "Runs: all"]
    assert Path("all/comparison.png").stat().st_size > 10_000
    assert re.split(r"  +", table[0])[:4] == ["loss", "steps", "pair_accuracy before", "pair_accuracy"]
    assert table[3].split()[:2] == ["./own.py", "failed"]
    assert 'the loss "own" raised RuntimeError at own.py' in table[3]
    shown = {line.split()[0]: line for line in table[1:3]}
    for folder, line in shown.items():
        last = lines(Path("all", folder, "evaluations.jsonl"))[-1]
        low, high = last["intervals"]["pair_accuracy"]
        assert f"{last['metrics']['pair_accuracy']:.2f} [{low:.2f}, {high:.2f}]" in line
        assert f"{last['metrics']['loss']:.4g}" in line
    for folder in ("dpo", "simpo"):
        assert f"[{folder}] Step 2: loss=" in out
    # one after another on this machine
    assert out.rindex("[dpo] ") < out.index("[simpo] ")


def own_loss() -> Path:
    path = Path("own.py")
    path.write_text(
        "import mint_train\n\n\n"
        '@mint_train.loss(extends="dpo")\n'
        "def own(batch, logprobs):\n"
        '    """Fail."""\n'
        '    raise RuntimeError("on purpose")\n'
    )
    return path


def compared(loss: str, accuracy: float, *, problem: str | None = None, **more: float) -> Compared:
    first = {"step": 0, "metrics": {"loss": 1.0, "accuracy": 0.25}, "intervals": {}}
    metrics = {"loss": 0.5, "accuracy": accuracy, **more}
    last = {"step": 9, "metrics": metrics, "intervals": {"accuracy": [0.1, 0.9]}}
    described = {
        f"{loss}/own": Metric(".1f", shown=True),
        "accuracy": Metric(".2f", better="higher", shown=True),
    }
    return Compared(loss, described, first, last, problem)


def test_the_best_comes_first_and_what_failed_last(capsys: pytest.CaptureFixture[str]) -> None:
    results = [
        compared("low", 0.5, **{"low/own": 9.0}),
        compared("bad", 1.0, problem="no memory"),
        compared("high", 0.75),
    ]
    print_comparison(results)
    assert capsys.readouterr().out.splitlines() == [
        "loss  steps   accuracy before  accuracy           loss value",
        "high  9       0.25             0.75 [0.10, 0.90]  0.5",
        "low   9       0.25             0.50 [0.10, 0.90]  0.5",
        "bad   failed                                                  no memory",
    ]


def test_a_metric_that_should_fall_puts_the_lowest_first() -> None:
    falling = {"accuracy": Metric(".2f", better="lower", shown=True)}
    results = [
        Compared(one.loss, falling, one.first, one.last, None)
        for one in (compared("high", 0.75), compared("low", 0.5))
    ]
    assert [row[0] for row in comparison_rows(results)[1]] == ["low", "high"]


def test_losses_without_a_common_metric_keep_their_order() -> None:
    first, second = compared("one", 0.5), compared("two", 0.75)
    other = Compared(
        "two",
        {"ratio": Metric(".2f", shown=True)},
        second.first,
        second.last | {"metrics": {"loss": 0.5, "ratio": 1.0}},
        None,
    )
    header, rows = comparison_rows([first, other])
    assert header == ["loss", "steps", "loss value"]
    assert [row[0] for row in rows] == ["one", "two"]


def test_a_comparison_replaces_no_run_unasked(
    run_cli: RunCli,
    data: Path,
    starter_model_folder: Path,
    train: Callable[..., Any],
    warm_python: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "executable", warm_python)
    train("ipo", output="all/ipo", steps=1, progress="quiet")
    before = Path("all/ipo/metrics.jsonl").read_text()
    given = ("dpo", "ipo", "--data", data, "--model", starter_model_folder, "--steps", 1, "--output", "all")
    status, out, err = run_cli("compare", *given)
    refused = "--output all already holds a run of ipo; name another folder, or add --overwrite"
    assert (status, out, err) == (2, "", f"mint-train: {refused}\n")
    with pytest.raises(OptionError, match="output all already holds a run of ipo"):
        mint_train.compare(["dpo", "ipo"], data=data, output="all")
    assert sorted(path.name for path in Path("all").iterdir()) == ["ipo"]
    assert Path("all/ipo/metrics.jsonl").read_text() == before
    assert run_cli("compare", *given, "--overwrite")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("dpo", "dpo"), "two of the losses have the same name"),
        (("dpo", "nope"), 'no loss "nope" is installed'),
        (
            ("dpo", "ipo", "--set", "beta=2"),
            "--set beta: write it as --set LOSS.KEY=VALUE, LOSS one of dpo, ipo",
        ),
        (("dpo", "ipo", "--set", "ipo.gamma=2"), "gamma"),
        (("dpo", "ipo", "--lr", "7"), "--lr=7: input should be less than or equal to 1"),
        (("dpo", "ipo", "--data", "-"), "--data -: standard input can be read only once"),
    ],
)
def test_what_is_wrong_shows_before_anything_begins(
    run_cli: RunCli, arguments: tuple[str, ...], message: str
) -> None:
    status, out, err = run_cli("compare", *arguments, "--output", "all")
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert not Path("all").exists()


def test_all_losses_get_the_rows_of_a_generator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given: dict[str, Any] = {"steps": 1, "backend": "local", "progress": "quiet"}
    held_out = {"one": PAIRS[3:]}
    for data in ((row for row in PAIRS[:3]), [(iter(PAIRS[:3]), 0.5), (iter(PAIRS[3:]), 0.5)]):
        found = mint_train.compare(
            ["dpo", "ipo"], data=data, eval_data=held_out, output="runs", overwrite=True, **given
        )
        assert {name: result.status for name, result in found.items()} == {"dpo": "done", "ipo": "done"}


def test_why_a_run_failed_is_said_in_keywords(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = mint_train.compare(
        ["dpo", "ipo"], data=PAIRS, eval_fraction=0.1, backend="local", progress="quiet", output="runs"
    )
    for result in found.values():
        assert result.status == "failed"
        assert str(result.problem).startswith("eval_fraction 0.1: of 5 rows it holds out 0")


def test_a_function_judges_the_samples_of_each_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    prompts = write_lines(tmp_path / "prompts.jsonl", [{"prompt": "Say six."}])
    given: dict[str, Any] = {"data": PAIRS, "steps": 1, "backend": "local", "progress": "quiet"}
    given |= {
        "sample_prompts": str(prompts),
        "sample_tokens": 2,
        "judge": lambda _, texts: [7.0] * len(texts),
    }
    found = mint_train.compare(["dpo", "ipo"], eval_data=PAIRS[3:], output="runs", **given)
    for result in found.values():
        assert result.status == "done", result.error
        assert {line["score"] for line in lines(result.folder / "samples/step-000001.jsonl")} == {7.0}


def test_a_wrong_judge_is_refused_before_anything_begins(tmp_path: Path, run_cli: RunCli, data: Path) -> None:
    prompts = write_lines(tmp_path / "prompts.jsonl", [{"prompt": "Say six."}])
    given: dict[str, Any] = {"data": str(data), "sample_prompts": str(prompts), "output": tmp_path / "all"}
    with pytest.raises(PluginError, match='no judge "nosuch" is installed'):
        mint_train.compare(["dpo", "ipo"], judge="nosuch", **given)
    asked = ("--data", data, "--sample-prompts", prompts, "--output", tmp_path / "all")
    status, _, err = run_cli("compare", "dpo", "ipo", *asked, "--judge", "nosuch")
    assert (status, err.count("\n")) == (2, 1)
    assert 'no judge "nosuch" is installed' in err
    assert not (tmp_path / "all").exists()


def test_an_interrupt_is_passed_on_once_and_every_state_is_saved(
    data: Path, starter_model_folder: Path, tmp_path: Path, warm_python: str
) -> None:
    command = [
        warm_python,
        "-m",
        "mint_train",
        "compare",
        "dpo",
        "ipo",
        "--data",
        data,
        "--steps",
        "100000",
        "--model",
        starter_model_folder,
        "--output",
        "all",
    ]
    with subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("[dpo] Step 2:"):
                process.send_signal(signal.SIGINT)
                break
        out, err = process.communicate(timeout=600)
    assert process.returncode == 130, err
    assert "Traceback" not in out + err
    described = json.loads((tmp_path / "all/dpo/run.json").read_text())
    assert described["status"] == "interrupted"
    assert lines(tmp_path / "all/dpo/checkpoints.jsonl")[-1]["step"] == described["finished_steps"] >= 2
    assert "interrupted; continue with: mint-train resume all/dpo" in out
    assert re.search(r"^ipo +failed +not begun$", out, re.MULTILINE)
    assert not (tmp_path / "all/ipo").exists()


def test_a_run_that_was_stopped_before_it_began_is_not_resumed(tmp_path: Path) -> None:
    stopped = Contender(
        "dpo", {}, tmp_path / "dpo", [], "rich", process=cast(Any, object()), ended=INTERRUPTED
    )
    assert stopped.result().problem == "not begun"


def test_each_held_out_set_has_a_table_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = {"loss": Metric(".3f", better="lower", shown=True)}
    contender = Contender("dpo", metrics, Path("runs/dpo"), [], "auto", ended=0)
    for step, helpful, other in ((0, 0.5, 0.75), (2, 0.25, 0.125)):
        for name, value in (("helpful", helpful), ("other", other)):
            contender.evaluations.append(
                {"step": step, "held_out": name, "metrics": {"loss": value}, "intervals": {}}
            )
    print_results([contender])
    out = capsys.readouterr().out
    helpful, other = out.partition("On other:")[::2]
    assert "On helpful:" in helpful
    assert "0.500" in helpful
    assert "0.250" in helpful
    assert "0.750" in other
    assert "0.125" in other
