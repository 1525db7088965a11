"""`mint-train pairs`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from mint_train.cli.options import (
    Command,
    complete_folder,
    drawing_options,
    parse_assignments,
    settings_options,
)
from mint_train.cli.start_up import load_libraries
from mint_train.settings.fields import JUDGE_SECONDS
from mint_train.settings.keywords import POLICY_SETTINGS
from mint_train.settings.sampling import DRAWN, JUDGED

FROM_FILE = "mint_train.config"
"""Where a context keeps what its config file says."""
IN_FILE = {
    "data": "prompts",
    "policy": "from_checkpoint",
    "take": "pair",
    **{name: name for name in ("judge", "judge_timeout", *DRAWN)},
}
"""By the parameter of a command, the field of a config file that it is taken from."""


def read_config_file(ctx: click.Context, _: click.Parameter, config: Path | None) -> None:
    """Let a config file say what the command line does not.

    Raises:
        OptionError: the file is wrong.
    """
    if config is None:
        return
    from mint_train.settings.merge import rounds_in, settings_in

    ctx.meta[FROM_FILE] = found = settings_in(config) | rounds_in(config)
    ctx.default_map = {ours: found[field] for ours, field in IN_FILE.items() if field in found}


def judge_options(ctx: click.Context, _: click.Parameter, assignments: tuple[str, ...]) -> dict[str, Any]:
    """Return the options of the judge, those of the config file under those of the command line.

    Raises:
        OptionError: one of them is not written as KEY=VALUE.
    """
    return {**ctx.meta.get(FROM_FILE, {}).get("judge_options", {}), **parse_assignments(assignments)}


def policy_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the policy: the command line over the environment over the config file."""
    from mint_train.settings.merge import VARIABLES

    found = click.get_current_context().meta.get(FROM_FILE, {})
    own = {
        name: value
        for name, value in found.items()
        if name in POLICY_SETTINGS and not os.environ.get(VARIABLES.get(name, ""))
    }
    asked = {name: value for name, value in given.items() if name in POLICY_SETTINGS and value is not None}
    return own | asked


def config_option() -> click.Option:
    """Return the option that names a config file; it is read before the others."""
    return click.Option(
        ["--config"],
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="TOML or YAML file, as for --rounds; what it says of training is not read.",
        is_eager=True,
        expose_value=False,
        callback=read_config_file,
    )


def sampling_options(command: click.Command) -> click.Command:
    """Give a command the options of how completions are drawn and judged."""
    shown = [
        config_option(),
        click.Option(["--judge"], required=True, metavar="NAME", help="The judge, an installed plugin."),
        click.Option(
            ["--set", "options"],
            multiple=True,
            metavar="KEY=VALUE",
            help="An option of the judge; repeatable.",
            callback=judge_options,
        ),
        click.Option(
            ["--judge-timeout"],
            type=click.FloatRange(min=0, min_open=True),
            default=JUDGE_SECONDS,
            show_default=True,
            metavar="SECONDS",
            help="Seconds that the judge may take for a batch.",
        ),
        *drawing_options(JUDGED),
        click.Option(["--overwrite"], is_flag=True, help="Begin again, and replace the output."),
    ]
    command.params += shown
    return settings_options(command, POLICY_SETTINGS, others=False)


@click.command("pairs", cls=Command, short_help="Make rows of what a policy writes and a judge scores.")
@click.argument("data", metavar="PROMPTS")
@click.option(
    "--from",
    "policy",
    metavar="RUN|STATE|MODEL",
    shell_complete=complete_folder,
    help="Who writes: a run (RUN, RUN@STEP or RUN@best), a state on the service, an adapter, or a base "
    "model; by default the base model.",
)
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    default=JUDGED.samples,
    show_default=True,
    help="Per prompt.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help="JSON Lines file to write.",
)
@click.option(
    "--pair",
    "take",
    metavar="best-worst|best-random|all|threshold=T",
    help="Write preferences, of these completions of a prompt; the default, with best-worst.",
)
@click.option("--rank", "ranked", is_flag=True, help="Write rankings: all completions, the best first.")
@click.option("--rate", "rated", is_flag=True, help="Write ratings: each completion, good or not.")
@click.option("--rollouts", is_flag=True, help="Write tokens with rewards and their sampling logprobs.")
@click.option("--keep-all", is_flag=True, help="Keep all completions with their scores in each row.")
def make_rows(data: str, policy: str | None, **given: Any) -> None:
    """Sample completions of the prompts in a file, judge them, and write rows to train on.

    PROMPTS is anything that --data takes. A command that was stopped goes on where it was.
    """
    load_libraries("Loading torch, transformers and the policy ...")
    from mint_train.cli.pairs import choose_writer, make_and_print
    from mint_train.judging.judge import open_judge
    from mint_train.sampling.making import Making

    written = {part: given[part] for part in ("output", "keep_all", "overwrite")}
    writer = choose_writer({part: given[part] for part in ("take", "ranked", "rated", "rollouts")})
    judge = open_judge(given["judge"], given["options"], given["judge_timeout"])
    making = Making(judge, writer, JUDGED.with_given(given), **written)
    make_and_print(data, policy, policy_settings(given), making)


sampling_options(make_rows)
