"""Which of several processes this one is, where `torchrun` has started them to train together."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mint_train.errors import OptionError

if TYPE_CHECKING:
    from mint_train.backends.local.leading import Leader

NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
VARIABLES = (*NUMBERS, "MASTER_ADDR", "MASTER_PORT")
"""What `torchrun` says to each process that it starts."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """Which process this is, among those that train together."""

    rank: int
    """Its number from 0; process 0 reads the data, decides, and writes what a run leaves."""
    count: int
    count_here: int
    """How many of them are on this machine."""

    @classmethod
    def of_environment(cls) -> Ranks | None:
        """Return what the environment says; None where this process is the only one."""
        if not all(os.environ.get(name) for name in VARIABLES) or os.environ["WORLD_SIZE"] == "1":
            return None
        return cls(*(int(os.environ[name]) for name in NUMBERS))


def processes_here() -> int:
    """Return how many processes train together on this machine."""
    ranks = Ranks.of_environment()
    return 1 if ranks is None else ranks.count


def refuse_several_processes(what: str) -> None:
    """Refuse what only one process can do.

    Raises:
        OptionError: `torchrun` has started several.
    """
    if Ranks.of_environment() is not None:
        raise OptionError(f"{what} runs in one process: start it without torchrun")


class Led:
    """What has the other processes compute, once this one leads them."""

    leader: Leader | None = None
