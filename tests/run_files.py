"""What tests read of a run folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mint_train.run_folder.description import (
    DataDescription,
    LossDescription,
    RunDescription,
    SourceDescription,
)
from mint_train.run_folder.metric import Metric


def metrics(folder: str | Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without what the clock decides."""
    lines = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        assert line.pop("seconds") >= 0
    return lines


def flat(line: dict[str, Any]) -> dict[str, Any]:
    """A line of figures without its levels, to compare it number by number."""
    return {**line, **line["metrics"], "metrics": 0}


def description(folder: str | Path) -> dict[str, Any]:
    return json.loads(Path(folder, "run.json").read_text())


def checkpoints(folder: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(folder, "checkpoints.jsonl").read_text().splitlines()]


def adapter(folder: str | Path) -> bytes:
    return Path(folder, "adapter", "adapter_model.safetensors").read_bytes()


def state(folder: str | Path, step: int) -> bytes:
    return Path(folder, "checkpoints", f"step-{step:06d}", "state.safetensors").read_bytes()


def run_description(**changed: Any) -> RunDescription:
    """What a small run of one loss says of itself."""
    loss = LossDescription(
        name="dpo",
        description="A loss.",
        paper=None,
        options={"beta": 0.1},
        plugins={"dpo": "mint-train-dpo 0.1.0"},
    )
    data = DataDescription(
        path="rows.jsonl",
        sha256="abc",
        sources=[SourceDescription(path="rows.jsonl", sha256="abc", rows=1)],
        forms={},
        rows=1,
        skipped=0,
        groups=1,
        left_out=[],
        special_tokens=[],
        held_out=[],
    )
    given: dict[str, Any] = {
        "status": "done",
        "loss": "dpo",
        "losses": [loss],
        "metrics": {
            "loss": Metric(".6f", "nats", better="lower", shown=True),
            "pair_accuracy": Metric(".2f", kind="share", better="higher", shown=True),
            "mean_margin": Metric(".6f", "nats", better="higher", shown=True),
        },
        "backend": "local",
        "model": "tiny",
        "gradients": "exact",
        "steps": 4,
        "settings": {"loss": "dpo"},
        "data": data,
        "versions": {"python": "3.11"},
    }
    return RunDescription(**given | changed)
