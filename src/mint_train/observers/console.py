"""What a run prints as plain lines: the backend and the data, one line per step, where the results are."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from mint_train.errors import command_line
from mint_train.observers.terminal import echo_problem, say
from mint_train.plugins.hookspecs import hookimpl
from mint_train.run_folder.metric import Metric, screen_format, shown_formats, with_interval
from mint_train.run_folder.records import Evaluation, RunRecord, RunResult, StepRecord
from mint_train.settings.prices import describe_tokens


class FinalLines:
    """Prints warnings, and at the end where the run's results are: all that `--quiet` prints."""

    def __init__(self, echo: Callable[[str], None] = say) -> None:
        """Take a function that prints a line."""
        self.echo = echo

    @hookimpl
    def notice(self, text: str, warning: bool) -> None:
        """Print a warning to standard error."""
        if warning:
            echo_problem(text)

    @hookimpl
    def run_finished(self, result: RunResult) -> None:
        """Print where the results are."""
        checkpoint = result.checkpoint
        if result.status != "done" and checkpoint is not None:
            more = ("--token-budget", "N") if result.budget_spent else ()
            self.echo(
                f"The state after step {checkpoint.step} is saved; "
                f"continue with: {command_line('resume', result.folder, *more)}"
            )
        elif checkpoint is not None:
            self.echo(f"Final checkpoint: {checkpoint.sampler}")
        self.echo(f"Run folder: {result.folder}")


class Console(FinalLines):
    """Prints a run's progress."""

    def __init__(
        self, echo: Callable[[str], None] = say, metrics: Mapping[str, Metric] | None = None
    ) -> None:
        """Take a function that prints a line, and the metrics if no `run_started` will describe them."""
        super().__init__(echo)
        self.formats = self.formats_of(metrics or {})
        self.batch_means_said = False

    @hookimpl
    def notice(self, text: str, warning: bool) -> None:
        """Print a line about the run, a warning to standard error."""
        if warning:
            echo_problem(text)
        else:
            self.echo(text)

    def formats_of(self, metrics: Mapping[str, Metric]) -> dict[str, str]:
        """Return the formats of the metrics to show: as the loss wants them."""
        return shown_formats(metrics)

    @hookimpl
    def run_started(self, run: RunRecord) -> None:
        """Note which metrics the step line shows."""
        self.formats = self.formats_of(run.metrics)

    @hookimpl
    def evaluated(self, evaluation: Evaluation) -> None:
        """Print the evaluation's line, and the first time which metrics have no interval."""
        on = f" on {evaluation.held_out}" if evaluation.held_out else ""
        self.echo(f"Eval{on} after step {evaluation.step}: {evaluation_line(evaluation, self.formats)}")
        if evaluation.batch_means and not self.batch_means_said:
            self.batch_means_said = True
            self.echo(batch_means_note(evaluation))

    @hookimpl
    def step_finished(self, step: StepRecord) -> None:
        """Print the step's line."""
        self.echo(f"Step {step.step}: {shown_metrics(step, self.formats)}")

    @hookimpl
    def run_finished(self, result: RunResult) -> None:
        """Print what the run has sent, where the results are, and what to do with them."""
        if result.budget_spent:
            self.echo(f"The next step would pass --token-budget, so the run stops after step {result.steps}.")
        if result.tokens:
            cost = f", which cost {result.cost}" if result.cost else ""
            self.echo(f"Tokens: {describe_tokens(result.tokens)}{cost}.")
        super().run_finished(result)
        if result.status == "done":
            self.echo(f"Next: {command_line('sample', result.folder)} (or eval, or plot)")

    @hookimpl
    def run_rolled_back(self, step: int, problem: str) -> None:
        """Print what failed, and after which step the run continues."""
        self.echo(f"{problem}; going back to step {step}.")


class ScreenConsole(Console):
    """Prints for a person at a terminal: figures in four significant digits."""

    def formats_of(self, metrics: Mapping[str, Metric]) -> dict[str, str]:
        """Return the formats of the metrics to show."""
        return {name: screen_format(form) for name, form in shown_formats(metrics).items()}


def shown_metrics(step: StepRecord, formats: Mapping[str, str]) -> str:
    """Format a step's loss and shown metrics."""
    return ", ".join(
        f"{name}={step.metrics[name]:{form}}" for name, form in formats.items() if name in step.metrics
    )


def evaluation_line(evaluation: Evaluation, formats: Mapping[str, str]) -> str:
    """Format an evaluation's loss and shown metrics, each with its 95 % interval if it has one."""
    shown: list[str] = []
    for name, form in formats.items():
        if name in evaluation.metrics:
            shown.append(f"{name}={with_interval(name, form, evaluation.metrics, evaluation.intervals)}")
    return ", ".join(shown)


def batch_means_note(evaluation: Evaluation) -> str:
    """Say which metrics of an evaluation have no interval, and why."""
    names = ", ".join(evaluation.batch_means)
    return f"Means over batches, without an interval (they are not means over groups): {names}"
