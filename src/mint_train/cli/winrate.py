"""`mint-train winrate`: how often one policy's completions beat another's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from mint_train.cli.pairs import about, going_on
from mint_train.errors import command_line, counted
from mint_train.groups.prompts import read_prompts
from mint_train.observers.progress import shown_progress
from mint_train.observers.screen import Screen
from mint_train.observers.terminal import echo, echo_problem, say
from mint_train.sampling.matches import Compared, Comparing, compare_policies
from mint_train.sampling.policy import open_policy, reading_settings
from mint_train.settings.prices import describe_tokens


def compare_and_print(
    names: Sequence[str], data: str, given: Mapping[str, Any], comparing: Comparing
) -> None:
    """Compare two policies, and print a table of how often the first one wins.

    Args:
        names: the two policies.
        data: where the prompts are.
        given: settings on the command line.
        comparing: the judge, how completions are drawn, and the file to write.

    Raises:
        MintTrainError: what was given is wrong, or a backend or the judge failed.
    """
    prompts = read_prompts(data, reading_settings(given))
    for line in about(prompts):
        say(line)
    with going_on(comparing), shown_progress() as tell:
        policies = [open_policy(name, given, echo_problem) for name in names]
        compared = compare_policies(policies, prompts, comparing, tell)
    for line in [*compared.notes, *filter(None, [comparing.judge.note()])]:
        say(line)
    print_table(names, compared)
    say(f"Tokens: {describe_tokens(compared.tokens)}.")
    say(f"Each comparison is in {comparing.output}.")
    if compared.run is not None:
        echo(f"Next: {command_line('plot', compared.run)}, whose page shows the win rate too")


def print_table(names: Sequence[str], compared: Compared) -> None:
    """Print what the comparisons say."""
    rate = compared.rate
    left_out = f", {compared.left_out:,} more left out by the judge" if compared.left_out else ""
    made = f"{counted(compared.matches, 'comparison')} on {counted(rate.prompts, 'prompt')}"
    say(f"{made}{left_out}, each in both orders.")
    table = Table(f"{names[0]} against {names[1]}", "share", "95 % interval")
    for name, share in (("wins, a tie half", rate.raw), ("at equal length", rate.length_controlled)):
        table.add_row(name, f"{share.value:.1%}", f"{share.low:.1%} to {share.high:.1%}")
    for name, value in (("better", rate.wins), ("equal", rate.ties), ("worse", rate.losses)):
        table.add_row(name, f"{value:.1%}", "")
    Screen().print(table)
