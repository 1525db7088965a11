"""Replacing a run by another one, so that a failure or a kill at any point costs neither.

The files of the old run are moved into `.replacing`, which then becomes `.replaced`. They are deleted once
the new run has its `run.json`; until then, the next look at the folder moves them back.
"""

from __future__ import annotations

from pathlib import Path

from mint_train.errors import MintTrainError, UserError
from mint_train.run_folder.description import parse_description
from mint_train.run_folder.files import leave_old
from mint_train.run_folder.parts import CHECKPOINTS, PARTS, RUN_FILE, STARTING
from mint_train.run_folder.written import (
    is_start,
    old_folders,
    our_files,
    part_folders,
    prune,
    remove_empty,
    remove_files,
    temporary_files,
    walk,
)

LOCK_FILE = ".lock"
REPLACING, REPLACED = ".replacing", ".replaced"
STARTING_TEXT = "This run of mint-train has not begun.\n"


def is_replaced(folder: Path) -> bool:
    """Return whether a folder holds a run only in the form of one that was to be replaced."""
    return not (folder / RUN_FILE).exists() and any(
        (folder / name / RUN_FILE).exists() for name in (REPLACING, REPLACED)
    )


def is_starting(folder: Path) -> bool:
    """Return whether a run was started in a folder and had not begun."""
    try:
        return (folder / STARTING).read_text(encoding="utf-8") == STARTING_TEXT
    except (OSError, ValueError):
        return False


def set_aside(folder: Path) -> None:
    """Move the files of a run aside, all or none.

    Raises:
        UserError: one cannot be moved, with the reason; the run is as it was.
    """
    aside = folder / REPLACING
    try:
        aside.mkdir()
        move(folder, aside, sorted(our_files(folder), key=lambda name: name != RUN_FILE))
        aside.rename(folder / REPLACED)
    except OSError as error:
        put_back(folder)
        raise UserError(
            f"{folder} cannot be replaced ({error.filename}: {error.strerror}); nothing in it was changed"
        ) from error


def put_back(folder: Path) -> None:
    """Undo `set_aside`, and remove what the new run wrote.

    Raises:
        UserError: it is not known what would be removed.
        MintTrainError: a file cannot be moved back; the next look at the folder tries again.
    """
    replaced, replacing = folder / REPLACED, folder / REPLACING
    if replaced.exists():
        refuse_other_runs(folder)
    try:
        if replaced.exists():
            clear(folder)
            replaced.rename(replacing)
        names = sorted(our_files(replacing), key=lambda name: name == RUN_FILE)
        for name in names:
            if (folder / name).exists():
                raise FileExistsError(17, "File exists", str(folder / name))
        move(replacing, folder, names)
        prune(replacing)
    except OSError as error:
        raise MintTrainError(
            f"{folder} holds a run that was to be replaced, in {REPLACING}, and it cannot be moved back "
            f"({error.filename}: {error.strerror}); move that file away, and run any command on the folder"
        ) from error


def refuse_other_runs(folder: Path) -> None:
    """Refuse to put a run back where there are two, or where states are that a run saves once it has begun.

    Raises:
        UserError: naming what to move away.
    """
    if (folder / REPLACING).exists():
        raise UserError(
            f"{folder} holds two runs that were to be replaced; move {REPLACING} or {REPLACED} away"
        )
    if any((folder / CHECKPOINTS).glob("*/state.safetensors")):
        raise UserError(
            f"{folder} holds states without a {RUN_FILE}, and in {REPLACED} a run; move checkpoints or "
            f"{REPLACED} away"
        )


def move(source: Path, target: Path, names: list[str]) -> None:
    """Move files in an order, with their folders."""
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).rename(target / name)
    remove_empty(source, names)


def recover(folder: Path) -> None:
    """Finish or undo what a killed run left half done; only under the folder's lock.

    Raises:
        UserError: `.replaced` or `.replacing` is not a run that was set aside.
        MintTrainError: a file cannot be moved or removed.
    """
    begun = (folder / RUN_FILE).exists()
    for name in (REPLACING, REPLACED):
        aside = folder / name
        if not aside.exists():
            continue
        if (aside / RUN_FILE).exists():
            parse_description(
                (aside / RUN_FILE).read_text(encoding="utf-8", errors="replace"), aside / RUN_FILE
            )
        elif any(walk(aside)):
            raise UserError(f"{aside} was not made by mint-train; move it away")
        if name == REPLACED and begun:
            forget_replaced(folder)
        else:
            put_back(folder)
    if is_starting(folder):
        if not begun:
            clear(folder)
        (folder / STARTING).unlink()
    for old, path in old_folders(folder):
        leave_old(old, path)
    remove_files(folder, temporary_files(folder))
    for part in part_folders(folder):  # the kill may have come before a file was in it
        prune(part)


def clear(folder: Path) -> None:
    """Remove what a run wrote that had not begun."""
    remove_files(folder, our_files(folder))
    for name in PARTS:  # the kill may have come before a file was in a folder
        prune(folder / name)


def forget_replaced(folder: Path) -> None:
    """Delete the run that another one has replaced."""
    replaced = folder / REPLACED
    if replaced.exists():
        names = sorted(our_files(replaced), key=lambda name: name == RUN_FILE)
        remove_files(replaced, names)
        prune(replaced)


def is_empty(folder: Path) -> bool:
    """Return whether a folder holds nothing but a lock, and what a run left that was killed as it began."""
    return all(path.name == LOCK_FILE or is_start(path.name) for path in folder.iterdir())


def holds_run(folder: Path) -> bool:
    """Return whether a folder holds a run, or one that was to be replaced and comes back."""
    return (folder / RUN_FILE).exists() or is_replaced(folder)


def may_be_ours(folder: Path) -> bool:
    """Return whether a folder is empty, or holds what marks a run folder, so that it may be locked."""
    return folder.is_dir() and (holds_run(folder) or is_starting(folder) or is_empty(folder))
