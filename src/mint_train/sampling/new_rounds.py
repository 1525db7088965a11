"""The beginning of `--rounds`: what was asked is checked, and kept in a new folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from mint_train.backends.choose import choose_backend, model_at_commit
from mint_train.backends.start import find_start
from mint_train.errors import OptionError, command_line
from mint_train.groups.located_reference import options_located
from mint_train.groups.prompts import read_prompts
from mint_train.run_folder.files import Place, whole_folder, write_whole
from mint_train.run_folder.names import make_unused_folder
from mint_train.run_folder.replacing import is_empty
from mint_train.sampling.policy import reading_settings
from mint_train.sampling.round_plan import (
    JUDGE_FIELDS,
    Plan,
    files_found_anywhere,
    holds_rounds,
    write_plan,
)
from mint_train.sampling.rounds import PROMPTS_FILE, Rounds, RoundsProgram
from mint_train.settings.data_items import STANDARD_INPUT
from mint_train.settings.model import SECRET_FIELDS, Settings


def new_rounds(settings: Settings, plan: Plan, program: RoundsProgram | None = None) -> Rounds:
    """Make a folder for rounds, and keep the plan in it.

    Raises:
        OptionError: the folder exists, or a setting is one that rounds decide.
        UserError: the prompts, the judge or the loss is wrong.
    """
    output = settings.output
    if output is not None and output.exists() and not (output.is_dir() and is_empty(output)):
        if holds_rounds(output):
            raise OptionError(
                f"--output {output} holds rounds; {command_line('resume', output)} goes on with them"
            )
        raise OptionError(f"--output {output} exists; name another folder")
    place = Place(output or Path())  # before the loss or the judge can take another current folder
    own = own_settings(settings)
    backend = choose_backend(settings)
    own |= files_found_anywhere(settings, own) | model_at_commit(settings, backend)
    kept = Settings(**own).model_dump(mode="json", include=set(own))
    rounds = with_prompts(Rounds(place, plan.found_anywhere(), kept, program=program))
    first = rounds.settings(rounds.own_settings(1))  # refused before anything is sampled
    find_start(first)
    loss = rounds.open_loss(first)
    rounds.open_judge()
    if changed := options_located(loss, backend):
        kept["options"] = {**settings.options, **changed}
    folder = place.path if output else make_unused_folder(f"{settings.loss}-rounds")
    with whole_folder(folder) as made:
        if program is not None and program.prompts is not None:
            write_whole(made / PROMPTS_FILE, program.prompts)
        write_plan(made, rounds.plan, kept)
    return replace(rounds, place=place if output else Place(folder), given=kept)


def own_settings(settings: Settings) -> dict[str, Any]:
    """Return the settings that were given, without those that each round has of its own.

    Raises:
        OptionError: one is for what rounds decide.
    """
    own = {name: getattr(settings, name) for name in settings.model_fields_set - SECRET_FIELDS}
    for name in ("data", "columns"):
        if own.pop(name, None):
            raise OptionError(f"--{name}: --rounds trains on what is sampled; leave it out")
    if settings.sample_prompts is None:
        own = {name: value for name, value in own.items() if name not in JUDGE_FIELDS}
    own.pop("output", None)
    return own | {"overwrite": False}


def with_prompts(rounds: Rounds) -> Rounds:
    """Return rounds with the prompts that they find now as those that they go on with.

    Raises:
        OptionError: they would come from standard input, which can be read once.
        DataError: they cannot be read.
    """
    if rounds.program is not None and rounds.program.prompts is not None:
        rows = list(map(json.loads, rounds.program.prompts.splitlines()))
        digest = read_prompts(rows, reading_settings({})).sha256
        return replace(rounds, plan=replace(rounds.plan, prompts=PROMPTS_FILE, prompts_sha256=digest))
    if rounds.plan.prompts == STANDARD_INPUT:
        raise OptionError("--prompts -: each round reads the prompts again; write them to a file")
    return replace(rounds, plan=replace(rounds.plan, prompts_sha256=rounds.read_prompts().sha256))
