"""The command line. It stays thin: options become settings, and the work is done elsewhere."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin

import click

from mint_train.errors import INTERRUPTED, RUN_FAILED, MintTrainError, OptionError
from mint_train.settings import SECRET_FIELDS, Settings, load_settings

NOT_OPTIONS = SECRET_FIELDS | {"options"}


class LossHelpGroup(click.Group):
    """A group whose help also shows the options of the loss that was named before it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take --help last, so that it knows the loss wherever it stands."""
        return super().parse_args(ctx, sorted(args, key="--help".__eq__))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, then the chosen loss's own."""
        super().format_options(ctx, formatter)
        if name := ctx.params.get("loss"):
            from mint_train.help import loss_option_rows

            with formatter.section(f"Options of the loss {name} (--set KEY=VALUE)"):
                formatter.write_dl(loss_option_rows(name))


def settings_options(command: click.Command) -> click.Command:
    """Give a command one option per field of the settings."""
    for name, field in Settings.model_fields.items():
        if name in NOT_OPTIONS:
            continue
        default = "" if field.default is None or field.is_required() else f"  [default: {field.default}]"
        switch = field.annotation is bool
        command.params.append(
            click.Option(
                [flag_names(name, field.default) if switch else "--" + name.replace("_", "-")],
                is_flag=switch,
                default=None,
                type=None if switch else click_type(field.annotation),
                metavar=None if switch else metavar(field.annotation),
                help=(field.description or "") + ("" if switch else default),
            )
        )
    return command


def flag_names(name: str, default: bool) -> str:
    """Name a switch: one that is on by default can be switched off."""
    flag = name.replace("_", "-")
    return f"--{flag}/--no-{flag}" if default else f"--{flag}"


def plain_type(annotation: Any) -> Any:
    """Take `None` out of an optional annotation."""
    if get_origin(annotation) is UnionType:
        return next(part for part in get_args(annotation) if part is not NoneType)
    return annotation


def click_type(annotation: Any) -> click.ParamType[Any] | None:
    """Let click check choices; everything else is checked by the settings model."""
    plain = plain_type(annotation)
    return click.Choice(get_args(plain)) if get_origin(plain) is Literal else click.STRING


def metavar(annotation: Any) -> str | None:
    """Name what an option takes, as the help shows it."""
    plain = plain_type(annotation)
    names = {int: "N", float: "NUMBER", Path: "PATH", str: "NAME"}
    return names.get(plain)


def parse_assignments(assignments: tuple[str, ...]) -> dict[str, str]:
    """Turn `KEY=VALUE` strings into a dictionary.

    Raises:
        OptionError: one of them has no `=` or no key.
    """
    options: dict[str, str] = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or not key.strip():
            raise OptionError(f"--set {assignment}: write it as --set KEY=VALUE")
        options[key.strip()] = value.strip()
    return options


def show_help(ctx: click.Context, _: click.Parameter, asked: bool) -> None:
    """Print the help once the other options are known."""
    if asked and not ctx.resilient_parsing:
        click.echo(ctx.get_help())
        ctx.exit()


@click.group(cls=LossHelpGroup, invoke_without_command=True, add_help_option=False)
@click.option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="An option of the loss; repeatable."
)
@click.option("--config", type=click.Path(path_type=Path), metavar="FILE", help="TOML file of settings.")
@click.version_option(version("mint-train"), prog_name="mint-train")
@click.option(
    "--help", is_flag=True, expose_value=False, callback=show_help, help="Show this message and exit."
)
@click.pass_context
def cli(ctx: click.Context, /, assignments: tuple[str, ...], config: Path | None, **given: Any) -> None:
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
    from mint_train.training import train_with

    result = train_with(settings)
    ctx.exit(INTERRUPTED if result.status == "interrupted" else 0)


settings_options(cli)


@cli.command()
def losses() -> None:
    """List the installed losses: name, what it extends, distribution, description."""
    from mint_train.help import losses_table

    click.echo(losses_table())


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.pass_context
def resume(ctx: click.Context, run: Path) -> None:
    """Continue the run in the folder RUN from its last checkpoint."""
    from mint_train.training import resume_run

    result = resume_run(run)
    ctx.exit(INTERRUPTED if result.status == "interrupted" else 0)


@cli.command()
@click.argument("name")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="An option of the loss.")
@click.option("--data", type=click.Path(path_type=Path), metavar="PATH", help="Rows to check it with.")
@click.pass_context
def check(ctx: click.Context, name: str, assignments: tuple[str, ...], data: Path | None) -> None:
    """Check that the loss NAME (or a file of one) keeps the plugin contract; no model is needed."""
    from mint_train.checking import check_and_print

    passed = check_and_print(name, parse_assignments(assignments), data)
    ctx.exit(0 if passed else RUN_FAILED)


@cli.command()
@click.argument("name")
@click.option("--folder", type=click.Path(path_type=Path), metavar="DIR", help="Folder to make, else NAME.")
def new(name: str, folder: Path | None) -> None:
    """Write a complete plugin distribution with a loss called NAME, to start your own from."""
    from mint_train.scaffold import new_loss

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
