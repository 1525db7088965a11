"""Standard output and error that outlast their reader: `... | head` must not cost a run its steps."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import Any, TextIO


class OutlastingFile(io.FileIO):
    """A file that, once it cannot be written to, swallows what is written and says so once on another one."""

    def __init__(self, number: int, other: int) -> None:
        super().__init__(number, "w", closefd=False)
        self.other = other
        self.failed = False

    def write(self, data: Any) -> int:
        """Write, or swallow."""
        if not self.failed:
            try:
                return super().write(data)
            except OSError as error:
                self.failed = True
                name = "standard output" if self.fileno() == 1 else "standard error"
                line = f"mint-train: {name} cannot be written to ({error.strerror}); the work goes on\n"
                with suppress(OSError):
                    os.write(self.other, line.encode())
        return memoryview(data).nbytes


def outlast_readers() -> None:
    """Replace the standard streams by ones that outlast their readers, and open those that are closed."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:  # else the next file that is opened would get its number
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), "r" if number == 0 else "w"))
    if sys.stdout is sys.__stdout__:
        sys.stdout = outlasting(sys.stdout, 1, other=2)  # type: ignore[arg-type]
    if sys.stderr is sys.__stderr__:
        sys.stderr = outlasting(sys.stderr, 2, other=1)  # type: ignore[arg-type]


def outlasting(stream: TextIO, number: int, *, other: int) -> TextIO:
    """Return a stream like another one that outlasts its reader."""
    try:
        if stream.fileno() != number:
            return stream
        stream.flush()
    except (OSError, ValueError):
        return stream
    return io.TextIOWrapper(
        io.BufferedWriter(OutlastingFile(number, other)),
        encoding=stream.encoding,
        errors="replace" if stream.errors == "strict" else stream.errors,
        line_buffering=stream.isatty() or number == 2,
    )
