"""`mint-train pairs`: rows of what a policy writes and a judge scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mint_train.errors import InterruptedCommandError, OptionError, command_line
from mint_train.groups.prompts import Prompts, read_prompts
from mint_train.observers.progress import shown_progress
from mint_train.observers.terminal import echo, echo_problem, say
from mint_train.sampling.making import Making, RowWriter, make_rows, require_rows
from mint_train.sampling.matches import Comparing
from mint_train.sampling.policy import open_policy, reading_settings


def choose_writer(forms: Mapping[str, Any]) -> RowWriter:
    """Return the row writer that one of `--pair`, `--rank`, `--rate` and `--rollouts` asks for.

    Raises:
        OptionError: two are given, or the choice of pairs is unknown.
    """
    writers = {"ranked": "rank", "rated": "rate", "rollouts": "rollouts"}
    asked = [writers[form] for form, given in forms.items() if given and form in writers]
    if forms["take"] is not None:
        asked.append("pair")
    if len(asked) > 1:
        raise OptionError(f"--{asked[0]} and --{asked[1]} are both given; give one of them")
    if not asked or asked == ["pair"]:
        return RowWriter("pair", {} if forms["take"] is None else {"take": forms["take"]})
    return RowWriter(asked[0], {})


def make_and_print(data: str, name: str | None, given: Mapping[str, Any], making: Making) -> None:
    """Make the rows, and print what they are made of.

    Args:
        data: where the prompts are.
        name: the policy; None for the base model.
        given: settings on the command line.
        making: the judge, the row writer, how completions are drawn, and the file to write.

    Raises:
        MintTrainError: what was given is wrong, or the backend or the judge failed.
    """
    prompts = read_prompts(data, reading_settings(given))
    for line in about(prompts):
        say(line)
    with (
        going_on(making),
        open_policy(name, given, echo_problem) as policy,
        shown_progress() as tell,
    ):
        made = make_rows(policy, prompts, making, tell)
    notes = [making.writer.note() if made.rows else None, making.judge.note()]
    for line in [*made.readable.lines(), *made.lines(), *filter(None, notes)]:
        say(line)
    require_rows(made)
    say(f"Written to {making.output}.")
    echo(f"Next: {command_line('--loss', 'LOSS', '--data', making.output)}")


@contextmanager
def going_on(work: Making | Comparing) -> Iterator[None]:
    """Let an interrupt say how the command goes on, where it does.

    Raises:
        InterruptedCommandError: it was interrupted.
    """
    try:
        yield
    except KeyboardInterrupt:
        begun = any(path.exists() for path in work.journals)
        if not begun or (work.overwrite and work.output.exists()):  # the same command begins again
            raise
        command = "the same command without --overwrite" if work.overwrite else "the same command"
        problem = f"interrupted; {command} goes on with what is written and judged"
        raise InterruptedCommandError(problem) from None


def about(prompts: Prompts) -> list[str]:
    """Say what the file of prompts holds."""
    lines = [f"{prompts.described}."]
    if prompts.repeated:
        lines.append(f"Prompts that stand in an earlier row too, left out: {prompts.repeated:,}")
    return lines + [f"Skipped: {bad}" for bad in prompts.bad_rows]
