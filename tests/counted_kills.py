"""Runs of `mint-train` that are killed with `kill -9` before one of their file operations."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from killed_runs import PROCESSES, call_cli

CHANGING = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def run_counted(
    folder: Path, arguments: Sequence[str], watched: Sequence[str], kill_at: int | None, **variables: str
) -> int:
    """Run `mint-train` and note its file operations; return its exit status.

    Args:
        folder: what it writes to; beside it are a log and the list of the operations.
        arguments: those of the command line.
        watched: the folders in which operations count.
        kill_at: the operation, from 1, before which it is killed; None for none.
        variables: of the environment.
    """
    given = (
        list(arguments), str(folder.with_name(folder.name + ".log")), variables, list(watched),
        str(listed(folder)), kill_at,
    )  # fmt: skip
    process = PROCESSES.Process(target=call_counted, args=given)
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def listed(folder: Path) -> Path:
    """Return the file that lists the operations on a folder."""
    return folder.with_name(folder.name + ".operations")


def operations_of(folder: Path) -> list[str]:
    """Return the operations of a run: what was done, and to which path in the folder."""
    return listed(folder).read_text().splitlines()


def call_counted(
    arguments: list[str],
    log: str,
    variables: dict[str, str],
    folders: list[str],
    listed: str,
    kill_at: int | None,
) -> None:
    """Be `mint-train` in a new process, which notes its file operations and is killed before one of them."""
    operations = os.open(listed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    made = 0

    def note(event: str, given: tuple[Any, ...]) -> None:
        nonlocal made
        changes = event in CHANGING or (event == "open" and isinstance(given[2], int) and given[2] & WRITING)
        if not changes or not isinstance(given[0], str | os.PathLike):
            return
        path = os.path.abspath(given[0])
        inside = [folder for folder in folders if path == folder or path.startswith(folder + os.sep)]
        if inside:
            made += 1
            os.write(operations, f"{event} {os.path.relpath(path, inside[0])}\n".encode())
            if made == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(note)
    call_cli(arguments, log, variables)


def summary(operations: list[str]) -> str:
    """Count operations by their kind."""
    return ", ".join(
        f"{count} {kind}" for kind, count in Counter(one.split()[0] for one in operations).items()
    )
