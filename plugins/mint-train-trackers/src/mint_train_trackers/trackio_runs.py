"""Runs in trackio: a local store, shown by `trackio show`."""

from __future__ import annotations

import os

import trackio

from mint_train.plugin import Evaluation, RunRecord, RunResult, Samples, StepRecord, hookimpl
from mint_train_trackers.figures import (
    PROJECT,
    SAMPLE_COLUMNS,
    evaluation_figures,
    hyperparameters,
    sample_figures,
    sample_rows,
    step_figures,
)


class Trackio:
    """Logs to one run of a project, which a resumed run continues."""

    @hookimpl
    def run_started(self, run: RunRecord) -> None:
        """Begin the run, or take it up again."""
        self.run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=run.folder.resolve().name,
            config=hyperparameters(run),
            resume="allow",
            embed=False,
        )

    @hookimpl
    def step_finished(self, step: StepRecord) -> None:
        """Log the step's metrics."""
        self.run.log(step_figures(step), step=step.step)

    @hookimpl
    def evaluated(self, evaluation: Evaluation) -> None:
        """Log the evaluation's metrics."""
        self.run.log(evaluation_figures(evaluation), step=evaluation.step)

    @hookimpl
    def sampled(self, samples: Samples) -> None:
        """Log the completions as a table."""
        table = trackio.Table(columns=list(SAMPLE_COLUMNS), data=sample_rows(samples))
        self.run.log({"samples": table, **sample_figures(samples)}, step=samples.step)

    @hookimpl
    def run_finished(self, result: RunResult) -> None:
        """Close the run with its status."""
        self.run.log({"status": result.status}, step=result.steps)
        trackio.finish()  # the run's own would be called again when Python exits
