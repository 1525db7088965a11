"""What a run prints for another program: one JSON object per event and line, nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import click

from mint_train.observers.console import print_warning
from mint_train.plugins.hookspecs import hookimpl
from mint_train.run_folder.records import Checkpoint, Evaluation, RunRecord, RunResult, StepRecord


class JsonLines:
    """Prints each event under the name of its hook: `{"event": "step_finished", "step": 1, ...}`."""

    def print(self, event: str, values: Mapping[str, Any]) -> None:
        """Print an event; paths become texts."""
        click.echo(json.dumps({"event": event, **values}, ensure_ascii=False, allow_nan=False, default=str))

    @hookimpl
    def notice(self, text: str, warning: bool) -> None:
        """Print a line about the run; a warning goes to standard error, as errors do."""
        if warning:
            print_warning(text)
        else:
            self.print("notice", {"text": text})

    @hookimpl
    def run_started(self, run: RunRecord) -> None:
        """Print what the run is; the rest stands in its `run.json`."""
        names = ("folder", "loss", "backend", "model", "steps", "groups")
        self.print("run_started", {name: getattr(run, name) for name in names})

    @hookimpl
    def step_finished(self, step: StepRecord) -> None:
        """Print a step as `metrics.jsonl` has it."""
        figures = {"learning_rate": step.learning_rate, "tokens": step.tokens, "seconds": step.seconds}
        self.print("step_finished", {"step": step.step, **step.metrics, **figures})

    @hookimpl
    def evaluated(self, evaluation: Evaluation) -> None:
        """Print an evaluation as `evaluations.jsonl` has it."""
        more = {name: getattr(evaluation, name) for name in ("intervals", "batch_means", "groups")}
        self.print("evaluated", {"step": evaluation.step, **evaluation.metrics, **more})

    @hookimpl
    def checkpoint_saved(self, checkpoint: Checkpoint) -> None:
        """Print a checkpoint with its paths."""
        self.print("checkpoint_saved", asdict(checkpoint))

    @hookimpl
    def run_rolled_back(self, step: int, problem: str) -> None:
        """Print what failed, and the step that the run was rolled back to."""
        self.print("run_rolled_back", {"step": step, "problem": problem})

    @hookimpl
    def run_finished(self, result: RunResult) -> None:
        """Print how the run ended, and where its results are."""
        self.print("run_finished", asdict(result))
