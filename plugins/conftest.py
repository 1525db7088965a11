"""What the tests beside the plugins share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def read_losses() -> Callable[[Path], list[float]]:
    """Return a function that reads the loss of each step of a run."""

    def read(folder: Path) -> list[float]:
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line)["metrics"]["loss"] for line in lines]

    return read
