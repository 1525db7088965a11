"""The options of the commands: one per setting, and the help that shows those of a loss."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import click
from click.shell_completion import CompletionItem

from mint_train.cli.mistakes import no_such_command, repeated
from mint_train.errors import MintTrainError, OptionError, unusable_text
from mint_train.observers.terminal import echo
from mint_train.settings.model import SECRET_FIELDS, Settings, option_name
from mint_train.settings.sampling import Sampling

HELP = ("-h", "--help")
NOT_OPTIONS = SECRET_FIELDS | {"options"}
SHORT_FOR_PROGRESS = {
    "quiet": "Print nothing but where the results are, and errors.",
    "json": "Print one JSON object per event, on a line each.",
}


class Command(click.Command):
    """A command that refuses an option given twice, of which click would keep the last."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments.

        Raises:
            OptionError: an option that takes one value is given more than once, or an argument is not text.
        """
        if not ctx.resilient_parsing:
            for unusable in filter(None, map(unusable_text, args)):
                raise OptionError(unusable)
            _, _, order = self.make_parser(ctx).parse_args(args=list(args))
            if problem := repeated(order):
                raise OptionError(problem)
        return super().parse_args(ctx, args)


class LossGroup(Command, click.Group):
    """The program itself, whose help also shows the options of the chosen loss."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take --help last, so that the loss is known wherever --help stands."""
        return super().parse_args(ctx, sorted(args, key=HELP.__contains__))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that the first argument names.

        Raises:
            OptionError: it names none; the message says what to write instead.
        """
        if not ctx.resilient_parsing and self.get_command(ctx, args[0]) is None:
            from mint_train.plugins.installed import loss_entry_points

            raise OptionError(no_such_command(args[0], self.commands, loss_entry_points()))
        return super().resolve_command(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, then the chosen loss's own."""
        super().format_options(ctx, formatter)
        if name := ctx.params.get("loss"):
            from mint_train.cli.listing import loss_option_rows

            with formatter.section(f"Options of the loss {name} (--set KEY=VALUE)"):
                formatter.write_dl(loss_option_rows(name))


def settings_options(
    command: click.Command, shown: Collection[str] = Settings.model_fields, *, others: bool = True
) -> click.Command:
    """Give a command one option per field of the settings; it shows, or it has, only some of them."""
    for name, field in Settings.model_fields.items():
        if name in NOT_OPTIONS or not (others or name in shown):
            continue
        plain = field.default in (None, ()) or field.default_factory is not None or field.is_required()
        default = "" if plain else f"  [default: {field.default}]"
        switch = field.annotation is bool
        command.params.append(
            click.Option(
                [flag_names(name, field.default) if switch else option_name(name), name],
                is_flag=switch,
                default=None,
                type=None if switch else click_type(field.annotation),
                metavar=None if switch else METAVARS.get(name) or metavar(field.annotation),
                multiple=name in CALLBACKS,
                callback=CALLBACKS.get(name),
                help=(field.description or "") + ("" if switch else default),
                hidden=name not in shown,
                shell_complete=COMPLETERS.get(name),
            )
        )
    if others or "progress" in shown:
        command.params += [
            click.Option([f"--{value}", "progress"], flag_value=value, default=None, help=text)
            for value, text in SHORT_FOR_PROGRESS.items()
        ]
    return command


def drawing_options(default: Sampling) -> list[click.Option]:
    """Return the options of how a completion is drawn, with their defaults."""
    return [
        click.Option(
            ["--max-tokens"],
            type=click.IntRange(min=1),
            default=default.max_tokens,
            show_default=True,
            metavar="N",
            help="Tokens per completion, at most.",
        ),
        click.Option(
            ["--temperature"],
            type=click.FloatRange(min=0),
            default=default.temperature,
            show_default=True,
            help="0 always takes the most likely token.",
        ),
        click.Option(
            ["--seed"],
            type=click.IntRange(min=0),
            default=default.seed,
            show_default=True,
            help="Random seed.",
        ),
    ]


def given_or_none(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> list[str] | None:
    """Return what a repeatable option was given; None where it was not."""
    return list(values) or None


def flag_names(name: str, default: bool) -> str:
    """Name a switch: one that is on by default can be switched off."""
    flag = option_name(name)
    return f"{flag}/--no-{flag.removeprefix('--')}" if default else flag


def plain_type(annotation: Any) -> Any:
    """Take `None` and bounds out of an annotation."""
    if get_origin(annotation) in (UnionType, Union):  # the latter of a `Literal`
        annotation = next(part for part in get_args(annotation) if part is not NoneType)
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def click_type(annotation: Any) -> click.ParamType[Any] | None:
    """Let click check choices; everything else is checked by the settings model."""
    plain = plain_type(annotation)
    return click.Choice(get_args(plain)) if get_origin(plain) is Literal else click.STRING


METAVARS = {
    "data": "FILE[:WEIGHT]",
    "eval_data": "[NAME=]FILE",
    "chat_template": "FILE",
    "price_file": "FILE",
    "sample_prompts": "FILE",
    "judge_options": "KEY=VALUE",
    "judge_timeout": "SECONDS",
    "chat_template_kwargs": "KEY=VALUE,...",
}
"""What options take whose type does not say it."""


def metavar(annotation: Any) -> str | None:
    """Name what an option takes, as the help shows it."""
    plain = plain_type(annotation)
    names = {int: "N", float: "NUMBER", Path: "PATH", str: "NAME"}
    return "FIELD=COLUMN,..." if get_origin(plain) is dict else names.get(plain)


def judge_options_or_none(
    _: click.Context, __: click.Parameter, values: tuple[str, ...]
) -> dict[str, str] | None:
    """Return the options of the judge; None where none was given."""
    return parse_assignments(values, "--judge-set") or None


CALLBACKS: dict[str, Any] = {
    "data": given_or_none,
    "eval_data": given_or_none,
    "judge_options": judge_options_or_none,
}
"""What becomes of an option that may be given more than once."""


def parse_assignments(assignments: tuple[str, ...], option: str = "--set") -> dict[str, str]:
    """Turn `KEY=VALUE` strings into a dictionary.

    Raises:
        OptionError: one of them has no `=` or no key.
    """
    options: dict[str, str] = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or not key.strip():
            raise OptionError(f"{option} {assignment}: write it as {option} KEY=VALUE")
        options[key.strip()] = value.strip()
    return options


class CheckpointName(click.ParamType[Any]):
    """`best`, `last`, or the step of a checkpoint."""

    name = "checkpoint"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """Return one of the words, or the step."""
        return value if value in ("best", "last") else click.IntRange(min=1).convert(value, param, ctx)


checkpoint_option = click.option(
    "--step",
    "--checkpoint",
    "step",
    type=CheckpointName(),
    metavar="best|last|N",
    help="A checkpoint of RUN, or the step of one; by default the best by its --select-by, else the last.",
)
"""Which checkpoint of a run a command takes."""


def complete_file(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Let the shell complete a file."""
    return [CompletionItem(incomplete, type="file")]


def complete_folder(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Let the shell complete a folder, such as a run's."""
    return [CompletionItem(incomplete, type="dir")]


def complete_option(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the option of the loss that was named before, if it is installed."""
    from mint_train.cli.listing import loss_option_rows

    # click leaves arguments unread where an option behind them has no value yet
    loss = ctx.params.get("loss") or next(iter(ctx.args), None)
    names: list[str] = []
    with suppress(MintTrainError):
        names = [row[0].split()[0] for row in loss_option_rows(loss)] if loss else []
    return [CompletionItem(f"{name}=") for name in names if name.startswith(incomplete)]


def complete_loss(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the name of a loss, the last one of a sum too, or its file."""
    from mint_train.plugins.installed import loss_entry_points

    if incomplete.startswith((".", "/", "~")):
        return [CompletionItem(incomplete, type="file")]
    begun = max(incomplete.rfind("+"), incomplete.rfind("*")) + 1
    before, name = incomplete[:begun], incomplete[begun:]
    return [CompletionItem(before + one) for one in sorted(loss_entry_points()) if one.startswith(name)]


COMPLETERS = {
    "data": complete_file,
    "eval_data": complete_file,
    "from_checkpoint": complete_folder,
    "loss": complete_loss,
    "model": complete_folder,
    "output": complete_folder,
    "price_file": complete_file,
    "sample_prompts": complete_file,
}


def show_help(ctx: click.Context, _: click.Parameter, asked: bool) -> None:
    """Print the help once the other options are known."""
    if asked and not ctx.resilient_parsing:
        echo(ctx.get_help())
        ctx.exit()
