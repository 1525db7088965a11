"""The best state of a run: chosen by a held-out figure, kept, and what later commands take."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from few_rows import PAIRS, lines, write_lines

import mint_train
from mint_train.backends.start import find_start
from mint_train.errors import OptionError, UserError
from mint_train.run_folder.folder import RunFolder
from mint_train.run_folder.metric import Metric
from mint_train.run_folder.selection import Selection
from mint_train.sampling.policy import find_policy
from mint_train.settings.merge import load_settings
from mint_train.trained.find import find_trained

METRICS = {"accuracy": Metric(better="higher"), "margin": Metric()}


def evaluated(*values: float, held_out: str = "", metric: str = "accuracy") -> list[dict[str, Any]]:
    return [
        {"step": step, "held_out": held_out, "metrics": {metric: value}} for step, value in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("said", "sets", "expected"),
    [
        ("accuracy", [""], ("", "accuracy", "higher")),
        ("loss", [""], ("", "loss", "lower")),
        ("margin:max", [""], ("", "margin", "higher")),
        ("accuracy:min", ["own"], ("own", "accuracy", "lower")),
        ("safe/accuracy", ["own", "safe"], ("safe", "accuracy", "higher")),
        ("dpo/loss:min", [""], ("", "dpo/loss", "lower")),
    ],
)
def test_a_selection_is_read(said: str, sets: list[str], expected: tuple[str, str, str]) -> None:
    found = Selection.parse(said, METRICS, sets)
    assert (found.held_out, found.metric, found.better) == expected


@pytest.mark.parametrize(
    ("said", "sets", "problem"),
    [
        ("accuracy", [], "needs held-out rows: give --eval-data or --eval-fraction"),
        ("margin", [""], "does not say which side of margin is better; write margin:max or margin:min"),
        ("acuracy", [""], 'which side of acuracy is better; did you mean "accuracy"'),
        ("accuracy", ["own", "safe"], "several held-out sets; write own/accuracy or safe/accuracy"),
    ],
)
def test_a_selection_without_a_meaning_is_refused(said: str, sets: list[str], problem: str) -> None:
    with pytest.raises(OptionError) as raised:
        Selection.parse(said, METRICS, sets)
    assert problem in str(raised.value)


def test_the_first_of_equal_states_is_the_best_and_step_0_is_none() -> None:
    chosen = Selection("", "accuracy", "higher")
    assert chosen.best_step(evaluated(0.9)) is None
    assert chosen.best_step(evaluated(0.9, 0.2, 0.5, 0.5, 0.1)) == 2
    assert [chosen.since_best(evaluated(0.9, 0.2, 0.5, 0.5, 0.1)[:n]) for n in range(1, 6)] == [0, 0, 0, 1, 2]
    assert Selection("", "accuracy", "lower").best_step(evaluated(0.0, 0.2, 0.1, 0.3)) == 2
    assert chosen.best_step(evaluated(0.9, 0.2, held_out="other")) is None
    with pytest.raises(OptionError, match="an evaluation has no accuracy; it has loss"):
        chosen.best_step(evaluated(1.0, metric="loss"))


OPPOSED = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in PAIRS]
"""What training learns is wrong here, so that the first step is the best one."""


def train(folder: Path, **given: Any) -> Any:
    return mint_train.train(
        "dpo",
        **{
            "data": write_lines(folder / "pairs.jsonl", PAIRS),
            "eval_data": write_lines(folder / "held_out.jsonl", OPPOSED),
            "batch_size": 2, "lr": 1e-2, "steps": 6, "eval_every": 1, "keep": 1, "select_by": "loss",
            "progress": "quiet", "backend": "local", "output": folder / "run", **given,
        },
    )  # fmt: skip


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A run that is worse on held-out rows from its second step on, and waits for two evaluations."""
    folder = tmp_path_factory.mktemp("selected")
    return folder / "run", train(folder, patience=2)


def weights_in(path: Path) -> str:
    return hashlib.sha256((path / "adapter_model.safetensors").read_bytes()).hexdigest()


def test_a_run_out_of_patience_is_done_and_its_result_is_its_best_state(
    stopped: tuple[Path, Any], tmp_path: Path
) -> None:
    run, result = stopped
    losses = [line["metrics"]["loss"] for line in lines(run / "evaluations.jsonl")]
    assert losses[1] < min(losses[2:])
    assert (result.status, result.steps, len(losses)) == ("done", 3, 4)
    assert result.checkpoint.step == 1
    assert json.loads((run / "run.json").read_text())["status"] == "done"
    plain = train(tmp_path, steps=1, select_by=None, keep=None)
    assert weights_in(run / "adapter") == weights_in(plain.folder / "adapter")


def test_the_best_state_is_not_deleted_and_later_commands_take_it(stopped: tuple[Path, Any]) -> None:
    run, _ = stopped
    assert [saved.step for saved in RunFolder(run).checkpoints()] == [1, 3]
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"step-000001", "step-000003"}
    chosen = [find_trained(str(run), step, {}).checkpoint.step for step in (None, "best", "last", 3)]
    assert chosen == [1, 1, 3, 3]


def test_a_resume_goes_on_from_the_last_state_and_chooses_alike(
    stopped: tuple[Path, Any], tmp_path: Path
) -> None:
    run = Path(shutil.copytree(stopped[0], tmp_path / "run"))
    before = (run / "metrics.jsonl").read_bytes()
    again = mint_train.resume(run, progress="quiet")
    assert (again.status, again.steps, again.checkpoint.step) == ("done", 3, 1), "it has no patience left"
    assert (run / "metrics.jsonl").read_bytes() == before
    assert weights_in(run / "adapter") == weights_in(stopped[0] / "adapter")


def test_words_of_a_checkpoint_on_the_command_line(
    run_cli: Any, stopped: tuple[Path, Any], tmp_path: Path
) -> None:
    run = Path(shutil.copytree(stopped[0], tmp_path / "run"))
    ended = run_cli("export", run, "--checkpoint", "last", "--output", "last")
    assert ended.status == 0, ended.err
    ended = run_cli("export", run, "--output", "best")
    assert ended.status == 0, ended.err
    assert weights_in(tmp_path / "best") == weights_in(run / "adapter") != weights_in(tmp_path / "last")
    ended = run_cli("export", run, "--checkpoint", "first")
    assert (ended.status, "first" in ended.err) == (2, True)


def test_words_behind_the_name_of_a_run_name_a_checkpoint(
    run_cli: Any, stopped: tuple[Path, Any], tmp_path: Path
) -> None:
    run = Path(shutil.copytree(stopped[0], tmp_path / "run"))
    names = [f"{run}@{word}" for word in ("best", "last", 3)]
    assert [find_trained(name, None, {}).checkpoint.step for name in names] == [1, 3, 3]
    for name, step in zip(names, (1, 3, 3), strict=True):
        _, checkpoint = find_policy(name, {})
        assert checkpoint is not None
        assert checkpoint.step == step
        given = load_settings({"loss": "dpo", "backend": "local", "from_checkpoint": name})
        _, start = find_start(given)
        assert start is not None
        assert start.path == str(run / f"checkpoints/step-{step:06d}")
    ended = run_cli("export", f"{run}@best", "--output", "best")
    assert ended.status == 0, ended.err
    assert weights_in(tmp_path / "best") == weights_in(run / "adapter")
    refused = run_cli("--loss", "dpo", "--set", f"reference={run}@best")
    assert f"such as --set reference={run}/checkpoints/step-000001" in refused.err


def test_a_step_is_given_once(run_cli: Any, stopped: tuple[Path, Any]) -> None:
    run, _ = stopped
    for name in (f"{run}@1", run / "checkpoints/step-000001"):
        with pytest.raises(OptionError, match=f"the step is given twice, by {name} and by step 3; leave one"):
            mint_train.evaluate(name, step=3)
    for command in ("eval", "sample", "export"):
        ended = run_cli(command, f"{run}@best", "--step", "last")
        assert (ended.status, "by --step last; leave one of them out" in ended.err) == (2, True)


def test_a_run_without_a_selection_has_no_best(tmp_path: Path) -> None:
    result = train(tmp_path, steps=1, select_by=None)
    with pytest.raises(UserError, match="has no best checkpoint: its run had no --select-by"):
        find_trained(str(result.folder), "best", {})
    with pytest.raises(UserError, match=r"no --select-by METRIC; it has those after the steps 1$"):
        find_trained(f"{result.folder}@best", None, {})
    with pytest.raises(OptionError, match="patience needs select_by METRIC"):
        train(tmp_path, select_by=None, patience=2, output=tmp_path / "other")
    assert not (tmp_path / "other").exists()
