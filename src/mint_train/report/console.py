"""What a run prints: one line a step, and where its results are."""

from __future__ import annotations

import click

from mint_train.hookspecs import hookimpl
from mint_train.records import RunRecord, RunResult, StepRecord


class Console:
    """Prints a run's progress to standard output."""

    def __init__(self) -> None:
        self.step_line: dict[str, str] = {}

    @hookimpl
    def run_started(self, run: RunRecord) -> None:
        """Learn which metrics the step line shows."""
        self.step_line = dict(run.step_line)

    @hookimpl
    def step_finished(self, step: StepRecord) -> None:
        """Print the step's line."""
        formats = {"loss": ".6f", **self.step_line}
        shown = [
            f"{name}={step.metrics[name]:{form}}" for name, form in formats.items() if name in step.metrics
        ]
        click.echo(f"Step {step.step}: {', '.join(shown)}")

    @hookimpl
    def run_finished(self, result: RunResult) -> None:
        """Print where the results are."""
        checkpoint = result.checkpoint
        if result.status != "done" and checkpoint is not None:
            click.echo(
                f"The state after step {checkpoint.step} is saved; "
                f"continue with: mint-train resume {result.folder}"
            )
        elif checkpoint is not None:
            click.echo(f"Final checkpoint: {checkpoint.sampler}")
        click.echo(f"Run folder: {result.folder}")
