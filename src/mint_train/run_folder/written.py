"""Which files of a run folder mint-train wrote: only these are ever moved, replaced or deleted."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from mint_train.run_folder.parts import (
    ADAPTER,
    BASE_MODEL,
    CHECKPOINTS,
    EVALUATION_ROWS,
    FILES,
    OBSERVERS,
    PARTS,
    REFERENCE_FOLDER,
    SAMPLES,
    STARTING,
)
from mint_train.run_folder.records import STATE_FILE
from mint_train.settings.data_items import KEPT_ROWS

UNLOCKED = (REFERENCE_FOLDER, EVALUATION_ROWS)
STEP = r"step-\d{6,}"
WRITTEN = re.compile(
    "|".join(map(re.escape, FILES)) + rf"|{EVALUATION_ROWS}/([^/]+-)?{STEP}\.jsonl"
    rf"|{ADAPTER}/(adapter_config\.json|adapter_model\.safetensors|README\.md)"
    rf"|{BASE_MODEL}/((config|generation_config|tokenizer|tokenizer_config|special_tokens_map)\.json"
    r"|model\.safetensors|chat_template\.jinja)"
    rf"|{CHECKPOINTS}/{STEP}/{re.escape(STATE_FILE)}"
    rf"|{REFERENCE_FOLDER}/[0-9a-f]+\.arrow"
    rf"|{KEPT_ROWS}/[^/]+\.jsonl"
    rf"|{SAMPLES}/{STEP}\.jsonl"
    rf"|{OBSERVERS}/.+"
)
EVALUATION = re.compile(rf"{EVALUATION_ROWS}/\.{STEP}\.jsonl\.[0-9a-f]{{12}}\.part")
"""The rows of a run's own evaluation, half written."""
TEMPORARY = re.compile(r"\.(?P<name>.{1,40})\.[0-9a-f]{12}\.(part|old)")
"""A name that `files.drawn_beside` drew."""


def ours(relative: str) -> bool:
    """Return whether mint-train writes a file of this name, relative to the run folder, with slashes."""
    parts = relative.split("/")
    for depth, part in enumerate(parts):
        drawn = TEMPORARY.fullmatch(part)
        if drawn is not None and (depth > 0 or drawn["name"] in PARTS) and parts[0] not in {"", ".."}:
            return depth == 0 or parts[0] in PARTS
    return WRITTEN.fullmatch(relative) is not None


def is_start(name: str) -> bool:
    """Return whether a name is that of a half written `STARTING`: a run was killed as it began."""
    drawn = TEMPORARY.fullmatch(name)
    return drawn is not None and drawn["name"] == STARTING


def our_files(folder: Path) -> list[str]:
    """Return the files in a folder that mint-train wrote, relative to it; links are not followed."""
    return [name for name in walk(folder) if ours(name)]


def temporary_files(folder: Path) -> list[str]:
    """Return those of them that a killed run left half written.

    What is in `reference` and `evaluations` may be that of a command, which takes no lock; the rows of a
    run's own evaluation, by their name, are not.
    """
    drawn = [name for name in walk(folder) if any(map(TEMPORARY.fullmatch, name.split("/")))]
    ours_alone = [name for name in drawn if name.split("/")[0] not in UNLOCKED or EVALUATION.fullmatch(name)]
    return [name for name in ours_alone if ours(name)]


def part_folders(folder: Path) -> Iterator[Path]:
    """Yield each folder that a killed run was writing, by its drawn name."""
    for at in (folder, folder / CHECKPOINTS):
        for path in sorted(at.glob(".*.part")):
            if path.is_dir() and ours(f"{path.relative_to(folder).as_posix()}/file"):
                yield path


def old_folders(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Yield each folder that was to be replaced when a run was killed, and the path that it had."""
    for at in (folder, folder / CHECKPOINTS):
        for path in sorted(at.glob(".*.old")):
            drawn = TEMPORARY.fullmatch(path.name)
            if drawn is not None and ours(f"{path.relative_to(folder).as_posix()}/file"):
                yield path, path.with_name(drawn["name"])


def walk(folder: Path) -> Iterator[str]:
    """Yield the files below a folder, relative to it; of folders that begin with a dot only drawn ones."""
    for at, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") or TEMPORARY.fullmatch(name)]
        for name in files:
            yield Path(at, name).relative_to(folder).as_posix()


def remove_files(folder: Path, names: list[str]) -> None:
    """Remove some files of a folder, and the folders below it that this leaves empty."""
    for name in names:
        (folder / name).unlink(missing_ok=True)
    remove_empty(folder, names)


def remove_empty(folder: Path, names: list[str]) -> None:
    """Remove the folders of some files that are no longer there, where nothing else is in them."""
    parents = {parent for name in names for parent in Path(name).parents if parent != Path()}
    for parent in sorted(parents, reverse=True):
        with suppress(OSError):  # something else is in it
            (folder / parent).rmdir()


def prune(folder: Path) -> None:
    """Remove a folder if no file is in it, with the empty folders below it."""
    for at, _, _ in os.walk(folder, topdown=False):
        with suppress(OSError):  # something is in it
            Path(at).rmdir()
