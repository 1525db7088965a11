"""`mint-train` in several processes on this machine, as `torchrun` starts them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

SECONDS = 120
"""Within which all processes must have ended, on a slow machine too; a hang lasts for ever."""
PROGRAM = ("-m", "mint_train")


class Ended(NamedTuple):
    """How the processes ended, and what all of them wrote."""

    statuses: list[int]
    out: str
    err: str


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Several:
    """Processes that run."""

    def __init__(self, processes: Sequence[subprocess.Popen[str]], folder: Path) -> None:
        self.processes = processes
        self.folder = folder

    def written(self, name: str) -> str:
        return (self.folder / name).read_text()

    def wait_for(self, text: str) -> None:
        """Wait until a text is on standard output."""
        end = time.monotonic() + SECONDS
        while text not in self.written("out"):
            assert time.monotonic() < end, self.written("out") + self.written("err")
            assert all(each.poll() is None for each in self.processes), self.written("err")
            time.sleep(0.01)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to all processes."""
        for process in self.processes:
            process.send_signal(number)

    def end(self) -> Ended:
        """Wait for the end of all processes."""
        statuses = [process.wait(SECONDS) for process in self.processes]
        return Ended(statuses, self.written("out"), self.written("err"))


@contextmanager
def started(
    python: str, count: int, *arguments: object, last: Sequence[str] = PROGRAM, **variables: str
) -> Iterator[Several]:
    """Start processes in the current folder, and kill those that are left behind.

    Args:
        python: the program of each.
        count: how many there are.
        arguments: of `mint-train`.
        last: what the last process is asked to be instead of `-m mint_train`.
        variables: of the environment.
    """
    folder = Path("output")
    folder.mkdir(exist_ok=True)
    together = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1"}
    shared = {**os.environ, **variables, "MASTER_PORT": str(free_port())}
    processes = []
    with open(folder / "out", "w") as out, open(folder / "err", "w") as err:
        for rank in range(count):
            own = {name: str(value) for name, value in {"RANK": rank, **together}.items()}
            asked = last if rank == count - 1 else PROGRAM
            processes.append(
                subprocess.Popen(
                    [python, *asked, *map(str, arguments)],
                    stdout=out, stderr=err, stdin=subprocess.DEVNULL, env=own | shared, text=True,
                )
            )  # fmt: skip
    several = Several(processes, folder)
    try:
        yield several
    finally:
        for process in processes:
            process.kill()
            process.wait()


def run(python: str, count: int, *arguments: object, **given: object) -> Ended:
    """Run `mint-train` in several processes to their end."""
    with started(python, count, *arguments, **given) as several:  # type: ignore[arg-type]
        return several.end()
