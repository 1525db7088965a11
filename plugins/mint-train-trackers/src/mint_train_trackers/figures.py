"""What every tracker is told, under the same names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mint_train.plugin import Evaluation, RunRecord, Samples, StepRecord

PROJECT = "mint-train"
SAMPLE_COLUMNS = ("step", "prompt", "completion", "score")


def hyperparameters(run: RunRecord) -> dict[str, str | int | float | bool]:
    """Return a run's settings, which hold no secret, as flat values; what is not set is left out."""
    values: dict[str, Any] = {
        **run.description.settings,
        **{f"options.{name}": value for name, value in run.description.options.items()},
        "backend": run.backend,
        "model": run.model,
        "loss": run.loss,
        "steps": run.steps,
        "data.sha256": run.description.data.sha256,
    }
    return {
        name: value if isinstance(value, str | int | float | bool) else str(value)
        for name, value in values.items()
        if value not in (None, {}, [], ())
    }


def step_figures(step: StepRecord) -> dict[str, float]:
    """Return a step's metrics, its learning rate and its speed in tokens per second."""
    more = {"learning_rate": step.learning_rate, "tokens_per_second": step.tokens / max(step.seconds, 1e-9)}
    return {f"train/{name}": float(value) for name, value in {**step.metrics, **more}.items()}


def evaluation_figures(evaluation: Evaluation) -> dict[str, float]:
    """Return an evaluation's metrics, under the name of its held-out set if that has one."""
    prefix = f"eval/{evaluation.held_out}/" if evaluation.held_out else "eval/"
    return {f"{prefix}{name}": float(value) for name, value in evaluation.metrics.items()}


def sample_figures(samples: Samples) -> dict[str, float]:
    """Return the mean score before the first step; that of a later step is among the step's metrics."""
    score = samples.mean_score
    return {} if samples.step or score is None else {"train/sample_score": score}


def sample_rows(samples: Samples) -> list[list[str | float | None]]:
    """Return a row for each prompt, under `SAMPLE_COLUMNS`."""
    return [[samples.step, one.prompt, one.completion, one.score] for one in samples.completions]


def own_folder(run: RunRecord) -> Path:
    """Return where observers write in the run folder; it goes when the run is replaced."""
    folder = run.folder / "observers"
    folder.mkdir(exist_ok=True)
    return folder


def kept_id(run: RunRecord, tracker: str, make: Callable[[], str]) -> str:
    """Return the tracker's id of this run, made once, so that a resumed run stays one run."""
    path = own_folder(run) / f"{tracker}-id"
    if not path.exists():
        path.write_text(make(), encoding="utf-8")
    return path.read_text(encoding="utf-8")
