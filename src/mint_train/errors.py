"""Every error that a user can cause, and the exit status that it ends the program with.

An error keeps its parts as attributes and is formatted when it is shown. Its constructor passes all of its
arguments on to `Exception`, so that it can be pickled; a test holds this for every class. Whoever catches an
error and knows more than the raiser adds that with `locate` or `retries` and raises it again.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass

RUN_FAILED = 1
USER_MISTAKE = 2
INTERRUPTED = 130


class MintTrainError(Exception):
    """The run failed; shown as one line that says what happened, where, and what to do next."""

    exit_status = RUN_FAILED
    where: tuple[str, ...] = ()
    """Where it happened, from the outside in: a step, then a file and line, say."""
    retries: int = 0
    """How often the runner tried again before it gave up."""
    rephrase: Callable[[str], str] | None = None
    """Puts the whole text in the terms of whoever called, such as a Python program."""

    @property
    def message(self) -> str:
        """What happened, without where."""
        return super().__str__()

    def locate(self, where: object) -> None:
        """Say where it happened; shown before the message and before what is known already."""
        self.where = (str(where), *self.where)

    def __str__(self) -> str:
        times = "once" if self.retries == 1 else f"{self.retries} times"
        text = ": ".join([*self.where, self.message]) + (f" (retried {times})" if self.retries else "")
        return self.rephrase(text) if self.rephrase else text


class InterruptedCommandError(MintTrainError):
    """The user interrupted a command that can go on; the message says how."""

    exit_status = INTERRUPTED


class UserError(MintTrainError):
    """What the user gave is wrong: an option, a row, a plugin, a key."""

    exit_status = USER_MISTAKE


class OptionError(UserError):
    """An option is unknown, malformed or contradicts another."""


class BudgetError(OptionError):
    """What comes next would pass `--token-budget`."""

    def __init__(self, most: int, sent: int, what: str, tokens: int) -> None:
        super().__init__(most, sent, what, tokens)
        self.most, self.sent, self.what, self.tokens = most, sent, what, tokens

    @property
    def message(self) -> str:
        """The budget, what has been sent, what comes next, and the least budget for it."""
        sent = f"{self.sent:,} have been sent, and " if self.sent else ""
        return f"--token-budget {self.most}: {sent}{self.what}; give {self.sent + self.tokens} or more"


class PluginError(UserError):
    """A loss plugin is missing, broken, or breaks the hook contract."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a row came from, in the form in which a user finds it again."""

    path: str
    line: int
    unit: str = "line"
    """What `line` counts: lines of a text file, or rows where a file has no lines."""

    def __str__(self) -> str:
        return f"{self.path}:{self.line}" if self.unit == "line" else f"{self.path} {self.unit} {self.line}"


class RowError(UserError):
    """A row that does not hold what the loss needs.

    A plugin raises it with the field and what is wrong with it; core adds file and line.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(field, problem)
        self.field = field
        self.problem = problem

    @property
    def message(self) -> str:
        """The field and what is wrong with it."""
        return f'field "{self.field}": {self.problem}'


class DataError(UserError):
    """A data file that cannot be read, or a row in it, named by file and line."""


class ContractError(UserError):
    """A batch that breaks the loss's contract.

    A plugin raises it from `check_batch` with the index of the offending group where there is one;
    core adds the file and line that the group came from.
    """

    def __init__(self, problem: str, group: int | None = None) -> None:
        super().__init__(problem, group)
        self.problem = problem
        self.group = group

    @property
    def message(self) -> str:
        """What breaks the contract."""
        return self.problem


class DoesNotFit(Exception):  # noqa: N818 - a reason to leave an example out, not a failure
    """An example that `--max-length` leaves with nothing to train; it is counted and named, not trained."""


class LossError(MintTrainError):
    """A loss that is NaN, infinite, detached, or not a scalar."""


class JudgeError(MintTrainError):
    """A judge that failed, gave no usable scores, or took too long."""


class BackendError(MintTrainError):
    """The backend could not do what was asked."""


class ServiceError(BackendError):
    """The service failed in a way that may pass: a retry from the last checkpoint may succeed."""


def command_line(*words: object) -> str:
    """Return a command of this program, quoted so that it can be copied to a shell."""
    return shlex.join(["mint-train", *map(str, words)])


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: `1 step`, `1,200 steps`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def unusable_text(text: str) -> str:
    """Return why a name or a value cannot be written down as text, or nothing if it can."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        return f"{text}: what is not UTF-8 cannot be recorded; rename the file, or write the text as UTF-8"
    return f"{text}: no name holds a null character" if "\0" in text else ""


def nearest(name: str, names: Iterable[str]) -> str:
    """Return `; did you mean "..."?` for the closest of some names, or nothing where none is close."""
    from difflib import get_close_matches

    by_lower = {known.lower(): known for known in names}
    matches = get_close_matches(name.lower(), list(by_lower), n=1, cutoff=0.5)
    return f'; did you mean "{by_lower[matches[0]]}"?' if matches else ""
