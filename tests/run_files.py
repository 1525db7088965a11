"""What tests read of a run folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def metrics(folder: str | Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without what the clock decides."""
    lines = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        assert line.pop("seconds") >= 0
    return lines


def description(folder: str | Path) -> dict[str, Any]:
    return json.loads(Path(folder, "run.json").read_text())


def checkpoints(folder: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(folder, "checkpoints.jsonl").read_text().splitlines()]


def adapter(folder: str | Path) -> bytes:
    return Path(folder, "adapter", "adapter_model.safetensors").read_bytes()


def state(folder: str | Path, step: int) -> bytes:
    return Path(folder, "checkpoints", f"step-{step:06d}", "state.safetensors").read_bytes()
