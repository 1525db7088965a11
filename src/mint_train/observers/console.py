"""What a run prints as plain lines: what it begins with, one line a step, and where its results are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import click

from mint_train.plugins.hookspecs import hookimpl
from mint_train.run_folder.records import ON_THE_SERVICE, Evaluation, RunRecord, RunResult, StepRecord


class FinalLines:
    """Prints warnings, and at the end where the run's results are: what `--quiet` leaves."""

    def echo(self, text: str) -> None:
        """Print a line to standard output."""
        click.echo(text)

    @hookimpl
    def notice(self, text: str, warning: bool) -> None:
        """Print a warning to standard error."""
        if warning:
            print_warning(text)

    @hookimpl
    def run_finished(self, result: RunResult) -> None:
        """Print where the results are."""
        checkpoint = result.checkpoint
        if result.status != "done" and checkpoint is not None:
            self.echo(
                f"The state after step {checkpoint.step} is saved; "
                f"continue with: mint-train resume {result.folder}"
            )
        elif checkpoint is not None:
            self.echo(f"Final checkpoint: {checkpoint.sampler}")
            if str(checkpoint.sampler).startswith(ON_THE_SERVICE):
                self.echo(
                    "Sample from it in Python: "
                    f'mint.ServiceClient().create_sampling_client(model_path="{checkpoint.sampler}")'
                )
        self.echo(f"Run folder: {result.folder}")


class Console(FinalLines):
    """Prints a run's progress to standard output."""

    def __init__(self) -> None:
        self.step_line: dict[str, str] = {}
        self.batch_means_said = False

    @hookimpl
    def notice(self, text: str, warning: bool) -> None:
        """Print a line about the run, a warning to standard error."""
        if warning:
            print_warning(text)
        else:
            self.echo(text)

    @hookimpl
    def run_started(self, run: RunRecord) -> None:
        """Learn which metrics the step line shows."""
        self.step_line = dict(run.step_line)

    @hookimpl
    def evaluated(self, evaluation: Evaluation) -> None:
        """Print the evaluation's line, and once which metrics have no interval."""
        self.echo(f"Eval after step {evaluation.step}: {evaluation_line(evaluation, self.step_line)}")
        if evaluation.batch_means and not self.batch_means_said:
            self.batch_means_said = True
            self.echo(batch_means_note(evaluation))

    @hookimpl
    def step_finished(self, step: StepRecord) -> None:
        """Print the step's line."""
        self.echo(f"Step {step.step}: {shown_metrics(step, self.step_line)}")

    @hookimpl
    def run_rolled_back(self, step: int, problem: str) -> None:
        """Print what failed, and after which step the run continues."""
        self.echo(f"{problem}; going back to step {step}.")


def print_warning(text: str) -> None:
    """Print a line to standard error, as the program's errors are."""
    click.echo(f"mint-train: {text}", err=True)


def shown_metrics(step: StepRecord, step_line: Mapping[str, str]) -> str:
    """Lay out a step's loss and shown metrics."""
    formats = {"loss": ".6f", **step_line}
    return ", ".join(
        f"{name}={step.metrics[name]:{form}}" for name, form in formats.items() if name in step.metrics
    )


def evaluation_line(evaluation: Evaluation, step_line: Mapping[str, str]) -> str:
    """Lay out an evaluation's loss and shown metrics, each with its 95 % interval where it has one."""
    shown: list[str] = []
    for name, form in {"loss": ".6f", **step_line}.items():
        if name in evaluation.metrics:
            shown.append(f"{name}={with_interval(name, form, evaluation.metrics, evaluation.intervals)}")
    return ", ".join(shown)


def with_interval(
    name: str, form: str, metrics: Mapping[str, float], intervals: Mapping[str, Sequence[float]]
) -> str:
    """Format a metric with its interval, where it has one: `0.75 [0.60, 0.86]`."""
    if name not in intervals:
        return f"{metrics[name]:{form}}"
    low, high = intervals[name]
    return f"{metrics[name]:{form}} [{low:{form}}, {high:{form}}]"


def batch_means_note(evaluation: Evaluation) -> str:
    """Say which metrics of an evaluation have no interval, and why."""
    names = ", ".join(evaluation.batch_means)
    return f"Means over batches, without an interval, as they are no means over groups: {names}"
