"""What the tests beside the plugins share: no settings of the user's, and a cache of their own."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

# huggingface_hub reads it when it is imported: no test may wait for a hub
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Remove the user's own settings, and cache tokenised data in a temporary folder."""
    for name in list(os.environ):
        if name.startswith("MINT_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("MINT_TRAIN_CACHE", str(tmp_path_factory.mktemp("tokenised")))


@pytest.fixture
def read_losses() -> Callable[[Path], list[float]]:
    """Return a function that reads the loss of each step of a run."""

    def read(folder: Path) -> list[float]:
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        steps = [json.loads(line) for line in lines]
        return [step["metrics"]["loss"] for step in steps]

    return read
