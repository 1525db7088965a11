"""`mint-train compare`: several losses trained on the same rows and judged on the same held-out ones."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from mint_train.backends.choose import choose_backend
from mint_train.errors import INTERRUPTED, MintTrainError, OptionError, UserError
from mint_train.losses.weighted_sum import open_loss
from mint_train.observers.console import print_warning
from mint_train.report.comparison import Compared, print_comparison
from mint_train.run_folder.folder import RunFolder
from mint_train.settings.merge import load_settings
from mint_train.settings.model import Settings
from mint_train.training.interrupts import Interrupts
from mint_train.training.training import file_name, unused_folder

EVAL_FRACTION = 0.1
"""What is held out of the data where nothing else is said."""
PROGRAM = "mint-train: "
PLOT = "comparison"
LOOK_SECONDS = 0.2


@dataclass
class Contender:
    """One loss of a comparison: the process that trains it, and what that said last."""

    loss: str
    step_line: Mapping[str, str]
    folder: Path
    command: Sequence[str]
    process: subprocess.Popen[str] | None = None
    said: str = ""
    """Its last line of an error, or its last line."""
    ended: int | None = field(default=None)
    stopped: bool = False

    def train(self) -> None:
        """Train in a process of its own, and pass on what it prints, each line under the loss's name."""
        if self.stopped:
            return
        self.process = subprocess.Popen(  # noqa: S603 - the command is this program's own
            self.command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            env=os.environ
            | {"PYTHONUNBUFFERED": "1"},  # the key of the service, too, is in it and nowhere else
            start_new_session=True,  # an interrupt is passed on once, and not by the terminal as well
        )
        assert self.process.stdout is not None  # noqa: S101 - it was asked for
        for line in self.process.stdout:
            text = line.rstrip("\n")
            if text.startswith(PROGRAM) or not self.said.startswith(PROGRAM):
                self.said = text
            click.echo(f"[{self.loss}] {text}")
        self.ended = self.process.wait()

    def stop(self, number: int = signal.SIGINT) -> None:
        """Ask the process to end, where it has begun and not ended."""
        self.stopped = True
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    def result(self) -> Compared:
        """Return how the run ended, with its first and last evaluation."""
        if self.ended == 0:
            evaluations = RunFolder(self.folder).evaluations()
            return Compared(self.loss, self.step_line, evaluations[0], evaluations[-1], None)
        if self.process is None:
            problem = "not begun"
        elif self.ended == INTERRUPTED:
            problem = f"interrupted; continue with: mint-train resume {self.folder}"
        elif self.said.startswith(PROGRAM):
            problem = self.said.removeprefix(PROGRAM)
        else:
            problem = f"ended with status {self.ended}: {self.said}"
        return Compared(self.loss, self.step_line, {}, {}, problem)


def compare_and_print(
    losses: Sequence[str],
    assignments: Mapping[str, str],
    config: Path | None,
    output: Path | None,
    given: Mapping[str, Any],
) -> tuple[bool, bool]:
    """Train the losses, each in a process of its own, and print a table of their held-out metrics.

    Args:
        losses: names, files or sums.
        assignments: options of single losses: `loss.key` and value.
        config: a config file for all of them.
        output: the folder for the runs, each in a folder named by its loss; without it, a new one in `runs/`.
        given: settings for all of them, as the command line has them; None counts as not given.

    Returns:
        Whether all runs were done, and whether they were interrupted.

    Raises:
        UserError: a loss, an option or a setting is wrong; nothing has been started.
    """
    given = {name: value for name, value in given.items() if value is not None}
    output = output or unused_folder("compare")
    if len({file_name(loss) for loss in losses}) < len(losses):
        raise OptionError("two of the losses have one name; each is a run of its own: name each once")
    shares = share_assignments(losses, assignments)
    contenders: list[Contender] = []
    for loss in losses:
        settings = settings_of(loss, shares[loss], config, given)
        folder = output / file_name(loss)
        step_line = open_loss(loss, settings.options).step_line
        held_out = {} if given.keys() & {"eval_data", "eval_fraction"} else eval_share(settings)
        command = command_of(loss, shares[loss], config, {**given, **held_out, "output": folder})
        contenders.append(Contender(loss, step_line, folder, command))
    backend, _ = choose_backend(settings)
    interrupted = train_all(contenders, at_once=len(losses) if backend == "mint" else 1)
    results = [contender.result() for contender in contenders]
    print_comparison(results)
    draw(contenders, output)
    click.echo(f"Runs: {output}")
    return all(result.problem is None for result in results), interrupted


def draw(contenders: Sequence[Contender], output: Path) -> None:
    """Draw the curves of all runs that took a step, over one another, or say why there is no drawing."""
    folders = [each.folder for each in contenders if RunFolder(each.folder).has_steps()]
    if not folders:
        return
    from mint_train.report.plots import plot_runs

    try:
        for written in plot_runs(folders, output / PLOT):
            click.echo(f"Wrote {written}")
    except MintTrainError as error:
        click.echo(f"No plot: {error}")


def share_assignments(losses: Sequence[str], assignments: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Give each `loss.key` to its loss; names may have dots, so the longest one that fits is meant.

    Raises:
        OptionError: it begins with none of the losses.
    """
    shares: dict[str, dict[str, str]] = {loss: {} for loss in losses}
    for name, value in assignments.items():
        owners = [loss for loss in losses if name.startswith(f"{loss}.")]
        if not owners:
            raise OptionError(
                f"--set {name}: write it as --set LOSS.KEY=VALUE, LOSS one of {', '.join(losses)}"
            )
        owner = max(owners, key=len)
        shares[owner][name.removeprefix(f"{owner}.")] = value
    return shares


def settings_of(
    loss: str, options: Mapping[str, str], config: Path | None, given: Mapping[str, Any]
) -> Settings:
    """Resolve the settings of one run, so that what is wrong shows before any has begun.

    Raises:
        UserError: a setting is wrong.
    """
    settings = load_settings({**given, "loss": loss, "options": dict(options)}, config)
    if str(settings.data) == "-":
        raise UserError("--data -: standard input can be read once only; write the rows to a file")
    return settings


def eval_share(settings: Settings) -> dict[str, Any]:
    """Return the share to hold out, where neither the config file nor the command line says what."""
    if settings.eval_data is not None or settings.eval_fraction is not None:
        return {}
    return {"eval_fraction": EVAL_FRACTION}


def command_of(
    loss: str, options: Mapping[str, str], config: Path | None, given: Mapping[str, Any]
) -> list[str]:
    """Write the command that trains one loss; the key of the service is no part of it."""
    command = [sys.executable, "-m", "mint_train", "--loss", loss]
    if config is not None:
        command += ["--config", str(config)]
    for name, value in given.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            command.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            command.append(f"--{flag}={value}")
    return command + [f"--set={name}={value}" for name, value in options.items()]


def train_all(contenders: Sequence[Contender], *, at_once: int) -> bool:
    """Train so many at once, pass an interrupt on, and return whether there was one."""
    with Interrupts(print_warning) as interrupts, ThreadPoolExecutor(at_once) as pool:
        waiting = {pool.submit(contender.train) for contender in contenders}
        passed_on = False
        try:
            while waiting:
                waiting = wait(waiting, LOOK_SECONDS).not_done
                if interrupts.asked and not passed_on:
                    passed_on = True
                    for contender in contenders:
                        contender.stop()
        except BaseException:
            for contender in contenders:
                contender.stop(signal.SIGKILL)
            raise
    return interrupts.asked
