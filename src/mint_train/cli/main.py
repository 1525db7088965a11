"""The command line. It stays thin: options become settings, and the work is done elsewhere."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
from click.shell_completion import get_completion_class

from mint_train.cli.options import (
    LossHelpGroup,
    complete_loss,
    parse_assignments,
    settings_options,
    show_help,
)
from mint_train.errors import INTERRUPTED, RUN_FAILED, MintTrainError, OptionError
from mint_train.settings.merge import load_settings
from mint_train.settings.model import Settings
from mint_train.settings.recorded import LENGTH, MAY_CHANGE

EVAL_SETTINGS = ("loss", "model", "rank", "batch_size", "max_length", "special_tokens", "base_url")
SAMPLE_SETTINGS = ("loss", "model", "rank", "special_tokens", "base_url")
COMPARE_SETTINGS = Settings.model_fields.keys() - {"loss", "output"}


@click.group(cls=LossHelpGroup, invoke_without_command=True, add_help_option=False)
@click.option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="An option of the loss; repeatable."
)
@click.option("--config", type=click.Path(path_type=Path), metavar="FILE", help="TOML or YAML file.")
@click.option("--dry-run", is_flag=True, help="Look at the data only: no model, no key, no training.")
@click.version_option(version("mint-train"), prog_name="mint-train")
@click.option(
    "--help", is_flag=True, expose_value=False, callback=show_help, help="Show this message and exit."
)
@click.pass_context
def cli(
    ctx: click.Context, /, assignments: tuple[str, ...], config: Path | None, dry_run: bool, **given: Any
) -> None:
    """Train a language model with a loss chosen by name, on MinT or on this machine.

    `mint-train --loss dpo` trains on a few bundled pairs, with no key and no download. Values come from the
    command line, then the environment, then --config, then the defaults.
    """
    if ctx.invoked_subcommand is not None:
        return
    if given.get("loss") is None and config is None:
        click.echo(ctx.get_help())
        ctx.exit(2 if len(sys.argv) > 1 else 0)
    if assignments:
        given["options"] = parse_assignments(assignments)
    settings = load_settings(given, config)
    if dry_run:
        from mint_train.cli.dry_run import look_at_data

        ctx.exit(look_at_data(settings))
    from mint_train.training.training import train_with

    result = train_with(settings)
    ctx.exit(INTERRUPTED if result.status == "interrupted" else 0)


settings_options(cli)


@cli.command()
@click.option("--loss", metavar="NAME", help="Add the options of this loss.", shell_complete=complete_loss)
def schema(loss: str | None) -> None:
    """Print the JSON Schema of a config file, for an editor to check and complete it with."""
    import json

    from mint_train.settings.config_files import config_schema

    options = None
    if loss is not None:
        from mint_train.losses.weighted_sum import open_loss

        options = open_loss(loss, {}).options_model.model_json_schema()
    click.echo(json.dumps(config_schema(options), indent=2))


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell: `eval "$(mint-train completion bash)"` in its start-up file."""
    complete = get_completion_class(shell)
    if complete is None:
        raise OptionError(f"there is no completion for {shell}")
    click.echo(complete(cli, {}, "mint-train", "_MINT_TRAIN_COMPLETE").source())


@cli.command()
def losses() -> None:
    """List the installed losses: name, what it extends, distribution, description."""
    from mint_train.cli.listing import losses_table

    click.echo(losses_table())


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--set", "assignments", multiple=True, hidden=True)
@click.pass_context
def resume(ctx: click.Context, /, run: Path, assignments: tuple[str, ...], **given: Any) -> None:
    """Continue the run in the folder RUN from its last checkpoint.

    It goes on with the settings that it was begun with. Those below may be given anew; --steps and --epochs
    only where the learning rate's schedule is constant.
    """
    from mint_train.training.training import resume_run

    result = resume_run(run, given | {"options": parse_assignments(assignments)})
    ctx.exit(INTERRUPTED if result.status == "interrupted" else 0)


settings_options(resume, shown=MAY_CHANGE | LENGTH)


@cli.command()
@click.argument("name")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="An option of the loss.")
@click.option("--data", type=click.Path(path_type=Path), metavar="PATH", help="Rows to check it with.")
@click.pass_context
def check(ctx: click.Context, name: str, assignments: tuple[str, ...], data: Path | None) -> None:
    """Check that the loss NAME (or a file of one) keeps the plugin contract; no model is needed."""
    from mint_train.cli.check import check_and_print

    passed = check_and_print(name, parse_assignments(assignments), data)
    ctx.exit(0 if passed else RUN_FAILED)


@cli.command("eval")
@click.argument("name", metavar="RUN_OR_CHECKPOINT")
@click.option("--data", metavar="PATH", help="Held-out rows; else those of the run.")
@click.option("--step", type=click.IntRange(min=1), metavar="N", help="A checkpoint of RUN, else its last.")
@click.option(
    "--rows",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Where each row's own figures go.",
)
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="An option of the loss.")
def evaluate(
    name: str,
    data: str | None,
    step: int | None,
    rows: Path | None,
    assignments: tuple[str, ...],
    **given: Any,
) -> None:
    """Evaluate a trained policy on held-out rows: the loss's metrics with 95 % confidence intervals.

    RUN_OR_CHECKPOINT is a run folder, a checkpoint in one, or a tinker:// path of a saved state, which needs
    --loss. The settings below may differ from the run's.
    """
    from mint_train.cli.evaluate import evaluate_and_print

    if assignments:
        given["options"] = parse_assignments(assignments)
    evaluate_and_print(name, step, data, rows, given)


settings_options(evaluate, EVAL_SETTINGS, others=False)


@cli.command()
@click.argument("name", metavar="RUN_OR_CHECKPOINT")
@click.option("--prompt", metavar="TEXT", help="What a user says.")
@click.option("--data", metavar="PATH", help="Rows with prompts; else those of the run.")
@click.option("--rows", type=click.IntRange(min=1), default=4, show_default=True, help="Prompts of the rows.")
@click.option("--step", type=click.IntRange(min=1), metavar="N", help="A checkpoint of RUN, else its last.")
@click.option(
    "-n", "samples", type=click.IntRange(min=1), default=1, show_default=True, help="Completions per prompt."
)
@click.option("--max-tokens", type=click.IntRange(min=1), default=64, show_default=True, help="Of each.")
@click.option(
    "--temperature",
    type=click.FloatRange(min=0),
    default=0.7,
    show_default=True,
    help="0 takes the likeliest token each time.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of what is drawn.")
def sample(
    name: str, prompt: str | None, data: str | None, rows: int, step: int | None, **given: Any
) -> None:
    """Show what the policy writes before training and after, side by side.

    RUN_OR_CHECKPOINT is a run folder, a checkpoint in one, or a tinker:// path.
    """
    from mint_train.backends.base import Sampling
    from mint_train.cli.sample import sample_and_print

    if prompt is not None and data is not None:
        raise OptionError("--prompt and --data are both given; give one of them")
    drawn = {part: given.pop(part) for part in ("samples", "max_tokens", "temperature", "seed")}
    sample_and_print(name, step, prompt, data, rows, Sampling(**drawn), given)


settings_options(sample, SAMPLE_SETTINGS, others=False)


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--merge", is_flag=True, help="Add the adapter to the base model's weights.")
@click.option(
    "--output", type=click.Path(path_type=Path), metavar="DIR", help="Folder to write; else one beside RUN."
)
def export(run: Path, merge: bool, output: Path | None) -> None:
    """Copy the adapter of the run in the folder RUN, or write the merged model, with a model card.

    The weights of a run on MinT are on the service: then it prints how to sample from them.
    """
    from mint_train.cli.export import export_run

    export_run(run, output, merge=merge)


@cli.command()
@click.argument("losses", nargs=-1, required=True, metavar="LOSS...", shell_complete=complete_loss)
@click.option(
    "--set", "assignments", multiple=True, metavar="LOSS.KEY=VALUE", help="An option of one loss; repeatable."
)
@click.option("--config", type=click.Path(path_type=Path), metavar="FILE", help="TOML or YAML file.")
@click.option(
    "--output", type=click.Path(path_type=Path), metavar="DIR", help="Folder for the runs; else one in runs/."
)
@click.pass_context
def compare(
    ctx: click.Context,
    /,
    losses: tuple[str, ...],
    assignments: tuple[str, ...],
    config: Path | None,
    output: Path | None,
    **given: Any,
) -> None:
    """Train several losses on the same rows and compare them on the same held-out rows.

    Each loss is a run of its own; on MinT they run at once, on this machine one after another. Without
    --eval-data or --eval-fraction a tenth of the rows is held out.
    """
    from mint_train.cli.compare import compare_and_print

    done, interrupted = compare_and_print(losses, parse_assignments(assignments), config, output, given)
    ctx.exit(INTERRUPTED if interrupted else 0 if done else RUN_FAILED)


settings_options(compare, COMPARE_SETTINGS, others=False)


@cli.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=click.Path(path_type=Path))
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Where to write, as .png and .html; else report in RUN, or in this folder for several runs.",
)
def plot(runs: tuple[Path, ...], output: Path | None) -> None:
    """Draw runs, one over the other, as a PNG picture and an HTML page.

    RUN... are run folders, finished or not. The page holds curves, settings, data and final figures, and it
    needs nothing else.
    """
    from mint_train.report.plots import plot_runs, report_path

    for written in plot_runs(runs, output or report_path(runs)):
        click.echo(f"Wrote {written}")


@cli.command()
@click.argument("name")
@click.option("--folder", type=click.Path(path_type=Path), metavar="DIR", help="Folder to make, else NAME.")
def new(name: str, folder: Path | None) -> None:
    """Write a complete plugin distribution with a loss called NAME, to start your own from."""
    from mint_train.plugins.scaffold import new_loss

    written = new_loss(name, folder)
    click.echo(f"Wrote {written}. Next: pip install -e {written}, then mint-train check {name}")


def main() -> None:
    """Run the command line; what a user can cause is one line on standard error and an exit status."""
    try:
        status = cli(standalone_mode=False)
    except MintTrainError as error:
        click.echo(f"mint-train: {error}", err=True)
        status = error.exit_status
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("mint-train: interrupted", err=True)
        status = INTERRUPTED
    raise SystemExit(status)
