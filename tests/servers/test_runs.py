"""Whole runs over HTTP: what `mint-train` does with a key, an address and a real server.

The server compiles anew for each shape of a batch, in seconds: most runs here keep to one shape.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from server import SkyrlServer

from mint_train.backends.mint.client import MintTrainingClient
from mint_train.sdk import mint, types
from mint_train.training import pipelining
from mint_train.training.runner import Runner

RunCli = Callable[..., tuple[int, str, str]]
KEY = "tml-not-to-be-seen"


@pytest.fixture(autouse=True)
def service(skyrl_server: SkyrlServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINT_API_KEY", KEY)
    monkeypatch.setenv("MINT_BASE_URL", skyrl_server.base_url)
    monkeypatch.setenv("MINT_BASE_MODEL", skyrl_server.model)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_key_alone_moves_the_run_to_the_service(run_cli: RunCli, tmp_path: Path) -> None:
    status, out, err = run_cli("--loss", "dpo", "--output", str(tmp_path / "run"))
    assert status == 0, err
    assert out.startswith("Backend mint (MINT_API_KEY is set)")
    assert "Step 3: loss=" in out
    assert "Final checkpoint: tinker://" in out
    assert "/dpo-final" in out
    everything = (
        out
        + err
        + "".join(
            path.read_text(errors="replace") for path in (tmp_path / "run").rglob("*") if path.is_file()
        )
    )
    assert KEY not in everything


def test_both_backends_agree_on_the_first_step(
    run_cli: RunCli, starter_model_folder: Path, tmp_path: Path
) -> None:
    first = {}
    for backend in ("local", "mint"):
        arguments = (
            "--loss",
            "dpo",
            "--steps",
            "1",
            "--backend",
            backend,
            "--output",
            str(tmp_path / backend),
        )
        status, _, err = run_cli(*arguments)
        assert status == 0, err
        first[backend] = read_metrics(tmp_path / backend)[0]["metrics"]
    for name in ("loss", "mean_margin", "mean_chosen_score", "mean_rejected_score"):
        assert first["local"][name] == pytest.approx(first["mint"][name], rel=1e-5), name


def test_dialogues_train_on_the_service(run_cli: RunCli, dialogues: Path, tmp_path: Path) -> None:
    rows = json.loads(dialogues.read_text())[:12]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    status, out, err = run_cli(
        "--loss", "dpo", "--data", str(tmp_path / "rows.json"), "--batch-size", "2", "--steps", "1",
        "--max-length", "700", "--output", str(tmp_path / "run"),
    )  # fmt: skip
    assert status == 0, err
    assert "Step 1: loss=" in out


def test_a_resumed_run_gives_the_unbroken_run_s_figures(
    run_cli: RunCli, short_pairs: Path, tmp_path: Path
) -> None:
    common = (
        "--loss",
        "dpo",
        "--data",
        str(short_pairs),
        "--lr",
        "1e-3",
        "--steps",
        "4",
        "--save-every",
        "2",
    )
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    sampled = ("--sample-prompts", str(short_pairs), "--sample-tokens", "4", "--sample-every", "2")
    status, _, err = run_cli(*common, *sampled, "--output", str(whole))
    assert (status, "stay on the service" in err) == (0, False)
    assert [path.name for path in sorted((whole / "samples").iterdir())] == [
        f"step-{step:06d}.jsonl" for step in (0, 2, 4)
    ]
    completed = [json.loads(line)["completion"] for line in (whole / "samples/step-000004.jsonl").open()]
    assert len(completed) == len(short_pairs.read_text().splitlines())
    assert any(completed)
    assert run_cli(*common, "--output", str(broken))[0] == 0
    # as a run that was killed after its first checkpoint leaves it
    lines = (broken / "checkpoints.jsonl").read_text().splitlines()
    (broken / "checkpoints.jsonl").write_text(lines[0] + "\n")
    status, out, err = run_cli("resume", str(broken))
    assert status == 0, err
    assert "Resuming after step 2." in out
    expected, resumed = read_metrics(whole), read_metrics(broken)
    assert [line["step"] for line in resumed] == [1, 2, 3, 4]
    for one, other in zip(expected, resumed, strict=True):
        assert other["metrics"]["loss"] == pytest.approx(one["metrics"]["loss"], rel=1e-4)


def test_the_reference_is_asked_for_once_per_example(
    run_cli: RunCli, short_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    forward = mint.TrainingClient.forward

    def counted(self: Any, data: list[Any], *args: Any, **kwargs: Any) -> Any:
        asked.append(len(data))
        return forward(self, data, *args, **kwargs)

    # forward_backward_custom's own forwards go another way, so these are the reference's
    monkeypatch.setattr(mint.TrainingClient, "forward", counted)
    status, _, err = run_cli(
        "--loss", "dpo", "--data", str(short_pairs), "--set", "reference=initial", "--epochs", "3",
        "--output", str(tmp_path / "run"),
    )  # fmt: skip
    assert status == 0, err
    custom_steps = 3 * 10
    assert sum(asked) - custom_steps == 10
    assert read_metrics(tmp_path / "run")[0]["metrics"]["rewards/margin"] == pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize("loss", ["ipo", "dpo+0.1*sft"])
def test_losses_of_the_family_train(run_cli: RunCli, short_pairs: Path, tmp_path: Path, loss: str) -> None:
    status, out, err = run_cli(
        "--loss", loss, "--data", str(short_pairs), "--steps", "2", "--output", str(tmp_path / "run")
    )
    assert status == 0, err
    assert "Step 2: loss=" in out


def test_a_model_that_the_service_lacks_is_refused(
    run_cli: RunCli, skyrl_server: SkyrlServer, tmp_path: Path
) -> None:
    status, _, err = run_cli("--loss", "dpo", "--model", "Qwen/Nope", "--output", str(tmp_path / "run"))
    assert status == 2
    assert "has no model Qwen/Nope" in err
    assert skyrl_server.model in err


def test_a_key_of_mint_s_own_kind_is_explained_where_the_server_takes_another(
    run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINT_API_KEY", "sk-secret-of-mine")
    status, _, err = run_cli("--loss", "dpo", "--output", str(tmp_path / "run"))
    assert status == 2
    assert "keys that start with tml-" in err
    assert "secret" not in err
    assert err.count("\n") == 1


def test_a_rank_that_the_service_refuses_is_one_line(run_cli: RunCli, tmp_path: Path) -> None:
    status, _, err = run_cli("--loss", "dpo", "--rank", "512", "--output", str(tmp_path / "run"))
    assert status == 1
    assert "LoRA rank 512" in err
    assert err.count("\n") == 1


def test_the_pipeline_changes_no_figure(
    run_cli: RunCli, short_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # both modes are taken, and changed between, in eight steps
    for name, value in (("STEPS_PER_LOOK", 2), ("UNSETTLED_STEPS", 0), ("SLOWEST", 1)):
        monkeypatch.setattr(pipelining, name, value)
    monkeypatch.setattr(pipelining, "LOOKS_BEFORE_CHANGE", 1)
    monkeypatch.setattr(pipelining, "NEAR_SECONDS", 0.0)  # begins ahead
    collect, left = Runner.collect, list[int]()

    def watched(runner: Runner, remaining: int = 0) -> None:
        left.append(remaining)
        collect(runner, remaining)

    update, awaited = MintTrainingClient.optim_step, list[bool]()

    def watched_update(client: MintTrainingClient, adam_params: types.AdamParams) -> Any:
        awaited.append(all(request.done() for request in client.pending))
        return update(client, adam_params)

    monkeypatch.setattr(Runner, "collect", watched)
    monkeypatch.setattr(MintTrainingClient, "optim_step", watched_update)
    common = (
        "--loss",
        "dpo",
        "--data",
        str(short_pairs),
        "--lr",
        "1e-3",
        "--steps",
        "8",
        "--schedule",
        "linear",
    )
    figures, in_flight = [], []
    for switch in ("--pipeline", "--no-pipeline"):
        folder = tmp_path / switch.strip("-")
        left.clear()
        awaited.clear()
        assert run_cli(*common, switch, "--output", str(folder))[0] == 0
        figures.append([{**line, "seconds": 0} for line in read_metrics(folder)])
        in_flight.append(left[:8])
        # the updates before the last eight are those of the proof of gradients, where none was kept
        assert awaited[-8:] == [switch == "--no-pipeline"] * 8
    assert figures[0] == figures[1]
    # the second step is recorded behind the third, and then the next two are awaited
    assert in_flight[0][:4] == [1, 1, 1, 0]
    assert in_flight[1] == [0] * 8
