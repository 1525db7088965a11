"""Commands of `mint-train`, one after the other, without the seconds that the imports of each would take.

Run as a program, this file imports everything once and then forks a process for each command: a line of JSON
on standard input names its arguments and the files for its output; one on standard output is its exit status.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NoReturn

SECONDS = 600
"""After which a command is killed."""


class Commands:
    """A process that runs commands in a folder, with variables of its own, such as `PYTHONPATH`."""

    def __init__(self, folder: Path, variables: Mapping[str, str]) -> None:
        """Start the process; it imports everything while the caller goes on."""
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=os.environ | variables,
        )

    def run(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        command = ["mint-train", *map(str, arguments)]
        streams = [self.folder / name for name in (".stdout", ".stderr")]
        asked = json.dumps([command, *map(str, streams)])
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{asked}\n")
        self.process.stdin.flush()
        status = json.loads(self.process.stdout.readline())
        out, err = (stream.read_text(encoding="utf-8") for stream in streams)
        return subprocess.CompletedProcess(command, status, out, err)

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


def serve(requests: IO[str], answers: IO[str]) -> None:
    """Run the commands that are asked for."""
    import mint_train.backends.local.backend
    import mint_train.cli.main
    import mint_train.sdk
    import mint_train.training.training  # noqa: F401

    for line in requests:
        child = os.fork()
        if child == 0:
            be_command(*json.loads(line))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)


def be_command(arguments: list[str], *streams: Any) -> NoReturn:
    """Become a command whose output goes to two files."""
    from mint_train.cli.main import main

    signal.alarm(SECONDS)
    for number, stream in enumerate(streams, start=1):
        os.dup2(os.open(stream, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = arguments
    status = 1
    try:
        main()
    except SystemExit as ended:
        status = int(ended.code or 0)
    finally:
        sys.stdout.flush()
        os._exit(status)  # what the parent has opened is not this process's to close


if __name__ == "__main__":
    serve(sys.stdin, sys.stdout)
