"""Trackers, each against its real library, offline: what they are told is what the run folder holds."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PAIRS = [
    {"prompt": f"Say {word}.", "chosen": word, "rejected": "no"} for word in ("one", "two", "three", "four")
]


def train_in(
    python: str, folder: Path, *arguments: object, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Call mint-train in a process of its own, as trackers leave threads behind."""
    done = subprocess.run(
        [python, "-m", "mint_train", *map(str, arguments)],
        cwd=folder, env=os.environ | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def arguments(starter_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """Three steps with an evaluation before and after."""
    pairs = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    return ["--loss", "dpo", "--data", pairs, "--eval-data", pairs, "--model", starter_model_folder,
            "--steps", 3, "--batch-size", 2, "--sample-prompts", pairs, "--sample-tokens", 4,
            "--output", "run"]  # fmt: skip


@pytest.fixture(scope="module")
def tracked(arguments: list[object], tmp_path_factory: pytest.TempPathFactory, warm_python: str) -> Path:
    """The folder of a run that both light trackers were told of."""
    folder = tmp_path_factory.mktemp("tracked")
    told = ("--track", "tensorboard, trackio", "--json")
    done = train_in(warm_python, folder, *arguments, *told, **trackio_store(folder))
    events = [json.loads(line)["event"] for line in done.stdout.splitlines()]
    assert events[-1] == "run_finished", "what trackers print is none of our output"
    assert "failed" not in done.stderr
    return folder


def trackio_store(folder: Path) -> dict[str, str]:
    return {"TRACKIO_DIR": str(folder / "trackio"), "HF_HUB_OFFLINE": "1"}


def lines(folder: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "run" / name).read_text().splitlines()]


def samples(folder: Path) -> list[list[Any]]:
    """Step, prompt and completion of all that was sampled, before the first step and after the last."""
    found = [lines(folder, f"samples/step-{step:06d}.jsonl") for step in (0, 3)]
    return [[line["step"], line["prompt"], line["completion"]] for part in found for line in part]


def losses(folder: Path, name: str = "metrics.jsonl") -> list[tuple[int, Any]]:
    """The steps with their losses, as float32 keeps them."""
    return [(line["step"], pytest.approx(line["metrics"]["loss"], rel=1e-6)) for line in lines(folder, name)]


def test_tensorboard_has_every_step_and_the_settings(tracked: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tracked / "run" / "observers" / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == losses(tracked)
    assert [(event.step, event.value) for event in events.Scalars("eval/loss")] == losses(
        tracked, "evaluations.jsonl"
    )
    assert {"train/learning_rate", "train/tokens_per_second", "train/pair_accuracy"} <= set(
        events.Tags()["scalars"]
    )
    texts = [
        [event.step, *event.tensor_proto.string_val[0].decode().replace("**", "").split("\n\n", 1)]
        for number in range(1, 5)
        for event in events.Tensors(f"samples/{number}/text_summary")
    ]
    assert sorted(texts) == sorted(samples(tracked))
    assert "_hparams_/session_start_info" in events.summary_metadata
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    told = HParamsPluginData.FromString(content).session_start_info.hparams
    assert told["options.beta"].number_value == 1.0
    assert told["lr"].number_value == pytest.approx(1e-5)
    assert told["status"].string_value == "done"
    assert "api_key" not in told


def test_trackio_has_every_step_and_the_settings(tracked: Path) -> None:
    read = """
import json
from trackio.sqlite_storage import SQLiteStorage
run = ("mint-train", "run")
print(json.dumps([SQLiteStorage.get_logs(*run), SQLiteStorage.get_run_config(*run)], default=str))
"""
    shown = subprocess.run(
        [sys.executable, "-c", read],
        capture_output=True, text=True, check=True, env=os.environ | trackio_store(tracked),
    )  # fmt: skip
    logs, config = json.loads(shown.stdout.splitlines()[-1])
    assert [(log["step"], log["train/loss"]) for log in logs if "train/loss" in log] == losses(tracked)
    assert [(log["step"], log["eval/loss"]) for log in logs if "eval/loss" in log] == losses(
        tracked, "evaluations.jsonl"
    )
    tables = [log["samples"]["_value"] for log in logs if "samples" in log]
    assert [[row[name] for name in ("step", "prompt", "completion")] for rows in tables for row in rows] == (
        samples(tracked)
    )
    assert logs[-1]["status"] == "done"
    assert config["options.beta"] == 1.0


@pytest.mark.slow
def test_wandb_offline_has_the_run(arguments: list[object], tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    train_in(
        sys.executable, tmp_path, *arguments, "--track", "wandb", WANDB_MODE="offline", WANDB_SILENT="true"
    )
    (file,) = (tmp_path / "run" / "observers").rglob("run-*.wandb")
    history: list[dict[str, Any]] = []
    config: dict[str, Any] = {}
    exit_codes: list[int] = []
    for record in wandb_records(file):
        if record.HasField("history"):
            items = record.history.item
            history.append({item.key or item.nested_key[0]: json.loads(item.value_json) for item in items})
        if record.HasField("run"):
            config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        if record.HasField("exit"):
            exit_codes.append(record.exit.exit_code)
    assert [(row["step"], row["train/loss"]) for row in history if "train/loss" in row] == losses(tmp_path)
    assert [(row["step"], row["eval/loss"]) for row in history if "eval/loss" in row] == losses(
        tmp_path, "evaluations.jsonl"
    )
    assert sum("samples" in row for row in history) == 2
    assert config["options.beta"] == 1.0
    assert exit_codes == [0]


def wandb_records(file: Path) -> Iterator[Any]:
    """The records of an offline run: LevelDB's log format, whose blocks of 32 KiB hold chunks."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, offset, record = file.read_bytes(), 7, b""
    while offset + 7 <= len(data):
        if (left := 32768 - offset % 32768) < 7:
            offset += left
            continue
        length, kind = struct.unpack_from("<HB", data, offset + 4)
        record += data[offset + 7 : offset + 7 + length]
        offset += 7 + length
        if kind in (1, 4):  # whole, or the last chunk of it
            yield Record.FromString(record)
            record = b""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of its own SQLAlchemy
def test_mlflow_has_the_run_and_a_resume_continues_it(arguments: list[object], tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    where = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    train_in(sys.executable, tmp_path, *arguments, "--track", "mlflow", **where)
    train_in(sys.executable, tmp_path, "resume", "run", "--steps", 4, **where)
    client = mlflow.MlflowClient(where["MLFLOW_TRACKING_URI"])
    experiment = client.get_experiment_by_name("mint-train")
    (run,) = client.search_runs([experiment.experiment_id])
    told = [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, "train/loss")]
    assert told == losses(tmp_path)
    assert len(told) == 4
    kept = client.download_artifacts(run.info.run_id, "samples/step-000003.jsonl", str(tmp_path))
    told = [json.loads(line) for line in Path(kept).read_text().splitlines()]
    assert [[row["step"], row["prompt"], row["completion"]] for row in told] == samples(tmp_path)[4:8]
    assert run.data.params["options.beta"] == "1.0"
    assert run.info.status == "FINISHED"


def test_the_score_before_the_first_step_has_no_other_place() -> None:
    from mint_train.run_folder.records import Sampled, Samples
    from mint_train_trackers.figures import sample_figures

    scored = [Sampled("a", "b", 1.0), Sampled("c", "", None), Sampled("d", "e", 0.5)]
    assert sample_figures(Samples(0, scored)) == {"train/sample_score": 0.75}
    assert sample_figures(Samples(2, scored)) == {}, "it is among the metrics of the step"
    assert sample_figures(Samples(0, scored[1:2])) == {}
