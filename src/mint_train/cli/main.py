"""The command line: `mint-train` itself, which trains, and its commands, one file each in `commands`.

It stays thin: options become settings, and the work is done elsewhere.
"""

from __future__ import annotations

import errno
import io
import logging
import signal
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import click

from mint_train.backends.ranks import Ranks, refuse_several_processes
from mint_train.cli.commands.check import check
from mint_train.cli.commands.check_judge import check_judge
from mint_train.cli.commands.check_server import check_server
from mint_train.cli.commands.compare import compare
from mint_train.cli.commands.completion import completion
from mint_train.cli.commands.eval import evaluate
from mint_train.cli.commands.export import export
from mint_train.cli.commands.losses import losses
from mint_train.cli.commands.new import new
from mint_train.cli.commands.pairs import make_rows
from mint_train.cli.commands.plot import plot
from mint_train.cli.commands.resume import resume
from mint_train.cli.commands.sample import sample
from mint_train.cli.commands.schema import schema
from mint_train.cli.commands.winrate import winrate
from mint_train.cli.mistakes import explain_usage
from mint_train.cli.options import LossGroup, complete_option, parse_assignments, settings_options, show_help
from mint_train.cli.rounds import begin_rounds, rounds_options
from mint_train.cli.start_up import load_libraries, rarely_collected
from mint_train.cli.streams import outlast_readers
from mint_train.errors import INTERRUPTED, RUN_FAILED, USER_MISTAKE, MintTrainError, OptionError, command_line
from mint_train.observers.terminal import echo_problem
from mint_train.plugins.installed import require_losses
from mint_train.settings.merge import load_rounds, load_settings
from mint_train.settings.rounds import split_rounds

PACKAGE = Path(__file__).parents[1]


@click.group(
    cls=LossGroup,
    invoke_without_command=True,
    add_help_option=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="An option of the loss; repeatable.",
    shell_complete=complete_option,
)
@click.option("--config", type=click.Path(path_type=Path), metavar="FILE", help="TOML or YAML file.")
@click.option("--dry-run", is_flag=True, help="Inspect the data only: no model, no key, no training.")
@click.option(
    "--examples", type=click.IntRange(min=0), default=1, metavar="N", help="Rows a dry run shows whole."
)
@click.version_option(package_name="mint-train", prog_name="mint-train")
@click.option(
    "-h",
    "--help",
    is_flag=True,
    expose_value=False,
    callback=show_help,
    help="Show this message, with the options of --loss, and exit.",
)
@click.pass_context
def cli(
    ctx: click.Context,
    /,
    assignments: tuple[str, ...],
    config: Path | None,
    dry_run: bool,
    examples: int,
    **given: Any,
) -> None:
    """Train a language model with a loss chosen by name, on MinT or on this machine.

    `mint-train --loss dpo` trains on a few bundled pairs, with no key and no download. Values come from the
    command line, then the environment, then --config, then the defaults.
    """
    if ctx.invoked_subcommand is not None:
        if ctx.invoked_subcommand != "resume":
            refuse_several_processes(command_line(ctx.invoked_subcommand))
        return
    if assignments:
        given["options"] = parse_assignments(assignments)
    of_rounds, of_run = split_rounds(given)
    settings, rounds = load_settings(of_run, config), load_rounds(of_rounds, config)
    require_losses(settings.loss)
    for asked_for, name in ((dry_run, "--dry-run"), (rounds is not None, "--rounds")):
        if asked_for:
            refuse_several_processes(name)
    if dry_run:
        if rounds is not None:
            raise OptionError(
                "--dry-run looks at rows, and --rounds makes them: try `mint-train pairs` first"
            )
        load_libraries("Loading transformers and the tokenizer ...")
        from mint_train.cli.dry_run import inspect_and_print

        ctx.exit(inspect_and_print(settings, examples))
    load_libraries(f"Loading torch, transformers and the loss {settings.loss} ...")
    if rounds is not None:
        ctx.exit(INTERRUPTED if begin_rounds(settings, rounds) == "interrupted" else 0)
    from mint_train.training.training import train_with

    result = train_with(settings)
    ctx.exit(INTERRUPTED if result.status == "interrupted" else 0)


rounds_options(settings_options(cli))
for command in (
    check,
    check_judge,
    check_server,
    compare,
    completion,
    evaluate,
    export,
    losses,
    new,
    make_rows,
    plot,
    resume,
    sample,
    schema,
    winrate,
):
    cli.add_command(command)


def main() -> None:
    """Run the command line; what a user can cause is one line on standard error and an exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a row or a bar may hold what the terminal cannot show
    outlast_readers()
    signal.signal(signal.SIGTERM, interrupt)
    logging.raiseExceptions = False  # a library's broken log call is not the user's business
    warnings.showwarning = partial(show_warning, warnings.showwarning)
    with rarely_collected():
        raise SystemExit(run_command_line())


def show_warning(
    usual: Callable[..., None], message: Warning, category: type[Warning], filename: str, *rest: Any
) -> None:
    """Show this program's own warnings as a line, without source code, and others as usual."""
    if PACKAGE in Path(filename).parents:
        echo_problem(message)
    else:
        usual(message, category, filename, *rest)


def system_refusal(error: OSError) -> str:
    """Say what the operating system refuses, and for which file."""
    reason = error.strerror or str(error)
    return reason if error.filename is None else f"{error.filename}: {reason}"


def run_one_of_several(ranks: Ranks) -> int | None:
    """Run the command line in process 0 of those that `torchrun` has started, and serve it in the others.

    Raises:
        MintTrainError: what the user gave is wrong, or the run failed; in process 0 alone.
    """
    from mint_train.backends.local.serving import leading, serve

    if ranks.rank:
        return serve(ranks)
    with leading(ranks):
        status: int | None = cli(standalone_mode=False)
    return status


def interrupt(_number: int, _frame: FrameType | None) -> None:
    """End as after Ctrl-C: with a line, and with temporary files deleted."""
    raise KeyboardInterrupt


def run_command_line() -> int:
    """Run the command line and return its exit status."""
    try:
        ranks = Ranks.of_environment()
        status = cli(standalone_mode=False) if ranks is None else run_one_of_several(ranks)
    except MintTrainError as error:
        echo_problem(error)
        status = error.exit_status
    except click.UsageError as error:
        echo_problem(explain_usage(error))
        status = error.exit_code
    except click.ClickException as error:
        echo_problem(error.format_message())
        status = error.exit_code
    except OSError as error:
        echo_problem(system_refusal(error))
        status = USER_MISTAKE if error.errno == errno.ENAMETOOLONG else RUN_FAILED
    except (KeyboardInterrupt, click.Abort):
        echo_problem("interrupted")
        status = INTERRUPTED
    return int(status or 0)
