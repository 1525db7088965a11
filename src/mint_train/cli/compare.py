"""`mint-train compare`: several losses trained on the same rows and evaluated on the same held-out ones."""

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

from mint_train.backends.choose import choose_backend, model_at_commit
from mint_train.errors import INTERRUPTED, MintTrainError, OptionError, UserError, command_line
from mint_train.groups.located_reference import options_located
from mint_train.losses.weighted_sum import open_loss
from mint_train.observers.console import Console, FinalLines, ScreenConsole
from mint_train.observers.json_lines import parse_event, show_event
from mint_train.observers.terminal import echo, echo_problem, say
from mint_train.report.comparison import (
    Compared,
    check_distinct,
    comparison_folder,
    eval_share,
    print_comparison,
)
from mint_train.run_folder.folder import RunFolder
from mint_train.run_folder.metric import Metric
from mint_train.run_folder.names import file_name
from mint_train.run_folder.replacing import holds_run
from mint_train.settings.data_items import STANDARD_INPUT
from mint_train.settings.merge import load_settings, rounds_in
from mint_train.settings.model import Settings, option_name
from mint_train.settings.rounds import ONLY_ROUNDS
from mint_train.training.interrupts import Interrupts
from mint_train.training.watching import Watching

PROGRAM = "mint-train: "
PLOT = "comparison"
POLL_SECONDS = 0.2


@dataclass
class Contender:
    """One loss of a comparison: the process that trains it, and what that reported."""

    loss: str
    metrics: Mapping[str, Metric]
    folder: Path
    command: Sequence[str]
    progress: str
    """How its events are shown."""
    process: subprocess.Popen[str] | None = None
    evaluations: list[Mapping[str, Any]] = field(default_factory=list)
    problem: str | None = None
    """Why the run failed, in its own words, or the last line that it printed besides its events."""
    ended: int | None = None
    stopped: bool = False

    def train(self) -> None:
        """Train in a process of its own, and show its events, each line under the loss's name."""
        if self.stopped:
            return
        self.process = subprocess.Popen(  # noqa: S603 - the command is this program's own
            self.command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            env=os.environ | {"PYTHONUNBUFFERED": "1"},  # the service's key is passed on here, and only here
            start_new_session=True,  # an interrupt is passed on once, and not by the terminal as well
        )
        assert self.process.stdout is not None  # noqa: S101 - it was asked for
        quiet = self.progress == "quiet"
        console = ScreenConsole if sys.stdout.isatty() else Console
        display = FinalLines(self.echo) if quiet else console(self.echo, self.metrics)
        for line in self.process.stdout:
            self.hear(line.rstrip("\n"), display)
        self.ended = self.process.wait()

    def hear(self, line: str, display: FinalLines) -> None:
        """Take in one line of the process: an event, or an error."""
        event = parse_event(line)
        if event is None:
            self.problem = line.removeprefix(PROGRAM)
            self.echo(line)
            return
        if event["event"] == "evaluated":
            self.evaluations.append(event)
        if self.progress == "json":
            self.echo(line)
        else:
            show_event(event, display)

    def echo(self, text: str) -> None:
        """Print a line under the loss's name."""
        say(f"[{self.loss}] {text}")

    def stop(self, number: int = signal.SIGINT) -> None:
        """Ask the process to end, if it has begun and not ended."""
        self.stopped = True
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    def held_out(self) -> list[str]:
        """Name the held-out sets that the run was evaluated on."""
        return [str(event.get("held_out", "")) for event in self.evaluations]

    def result(self, held_out: str = "") -> Compared:
        """Return how the run ended, with its first and last evaluation on a held-out set."""
        if self.ended == 0:
            own = [event for event in self.evaluations if event.get("held_out", "") == held_out]
            return Compared(self.loss, self.metrics, own[0], own[-1], None)
        if self.process is None or (self.ended == INTERRUPTED and not holds_run(self.folder)):
            problem = "not begun"
        elif self.ended == INTERRUPTED:
            problem = f"interrupted; continue with: {command_line('resume', self.folder)}"
        else:
            problem = self.problem or f"ended with status {self.ended}"
        return Compared(self.loss, self.metrics, {}, {}, problem)


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
        assignments: options of single losses, as `loss.key` and value.
        config: a config file for all losses.
        output: the folder for the runs, each in a folder named by its loss; by default a new one in `runs/`.
        given: settings for all losses, as on the command line; None counts as not given.

    Returns:
        Whether all runs were done, and whether they were interrupted.

    Raises:
        UserError: a loss, an option or a setting is wrong; nothing has been started.
    """
    given = {name: value for name, value in given.items() if value is not None}
    check_distinct(losses)
    shares = share_assignments(losses, assignments)
    chosen = {loss: settings_of(loss, shares[loss], config, given) for loss in losses}
    opened = {loss: open_loss(loss, settings.options) for loss, settings in chosen.items()}
    first = next(iter(chosen.values()))
    Watching.of(first)  # all have the same prompts and judge
    output = comparison_folder(output, losses, overwrite=first.overwrite)
    backend, contenders = choose_backend(first), list[Contender]()
    given |= model_at_commit(first, backend)
    for loss, settings in chosen.items():
        folder = output / file_name(loss)
        own = {**given, **eval_share(settings), "output": folder, "progress": "json"}
        if "second_adapter" not in settings.model_fields_set:
            own["second_adapter"] = False  # or a run might find no slot, as another one has two
        options = shares[loss] | options_located(opened[loss], backend)
        command = command_of(loss, options, config, own)
        contenders.append(Contender(loss, opened[loss].metrics, folder, command, settings.progress))
    interrupted = train_all(contenders, at_once=len(losses) if backend.remote else 1)
    print_results(contenders)
    draw(contenders, output)
    echo(f"Runs: {output}")
    return all(contender.ended == 0 for contender in contenders), interrupted


def print_results(contenders: Sequence[Contender]) -> None:
    """Print a table for each held-out set."""
    sets = dict.fromkeys(name for contender in contenders for name in contender.held_out())
    for name in sets or [""]:
        if name:
            echo(f"On {name}:")
        print_comparison([contender.result(name) for contender in contenders])


def draw(contenders: Sequence[Contender], output: Path) -> None:
    """Draw the curves of all runs that took a step, one over the other, or say why that failed."""
    folders = [each.folder for each in contenders if RunFolder(each.folder).has_steps()]
    if not folders:
        return
    from mint_train.report.plots import plot_runs

    try:
        for written in plot_runs(folders, output / PLOT):
            echo(f"Wrote {written}")
    except MintTrainError as error:
        say(f"No plot: {error}")


def share_assignments(losses: Sequence[str], assignments: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Give each `loss.key` to its loss; names may contain dots, so the longest match is meant.

    Raises:
        OptionError: a key does not begin with any of the losses.
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
    """Resolve the settings of one run, so that errors show before any run begins.

    Raises:
        UserError: a setting is wrong.
    """
    if config and (found := rounds_in(config).keys() & ONLY_ROUNDS):
        raise OptionError(f"--config {config}: {min(found)} is for --rounds, which compare does not do")
    settings = load_settings({**given, "loss": loss, "options": dict(options)}, config)
    if any(item.name == STANDARD_INPUT for item in (*settings.data, *settings.eval_data.values())):
        raise UserError("--data -: standard input can be read only once; write the rows to a file")
    return settings


def command_of(
    loss: str, options: Mapping[str, str], config: Path | None, given: Mapping[str, Any]
) -> list[str]:
    """Return the command that trains one loss; it does not contain the service's key."""
    command = [sys.executable, "-m", "mint_train", "--loss", loss]
    if config is not None:
        command += ["--config", str(config)]
    for name, value in given.items():
        flag = option_name(name)
        if isinstance(value, bool):
            command.append(flag if value else f"--no-{flag.removeprefix('--')}")
        elif isinstance(value, list | tuple):
            command += [f"{flag}={each}" for each in value]
        elif isinstance(value, Mapping):
            command += assignments(flag, value)
        else:
            command.append(f"{flag}={value}")
    return command + assignments("--set", options)


def assignments(flag: str, options: Mapping[str, object]) -> list[str]:
    """Return an option as the command line takes it once for each key."""
    return [f"{flag}={name}={value}" for name, value in options.items()]


def train_all(contenders: Sequence[Contender], *, at_once: int) -> bool:
    """Train `at_once` losses at a time, pass an interrupt on, and return whether there was one."""
    with Interrupts(echo_problem) as interrupts, ThreadPoolExecutor(at_once) as pool:
        waiting = {pool.submit(contender.train) for contender in contenders}
        passed_on = False
        try:
            while waiting:
                waiting = wait(waiting, POLL_SECONDS).not_done
                if interrupts.asked and not passed_on:
                    passed_on = True
                    for contender in contenders:
                        contender.stop()
        except BaseException:
            for contender in contenders:
                contender.stop(signal.SIGKILL)
            raise
    return interrupts.asked
