"""Runs in Weights & Biases, online or offline as the library's own variables say."""

from __future__ import annotations

import os
from secrets import token_hex

import wandb

from mint_train.plugin import Evaluation, RunRecord, RunResult, Samples, StepRecord, hookimpl
from mint_train_trackers.figures import (
    PROJECT,
    SAMPLE_COLUMNS,
    evaluation_figures,
    hyperparameters,
    kept_id,
    own_folder,
    sample_figures,
    sample_rows,
    step_figures,
)


class WandB:
    """Logs to one run of a project, which a resumed run continues."""

    @hookimpl
    def run_started(self, run: RunRecord) -> None:
        """Begin the run, or take it up again."""
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.folder.resolve().name,
            id=kept_id(run, "wandb", lambda: token_hex(4)),
            resume="allow",
            config=hyperparameters(run),
            dir=str(own_folder(run)),
        )
        # a step that is taken again after a failure of the service would else be dropped
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    @hookimpl
    def step_finished(self, step: StepRecord) -> None:
        """Log the step's metrics."""
        self.run.log({"step": step.step, **step_figures(step)})

    @hookimpl
    def evaluated(self, evaluation: Evaluation) -> None:
        """Log the evaluation's metrics."""
        self.run.log({"step": evaluation.step, **evaluation_figures(evaluation)})

    @hookimpl
    def sampled(self, samples: Samples) -> None:
        """Log the completions as a table."""
        table = wandb.Table(columns=list(SAMPLE_COLUMNS), data=sample_rows(samples))
        self.run.log({"step": samples.step, "samples": table, **sample_figures(samples)})

    @hookimpl
    def run_finished(self, result: RunResult) -> None:
        """Close the run with its status."""
        self.run.summary["status"] = result.status
        self.run.finish(exit_code=0 if result.status == "done" else 1)
