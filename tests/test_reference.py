"""Reference logprobs: once per example, kept on disk, the policy of the first step and of no later one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mint_train.backends.local.client import LocalTrainingClient

RunCli = Callable[..., tuple[int, str, str]]
REFERENCED = (
    "--loss",
    "dpo",
    "--set",
    "reference=initial",
    "--set",
    "beta=0.1",
    "--lr",
    "1e-3",
    "--batch-size",
    "4",
)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the datums of every forward that the reference asks for."""
    counts: list[int] = []
    forward = LocalTrainingClient.forward

    def counted(self: LocalTrainingClient, data: list[Any], loss_fn: str) -> Any:
        counts.append(len(data))
        return forward(self, data, loss_fn)

    monkeypatch.setattr(LocalTrainingClient, "forward", counted)
    return counts


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_three_epochs_ask_once_per_example(run_cli: RunCli, asked: list[int], tmp_path: Path) -> None:
    status, _, err = run_cli(*REFERENCED, "--epochs", "3", "--output", str(tmp_path / "run"))
    assert status == 0, err
    assert sum(asked) == 2 * 8
    metrics = read_metrics(tmp_path / "run")
    assert len(metrics) == 6
    assert metrics[0]["loss"] == pytest.approx(0.6931472, abs=1e-5)
    assert metrics[0]["rewards/margin"] == pytest.approx(0.0, abs=1e-5)
    assert metrics[-1]["rewards/margin"] > 0


def test_a_resumed_run_keeps_the_first_step_s_reference(
    run_cli: RunCli, asked: list[int], tmp_path: Path
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    arguments = (*REFERENCED, "--steps", "4", "--save-every", "2")
    assert run_cli(*arguments, "--output", str(whole))[0] == 0
    assert run_cli(*arguments, "--output", str(broken))[0] == 0
    lines = (broken / "checkpoints.jsonl").read_text().splitlines()
    (broken / "checkpoints.jsonl").write_text(lines[0] + "\n")
    asked.clear()
    status, _, err = run_cli("resume", str(broken))
    assert status == 0, err
    assert asked == []
    expected, resumed = read_metrics(whole), read_metrics(broken)
    for one, other in zip(expected, resumed, strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_a_lost_file_is_computed_again_from_the_fresh_adapter(run_cli: RunCli, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    arguments = (*REFERENCED, "--steps", "4", "--save-every", "2")
    assert run_cli(*arguments, "--output", str(whole))[0] == 0
    assert run_cli(*arguments, "--output", str(broken))[0] == 0
    lines = (broken / "checkpoints.jsonl").read_text().splitlines()
    (broken / "checkpoints.jsonl").write_text(lines[0] + "\n")
    (broken / "reference.safetensors").unlink()
    assert run_cli("resume", str(broken))[0] == 0
    assert read_metrics(broken)[-1]["loss"] == read_metrics(whole)[-1]["loss"]


def test_a_broken_file_is_named(run_cli: RunCli, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert run_cli(*REFERENCED, "--steps", "1", "--output", str(run))[0] == 0
    (run / "reference.safetensors").write_bytes(b"torn")
    status, _, err = run_cli("resume", str(run))
    assert status == 1
    assert "reference.safetensors is broken" in err
    assert err.count("\n") == 1


def test_another_model_by_name_is_the_reference(
    run_cli: RunCli, starter_model_folder: Path, tmp_path: Path
) -> None:
    status, _, err = run_cli(
        "--loss", "dpo", "--set", f"reference={starter_model_folder}", "--steps", "1",
        "--output", str(tmp_path / "run"),
    )  # fmt: skip
    assert status == 0, err
    # the starter model is always the same one, so it is also the initial policy
    assert read_metrics(tmp_path / "run")[0]["rewards/margin"] == pytest.approx(0.0, abs=1e-4)


def test_a_checkpoint_is_the_reference(run_cli: RunCli, tmp_path: Path) -> None:
    first = tmp_path / "first"
    assert run_cli("--loss", "dpo", "--steps", "3", "--lr", "1e-2", "--output", str(first))[0] == 0
    state = first / "checkpoints" / "step-000003"
    status, _, err = run_cli(
        "--loss", "dpo", "--set", f"reference={state}", "--steps", "1", "--output", str(tmp_path / "run")
    )
    assert status == 0, err
    assert abs(read_metrics(tmp_path / "run")[0]["rewards/margin"]) > 1


def test_a_reference_that_is_nowhere_is_refused(run_cli: RunCli, tmp_path: Path) -> None:
    status, _, err = run_cli(
        "--loss", "dpo", "--set", "reference=./no-such-model", "--output", str(tmp_path / "run")
    )
    assert status == 2
    assert "no-such-model" in err
    assert err.count("\n") == 1
