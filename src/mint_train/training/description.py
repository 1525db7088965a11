"""What `run.json` says of a run."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mint_train.groups.build import Dataset
from mint_train.groups.examples import Examples
from mint_train.groups.reference import INITIAL
from mint_train.groups.shares import Share
from mint_train.losses.trust import loss_file_digests
from mint_train.rendering.options import template_digest
from mint_train.run_folder.base_model import base_model_folder, describe_reference, model_files
from mint_train.run_folder.description import (
    DataDescription,
    HeldOutDescription,
    RunDescription,
    SourceDescription,
)
from mint_train.settings.data_items import DataItem, absolute_item, kept_file
from mint_train.settings.model import Settings
from mint_train.training.preparing import Prepared
from mint_train.training.run import Run

PACKAGES = ("mint-train", "mindlab-toolkit", "tinker", "peft", "torch", "transformers")


@cache
def installed_versions() -> dict[str, str]:
    """Return the versions of the packages that figures depend on; `tinker` may be there without MinT's.

    Cached, as reading a version parses the package's metadata each time.
    """
    versions = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def describe_run(run: Run, prepared: Prepared) -> RunDescription:
    """Collect what `run.json` says of a run whose first step is next."""
    settings = run.settings
    if settings.model and not run.backend.remote:
        settings = settings.model_copy(update={"model": run.backend.model})
    if run.recorded is not None:
        changed = {
            "settings": recorded_settings(settings, run.folder.path),
            "gradients": prepared.client.gradients.form,
            "steps": prepared.steps,
            "processes": run.backend.processes,
            "status": "running",
            "problem": None,
        }
        return run.recorded.model_copy(update=changed)
    return RunDescription(
        loss=run.loss.name,
        losses=run.loss.describe(),
        metrics=dict(run.metrics),
        loss_files=loss_file_digests(run.loss.plugins),
        function=next((plugin.function for plugin in run.loss.plugins if plugin.function), None),
        chat_template=template_digest(run.settings),
        sample_prompts=run.watching.prompts.sha256 if run.watching else None,
        judge_versions=run.watching.judge.versions if run.watching and run.watching.judge else {},
        backend=run.backend.name,
        model=run.backend.model,
        base_model={}
        if run.backend.remote
        else model_files(base_model_folder(run.settings, run.folder.path)),
        reference=None
        if run.backend.remote or run.loss.reference == INITIAL
        else describe_reference(run.loss.reference),
        processes=run.backend.processes,
        start=run.start_from,
        quantization=prepared.quantization,
        gradients=prepared.client.gradients.form,
        steps=prepared.steps,
        settings=recorded_settings(settings, run.folder.path),
        data=describe_data(run, prepared),
        versions={"python": platform.python_version()} | installed_versions(),
    )


def describe_data(run: Run, prepared: Prepared) -> DataDescription:
    """Collect what `run.json` says of the rows and of the groups that were made of them."""
    dataset, data = prepared.dataset, run.examples.data
    return DataDescription(
        path=str(data),
        sha256=data.fingerprint(),
        sources=describe_sources(run.examples, prepared.order.shares),
        forms=dict(run.examples.forms),
        rows=run.examples.count,
        skipped=len(dataset.bad_rows),
        groups=len(dataset.groups),
        left_out=dataset.left_out,
        special_tokens=[f"{source}: {token}" for source, token in dataset.special],
        held_out=[
            describe_held_out(name, run.held_out[name], part) for name, part in prepared.held_out.items()
        ],
    )


def describe_sources(examples: Examples, shares: Sequence[Share]) -> list[SourceDescription]:
    """Describe each source of the rows that are trained on, with what its weight makes of it."""
    per_epoch: list[int | None] = [share.per_epoch for share in shares]
    per_epoch = per_epoch or [None] * len(examples.parts)
    return [
        SourceDescription(
            path=str(part.data),
            sha256=part.data.fingerprint(),
            rows=part.count,
            weight=part.data.weight,
            per_epoch=groups,
        )
        for part, groups in zip(examples.parts, per_epoch, strict=True)
    ]


def describe_held_out(name: str, examples: Examples, dataset: Dataset) -> HeldOutDescription:
    """Describe a held-out set by the source that its rows were read from."""
    return HeldOutDescription(
        name=name,
        path=str(examples.data),
        sha256=examples.data.fingerprint(),
        groups=len(dataset.groups),
        left_out=dataset.left_out,
    )


def recorded_settings(settings: Settings, folder: Path) -> dict[str, Any]:
    """Return what `run.json` keeps of the settings: no secret, and paths that hold from any folder."""
    absolute = settings.model_copy(
        update={
            "data": tuple(recorded_item(item, folder) for item in settings.data),
            "eval_data": {name: recorded_item(item, folder) for name, item in settings.eval_data.items()},
        }
    )
    if settings.from_checkpoint and Path(settings.from_checkpoint).exists():
        start = str(Path(settings.from_checkpoint).resolve())
        absolute = absolute.model_copy(update={"from_checkpoint": start})
    if settings.model and Path(settings.model).exists():
        absolute = absolute.model_copy(update={"model": str(Path(settings.model).resolve())})
    return absolute.public()


def recorded_item(item: DataItem, folder: Path) -> DataItem:
    """Return a source as a later command finds it: rows of a program in the file that keeps them."""
    if item.rows is not None:
        return replace(item, name=str(folder.resolve() / kept_file(item)), rows=None)
    return absolute_item(item)
