"""Runs in TensorBoard: event files in the run folder."""

from __future__ import annotations

from torch.utils.tensorboard.writer import SummaryWriter

from mint_train.plugin import Evaluation, RunRecord, RunResult, Samples, StepRecord, hookimpl
from mint_train_trackers.figures import (
    evaluation_figures,
    hyperparameters,
    own_folder,
    sample_figures,
    step_figures,
)

FLUSH_SECONDS = 10


class TensorBoard:
    """Writes scalars while the run goes on, and its hyperparameters with the final figures at its end."""

    @hookimpl
    def run_started(self, run: RunRecord) -> None:
        """Open the event file."""
        self.hyperparameters = hyperparameters(run)
        self.writer = SummaryWriter(str(own_folder(run) / "tensorboard"), flush_secs=FLUSH_SECONDS)

    @hookimpl
    def step_finished(self, step: StepRecord) -> None:
        """Write the step's scalars."""
        self.write(step_figures(step), step.step)

    @hookimpl
    def evaluated(self, evaluation: Evaluation) -> None:
        """Write the evaluation's scalars."""
        self.write(evaluation_figures(evaluation), evaluation.step)

    @hookimpl
    def sampled(self, samples: Samples) -> None:
        """Write each completion as a text, below its prompt and its score."""
        for number, one in enumerate(samples.completions, 1):
            score = "" if one.score is None else f" (score {one.score:.3g})"
            text = "\n\n".join([f"**{one.prompt}**{score}", one.completion])
            self.writer.add_text(f"samples/{number}", text, samples.step)
        self.write(sample_figures(samples), samples.step)

    @hookimpl
    def run_finished(self, result: RunResult) -> None:
        """Write the hyperparameters with the last metrics and the status, and close the file."""
        final = {f"final/{name}": value for name, value in result.metrics.items()}
        self.writer.add_hparams(self.hyperparameters | {"status": result.status}, final, run_name=".")
        self.writer.close()

    def write(self, figures: dict[str, float], step: int) -> None:
        """Write scalars of a step."""
        for name, value in figures.items():
            self.writer.add_scalar(name, value, step)
