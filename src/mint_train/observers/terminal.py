"""All that is printed goes through here: no row, plugin, server or file name may control the terminal."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap

import click

PROGRAM = "mint-train"
LONGEST_PROBLEM = 2000
"""Characters of an error that are shown: it may quote a value of any length."""
WIDEST = 100
"""Columns of a text for reading."""
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control codes but tab and line feed, marks that turn the direction of text, and halves of characters."""


def printable(text: str) -> str:
    r"""Return a text with control characters as `\u001b`, which JSON reads as the character that it was."""
    return CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def echo(text: str, *, err: bool = False) -> None:
    """Print a text and a line feed to standard output, or to standard error."""
    click.echo(printable(text), err=err)


def say(text: str, *, err: bool = False) -> None:
    """Print a sentence or more, wrapped on words where it goes to a terminal."""
    stream = sys.stderr if err else sys.stdout
    echo(wrapped(text, shutil.get_terminal_size().columns) if stream.isatty() else text, err=err)


def wrapped(text: str, width: int, below: str | None = None) -> str:
    """Wrap a line on words; a path that is too long stays whole, so that it can be copied.

    Args:
        text: the line.
        width: columns.
        below: what stands before each line after the first; by default, the spaces that the text begins with.
    """
    indent = text[: len(text) - len(text.lstrip())]
    return textwrap.fill(
        text.lstrip(),
        width,
        initial_indent=indent,
        subsequent_indent=indent if below is None else below,
        break_long_words=False,
        break_on_hyphens=False,
    )


def column_count() -> int:
    """Return how wide a text for reading may be: as the terminal, and 100 columns at most."""
    return min(shutil.get_terminal_size().columns, WIDEST)


def echo_problem(problem: object) -> None:
    """Print an error or a warning to standard error as one line, cut where it is very long."""
    line = " ".join(str(problem).splitlines())
    if len(line) > LONGEST_PROBLEM:
        half = LONGEST_PROBLEM // 2
        line = f"{line[:half]} ... {line[-half:]}"
    say(f"{PROGRAM}: {line}", err=True)
