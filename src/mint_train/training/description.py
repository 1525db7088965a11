"""What `run.json` says of a run; secrets are no part of it."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mint_train.backends.choose import model_name
from mint_train.groups.build import Dataset
from mint_train.groups.examples import Examples
from mint_train.groups.step_count import count_steps
from mint_train.losses.loss import Loss
from mint_train.rows.readers import DataSource, absolute_name, open_data
from mint_train.settings.model import Settings

PACKAGES = ("mint-train", "mindlab-toolkit", "peft", "torch", "transformers")


def recorded_settings(settings: Settings) -> dict[str, Any]:
    """Return what `run.json` keeps of the settings: no secret, and paths that stand from anywhere."""
    names = {"data": settings.data, "eval_data": settings.eval_data}
    absolute = {field: absolute_name(name) for field, name in names.items() if name is not None}
    if settings.model and Path(settings.model).exists():
        absolute["model"] = str(Path(settings.model).resolve())
    return settings.public() | absolute


def describe_held_out(data: DataSource, dataset: Dataset) -> dict[str, Any] | None:
    """Collect what `run.json` says of the held-out data, if there is any."""
    if not dataset.groups:
        return None
    return {
        "path": str(data),
        "sha256": data.fingerprint(),
        "groups": len(dataset.groups),
        "left_out": dataset.left_out,
    }


def describe_run(
    settings: Settings, loss: Loss, backend: str, examples: Examples, dataset: Dataset, held_out: Dataset
) -> dict[str, Any]:
    """Collect what `run.json` says of a run; secrets are no part of it."""
    data = examples.data
    return {
        "status": "running",
        "loss": loss.name,
        **loss.describe(),
        "backend": backend,
        "model": model_name(settings, backend),
        "steps": count_steps(settings, len(dataset.groups)),
        "settings": recorded_settings(settings),
        "data": {
            "path": str(data),
            "sha256": data.fingerprint(),
            "forms": examples.forms,
            "rows": examples.count,
            "skipped": len(dataset.bad_rows),
            "groups": len(dataset.groups),
            "left_out": dataset.left_out,
            "special_tokens": [f"{source}: {token}" for source, token in dataset.special],
            "held_out": describe_held_out(
                open_data(settings.eval_data) if settings.eval_data else data, held_out
            ),
        },
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
    }
