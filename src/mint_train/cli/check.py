"""`mint-train check`: the conformance kit on the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mint_train.errors import DataError, counted
from mint_train.observers.terminal import say
from mint_train.rows.readers import read_rows
from mint_train.testing import CheckResult, ConformanceError, check_judge, check_loss


def check_and_print(name: str, options: Mapping[str, str], data: Path | None) -> bool:
    """Run all checks of a loss, print a line for each, and return whether all passed.

    Args:
        name: an installed loss, a file or a sum.
        options: the loss's options.
        data: a file of rows to check it with; else its bundled ones.

    Raises:
        MintTrainError: the loss cannot be opened, an option is wrong, or the file cannot be read.
    """
    rows = None if data is None else [row.values for row in read_rows(data)]
    return print_results(check_loss(name, rows=rows, options=options))


def check_judge_and_print(name: str, options: Mapping[str, str], data: Path | None) -> bool:
    """Run all checks of a judge, print a line for each, and return whether all passed.

    Args:
        name: an installed judge.
        options: the judge's options.
        data: a file of rows with a prompt and completions; else bundled ones.

    Raises:
        MintTrainError: the judge cannot be created, an option is wrong, or the file cannot be read.
    """
    rows = None if data is None else [row.values for row in read_rows(data)]
    try:
        return print_results(check_judge(name, rows=rows, options=options))
    except ConformanceError as error:
        raise DataError(f"{data}: {error}") from error


def print_results(results: Sequence[CheckResult]) -> bool:
    """Print a line for each check, and return whether all passed."""
    said: dict[str, str] = {}
    for result in results:
        # what is wrong with the rows fails every check that needs them
        first = result.name if result.passed else said.setdefault(result.detail, result.name)
        detail = result.detail if first == result.name else f'as for "{first}"'
        say(f"{'ok' if result.passed else 'FAILED':<6}  {result.name}: {detail}")
    failed = sum(not result.passed for result in results)
    say(
        f"{failed} of {counted(len(results), 'check')} failed."
        if failed
        else f"All {len(results)} checks passed."
    )
    return not failed
