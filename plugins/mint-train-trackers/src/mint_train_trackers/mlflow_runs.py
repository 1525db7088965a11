"""Runs in MLflow, wherever the library's own variables say."""

from __future__ import annotations

import json
import os

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.utils.time import get_current_time_millis

from mint_train.plugin import Evaluation, RunRecord, RunResult, Samples, StepRecord, hookimpl
from mint_train_trackers.figures import (
    PROJECT,
    SAMPLE_COLUMNS,
    evaluation_figures,
    hyperparameters,
    kept_id,
    sample_figures,
    sample_rows,
    step_figures,
)

STATUS = {"done": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}


class MLflow:
    """Logs to one run of an experiment, which a resumed run continues."""

    @hookimpl
    def run_started(self, run: RunRecord) -> None:
        """Begin the run, or take it up again."""
        self.client = MlflowClient()

        def make() -> str:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
            experiment = self.client.get_experiment_by_name(name)
            number = experiment.experiment_id if experiment else self.client.create_experiment(name)
            run_id: str = self.client.create_run(number, run_name=run.folder.resolve().name).info.run_id
            params = [Param(name, str(value)) for name, value in hyperparameters(run).items()]
            self.client.log_batch(run_id, params=params)
            return run_id

        self.run_id = kept_id(run, "mlflow", make)
        self.client.update_run(self.run_id, status="RUNNING")

    @hookimpl
    def step_finished(self, step: StepRecord) -> None:
        """Log the step's metrics."""
        self.log(step_figures(step), step.step)

    @hookimpl
    def evaluated(self, evaluation: Evaluation) -> None:
        """Log the evaluation's metrics."""
        self.log(evaluation_figures(evaluation), evaluation.step)

    @hookimpl
    def sampled(self, samples: Samples) -> None:
        """Log the completions as a file of JSON Lines."""
        rows = [dict(zip(SAMPLE_COLUMNS, row, strict=True)) for row in sample_rows(samples)]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        self.client.log_text(self.run_id, text, f"samples/step-{samples.step:06d}.jsonl")
        self.log(sample_figures(samples), samples.step)

    @hookimpl
    def run_finished(self, result: RunResult) -> None:
        """Close the run with its status."""
        self.client.set_terminated(self.run_id, STATUS[result.status])

    def log(self, figures: dict[str, float], step: int) -> None:
        """Log metrics of a step with one request."""
        now = get_current_time_millis()
        metrics = [Metric(name, value, now, step) for name, value in figures.items()]
        self.client.log_batch(self.run_id, metrics=metrics)
