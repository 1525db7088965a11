"""What `torchrun` starts several times: process 0 does what one process would, and the others serve it."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from mint_train.backends.local.group import Group
from mint_train.backends.local.leading import END, Leader
from mint_train.backends.local.part import Part
from mint_train.backends.ranks import Led, Ranks
from mint_train.errors import RUN_FAILED, MintTrainError

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
"""What is sent to all processes, and what process 0 decides about."""


@contextmanager
def leading(ranks: Ranks) -> Iterator[None]:
    """Lead the other processes, and end them at the end.

    Raises:
        OptionError: this machine lacks a GPU for each process.
        LostProcessError: they have not started.
    """
    with tempfile.TemporaryDirectory() as scratch:
        Led.leader = Leader(Group(ranks), Path(scratch))
        try:
            yield
        finally:
            leader, Led.leader = Led.leader, None
            leader.end()


def serve(ranks: Ranks) -> int:
    """Compute what process 0 asks for until it ends, without a word; return the exit status."""
    handle_signals(signal.SIG_DFL)  # nothing has begun
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lives
    try:
        with closing(Group(ranks)) as group, tempfile.TemporaryDirectory() as scratch:
            handle_signals(signal.SIG_IGN)
            answer(Part(group, Path(scratch)))
    except MintTrainError as error:
        return error.exit_status
    except Exception as error:  # what nobody foresaw, and process 0 cannot know
        os.write(2, f"mint-train: process {ranks.rank}: {type(error).__name__}: {error}\n".encode())
        return RUN_FAILED
    return 0


def answer(part: Part) -> None:
    """Compute the part of this process in each request.

    Raises:
        LostProcessError: another process has ended.
    """
    while True:
        name, closed, arguments = part.group.hand_out()
        part.drop(closed)
        if name == END:
            return
        getattr(part, name)(*arguments)


def handle_signals(handler: signal.Handlers) -> None:
    """Let the signals that end a run do this."""
    for name in SIGNALS:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), handler)
