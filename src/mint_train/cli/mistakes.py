"""One line for each slip on the command line: names of other tools, an unquoted pattern, an option twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path

import click

from mint_train.errors import nearest
from mint_train.settings.other_names import OTHER_NAMES

SEVERAL_FILES = 'to read several files, quote a pattern, --data "rows-*.jsonl", or repeat --data'
TRAIN = "mint-train --loss NAME trains"
COMMANDS = {
    "train": TRAIN,
    "run": TRAIN,
    "fit": TRAIN,
    "evaluate": "it is called mint-train eval",
    "generate": "it is called mint-train sample",
    "list": "mint-train losses lists the losses",
    "merge": "it is called mint-train export --to merged",
    "report": "it is called mint-train plot",
    "help": "it is called mint-train --help",
}
"""What somebody who asks for a command that does not exist is told."""


def explain_usage(error: click.UsageError) -> str:
    """Return a usage error of click's as one line, in the words of this program."""
    program = error.ctx.command_path if error.ctx else "mint-train"
    if isinstance(error, click.NoSuchOption):
        return f"no such option: {error.option_name}{suggestion(error)}; {program} --help lists all"
    message = error.format_message().rstrip(".")
    return f"{message[0].lower()}{message[1:]}; see {program} --help"


def suggestion(error: click.NoSuchOption) -> str:
    """Return what an unknown option is called here, or the nearest option, or nothing."""
    asked = error.option_name.lstrip("-").replace("_", "-")
    known = {name for param in error.ctx.command.params for name in param.opts} if error.ctx else set()
    ours = OTHER_NAMES.get(asked)
    # a command has only some of the options
    if ours is not None and (not ours.startswith("--") or ours.split()[0] in known):
        return f"; here it is {ours}"
    return nearest(error.option_name, known)


def no_such_command(name: str, commands: Collection[str], losses: Collection[str]) -> str:
    """Say in one line that a word is not a command, and what to write instead."""
    if Path(name).exists():
        return f"{name} is a file, not a command; {SEVERAL_FILES}"
    if name in losses:
        return f'"{name}" is a loss, not a command; train with it: mint-train --loss {name}'
    if name in COMMANDS:
        return f'no such command: "{name}"; {COMMANDS[name]}'
    return f'no such command: "{name}"{nearest(name, commands)}; mint-train --help lists all'


def repeated(order: Iterable[click.Parameter]) -> str | None:
    """Return what is wrong if an option that keeps one value was given more than once, or None.

    Args:
        order: the parameter of each option and argument, in the order in which they were given.
    """
    options = [param for param in order if isinstance(param, click.Option) and not param.multiple]
    times = Counter(option.name for option in options)
    for option in options:
        if times[option.name] > 1:
            flags = dict.fromkeys(each.opts[0] for each in options if each.name == option.name)
            together = " and ".join(flags)
            what = "exclude each other" if len(flags) > 1 else f"is given {times[option.name]} times"
            advice = SEVERAL_FILES if option.name == "data" else "give one of them"
            return f"{together} {what}; {advice}"
    return None
