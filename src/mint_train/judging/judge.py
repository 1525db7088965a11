"""One judge, found by its name: its scores are checked, and the time that it takes is limited."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from threading import TIMEOUT_MAX, Thread
from typing import Any, TypeVar

from mint_train.errors import JudgeError, MintTrainError, OptionError, counted
from mint_train.losses.loss_options import NoOptions, validate_options
from mint_train.plugins.creating import Kind, create_plugin
from mint_train.plugins.discovery import NamedPlugin, manager_of
from mint_train.plugins.functions import PROGRAM
from mint_train.plugins.guarding import HookGuard
from mint_train.plugins.hookspecs import hookimpl
from mint_train.plugins.judge_hookspecs import JudgeSpec
from mint_train.plugins.sources import (
    function_digest,
    helper_files,
    python_files,
    source_of,
    sources_digest,
    with_helpers,
)
from mint_train.rows.candidates import Candidates
from mint_train.run_folder.files import digests_of_files, is_file
from mint_train.settings.fields import JUDGE_SECONDS
from mint_train.settings.wrong_values import described

JUDGE = Kind("judge", "mint_train.judges", "install some, such as mint-train-judges")

Scores = list[float | None]
JudgeFunction = Callable[[str, Sequence[str]], Sequence[float | None]]
"""A judge of a Python program: the prompt and its completions to a score for each, None to leave one out."""
Result = TypeVar("Result")


class Judge:
    """A judge with its options."""

    def __init__(
        self, link: NamedPlugin, options: Mapping[str, Any] | None = None, time_limit: float = JUDGE_SECONDS
    ) -> None:
        """Register the judge's hooks.

        Args:
            link: the judge.
            options: what it was created with, as it is recorded.
            time_limit: seconds that it may take for one batch.

        Raises:
            PluginError: it breaks the hook contract.
        """
        self.name, self.options, self.time_limit = link.name, dict(options or {}), time_limit
        self._origin = link.origin
        self._hook = manager_of([link], JUDGE.name, JudgeSpec).hook
        self.versions = digests_of_files(self.options) | {str(self): self._code()} | self._own_versions()
        """What decides the scores besides the options: its code, versions and digests of files, by name."""

    def score(self, batch: Sequence[Candidates]) -> list[Scores]:
        """Score the completions of several prompts; None is for one that the judge leaves out.

        Raises:
            JudgeError: the judge raises, takes too long, or gives too few scores or one that is not finite.
            RowError: a row lacks what the judge needs.
        """
        given = as_list(self._call("score", lambda: self._hook.score(batch=list(batch))))
        if given is None or len(given) != len(batch):
            found = "no list" if given is None else counted(len(given), "list")
            raise self._wrong(f"gave {found} of scores for {counted(len(batch), 'prompt')}")
        return [self._checked(*pair) for pair in zip(batch, given, strict=True)]

    def note(self) -> str | None:
        """Return what the judge tells the user once all is judged, or None."""
        notes = self._call("judge_note", self._hook.judge_note)
        return str(notes[0]) if notes else None

    def __str__(self) -> str:
        """Name the judge in a message."""
        return f'the judge "{self.name}"'

    def _code(self) -> str:
        """Digest what scores: a function of the program, or the plugin's files and what they import."""
        hooks = self._hook.score.get_hookimpls()
        functions = [hook.plugin.function for hook in hooks if isinstance(hook.plugin, FunctionJudge)]
        if functions:
            return function_digest(functions[0])
        # not other files of its package, to which a judge may write
        sources = [path for hook in hooks for path in with_helpers(source_of(hook.function))]
        files = [file for path in sources for file in python_files(path)]
        named = [Path(str(name)) for name in self.options.values() if is_file(name)]
        files += [helper for path in named if path.suffix == ".py" for helper in helper_files(path)]
        return f"{self._origin} {sources_digest(files)}"

    def _own_versions(self) -> dict[str, str]:
        """Return what the judge says that its scores depend on."""
        given = self._call("judge_versions", self._hook.judge_versions)
        if given is None:
            return {}
        if not isinstance(given, Mapping) or not all(isinstance(version, str) for version in given.values()):
            raise self._wrong(f"gave the versions {described(given)}; give a text for each name")
        return {str(name): version for name, version in given.items()}

    def _checked(self, candidates: Candidates, given: object) -> Scores:
        """Return the scores of one prompt's completions as floats."""
        expected, scores = len(candidates.completions), as_list(given)
        shown = f'the prompt "{candidates.question[:40]}"'
        if scores is None or len(scores) != expected:
            found = "no list of scores" if scores is None else counted(len(scores), "score")
            raise self._wrong(f"gave {found} for {counted(expected, 'completion')} of {shown}")
        for score in scores:
            if score is not None and not is_finite(score):
                raise self._wrong(f"gave the score {score!r} to a completion of {shown}; it must be finite")
        return [None if score is None else float(score) for score in scores]

    def _call(self, hook: str, function: Callable[[], Result]) -> Result:
        """Call a hook, for a limited time; whatever it raises is one line with its file and line."""
        # guarded out here: standard output would stay redirected by a thread that is left behind
        with HookGuard(JudgeError, str(self), hook):
            try:
                return within(self.time_limit, function)
            except HookTimeoutError as error:
                limit = f"{self.time_limit:g} s"
                raise self._wrong(
                    f"took more than {limit} for one batch (--judge-timeout gives it more)"
                ) from error
            except MintTrainError as error:
                error.locate(str(self))
                raise

    def _wrong(self, problem: str) -> JudgeError:
        return JudgeError(f"{self} {problem}")


class FunctionJudge:
    """A judge that is a function of the calling program."""

    def __init__(self, function: JudgeFunction) -> None:
        self.function = function

    @hookimpl
    def score(self, batch: Sequence[Candidates]) -> list[Sequence[float | None]]:
        """Call the function for each prompt."""
        return [self.function(one.question, list(one.completions)) for one in batch]


def open_judge(
    judge: str | JudgeFunction, options: Mapping[str, Any] | None = None, time_limit: float = JUDGE_SECONDS
) -> Judge:
    """Create an installed judge with its options, or one of a function.

    Raises:
        PluginError: no judge has this name, it is broken, or what it needs is not installed.
        OptionError: an option is unknown or malformed, the time is none, or the judge is a file, or neither a
            name nor a function.
    """
    if not isinstance(time_limit, Real) or not time_limit > 0:  # nor is NaN
        raise OptionError(f"--judge-timeout {time_limit}: it must be a number above 0")
    given = dict(options or {})
    if is_file(judge):
        raise OptionError(f"--judge {judge} is a file; take --judge function, with the option file={judge}")
    if isinstance(judge, str):
        return Judge(create_plugin(JUDGE, judge, as_options(JUDGE, judge, given)), given, time_limit)
    name = function_name(judge)
    if given:
        raise OptionError(f"judge_options: the judge {name} is a function of this program, which has none")
    return Judge(NamedPlugin(name, FunctionJudge(judge), PROGRAM), None, time_limit)


def function_name(judge: JudgeFunction) -> str:
    """Return what a judge that is a function is called.

    Raises:
        OptionError: it cannot be called.
    """
    if not callable(judge):
        raise OptionError(
            f"judge is {described(judge)}; give the name of a judge, or a function of a prompt and its "
            "completions"
        )
    return str(getattr(judge, "__name__", type(judge).__name__))


def as_options(kind: Kind, name: str, given: Mapping[str, Any]) -> Callable[[Any], object]:
    """Return what creates a plugin of its class: with its options, if the class has a model of them.

    Raises:
        OptionError: what is returned raises it where an option is unknown or malformed.
    """

    def make(plugin: Any) -> object:
        model = getattr(plugin, "Options", None)
        if model is None:
            validate_options(name, NoOptions, given, kind.name)
            return plugin()
        return plugin(validate_options(name, model, given, kind.name))

    return make


class HookTimeoutError(TimeoutError):
    """A function that did not return in time; no function raises this one itself."""


def within(seconds: float, function: Callable[[], Result]) -> Result:
    """Call a function in a thread of its own, which is left behind where it takes too long.

    Raises:
        HookTimeoutError: it did not return in time.
    """
    results: list[Result] = []
    problems: list[BaseException] = []

    def call() -> None:
        try:
            results.append(function())
        except BaseException as error:
            problems.append(error)

    thread = Thread(target=call, daemon=True)
    thread.start()
    thread.join(min(seconds, TIMEOUT_MAX))
    if problems:
        raise problems[0]
    if not results:
        raise HookTimeoutError
    return results[0]


def as_list(given: Any) -> list[Any] | None:
    """Return a list, a tuple, an array or a tensor as a list; None for anything else."""
    plain = given.tolist() if hasattr(given, "tolist") else given
    return list(plain) if isinstance(plain, list | tuple) else None


def is_finite(score: Any) -> bool:
    """Return whether a score is a finite number."""
    try:
        return math.isfinite(score)
    except (TypeError, OverflowError):
        return False
