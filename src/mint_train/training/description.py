"""What `run.json` says of a run."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mint_train.groups.build import Dataset
from mint_train.groups.examples import Examples
from mint_train.losses.loss import Loss
from mint_train.losses.trust import loss_file_digests
from mint_train.rows.readers import absolute_name
from mint_train.run_folder.description import (
    DataDescription,
    HeldOutDescription,
    LossDescription,
    RunDescription,
)
from mint_train.settings.model import Settings
from mint_train.training.preparing import Prepared
from mint_train.training.run import Run

PACKAGES = ("mint-train", "mindlab-toolkit", "tinker", "peft", "torch", "transformers")


def installed_versions() -> dict[str, str]:
    """Return the versions of the packages that figures depend on; `tinker` may be there without MinT's."""
    versions = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def describe_run(run: Run, prepared: Prepared) -> RunDescription:
    """Collect what `run.json` says of a run whose first step is next."""
    if run.recorded is not None:
        changed = {
            "settings": recorded_settings(run.settings),
            "gradients": prepared.client.gradients.form,
            "steps": prepared.steps,
            "status": "running",
            "problem": None,
        }
        return run.recorded.model_copy(update=changed)
    dataset, data = prepared.dataset, run.examples.data
    return RunDescription(
        loss=run.loss.name,
        losses=list(describe_losses(run.loss)),
        metrics=run.loss.metrics,
        loss_files=loss_file_digests(run.loss.plugins),
        backend=run.backend.name,
        model=run.backend.model,
        start=run.start_from,
        gradients=prepared.client.gradients.form,
        steps=prepared.steps,
        settings=recorded_settings(run.settings),
        data=DataDescription(
            path=str(data),
            sha256=data.fingerprint(),
            forms=dict(run.examples.forms),
            rows=run.examples.count,
            skipped=len(dataset.bad_rows),
            groups=len(dataset.groups),
            left_out=dataset.left_out,
            special_tokens=[f"{source}: {token}" for source, token in dataset.special],
            held_out=describe_held_out(run.held_out, prepared.held_out),
        ),
        versions={"python": platform.python_version()} | installed_versions(),
    )


def describe_losses(loss: Loss) -> Iterable[LossDescription]:
    """Describe a loss, or each part of a weighted sum."""
    described = loss.describe()
    for part in described.get("parts", [described]):
        yield LossDescription(**{"name": loss.name, **part})


def describe_held_out(examples: Examples | None, dataset: Dataset) -> HeldOutDescription | None:
    """Describe the held-out rows by the source that they were read from; None if there are none."""
    if examples is None or not dataset.groups:
        return None
    return HeldOutDescription(
        path=str(examples.data),
        sha256=examples.data.fingerprint(),
        groups=len(dataset.groups),
        left_out=dataset.left_out,
    )


def recorded_settings(settings: Settings) -> dict[str, Any]:
    """Return what `run.json` keeps of the settings: no secret, and paths that hold from any folder."""
    names = {"data": settings.data, "eval_data": settings.eval_data}
    absolute = {field: absolute_name(name) for field, name in names.items() if name is not None}
    if settings.from_checkpoint and Path(settings.from_checkpoint).exists():
        absolute["from_checkpoint"] = str(Path(settings.from_checkpoint).resolve())
    if settings.model and Path(settings.model).exists():
        absolute["model"] = str(Path(settings.model).resolve())
    return settings.public() | absolute
