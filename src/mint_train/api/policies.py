"""What policies write, from Python: completions, rows made of them by a judge, and which policy is better."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, Unpack

from mint_train.errors import OptionError, nearest
from mint_train.groups.prompts import read_prompts
from mint_train.judging.judge import Judge, JudgeFunction, open_judge
from mint_train.observers.progress import Progress, shown_progress, silent_progress
from mint_train.observers.terminal import echo_problem
from mint_train.plugins.authoring import FunctionLoss
from mint_train.sampling.making import Made, Making, RowWriter, make_rows, require_rows
from mint_train.sampling.matches import Comparing, compare_policies
from mint_train.sampling.policy import open_policy, reading_settings
from mint_train.sampling.win_rate import WinRate
from mint_train.settings.fields import JUDGE_SECONDS
from mint_train.settings.keywords import (
    POLICY_SETTINGS,
    PairsKeywords,
    SampledKeywords,
    SeededKeywords,
    as_keywords,
    in_python,
    plain_options,
)
from mint_train.settings.sampling import COMPARED, JUDGED, SHOWN
from mint_train.trained.find import find_trained
from mint_train.trained.sample import Completed, complete

ROWS_FILE = "rows.jsonl"


def sample(
    run: str | Path,
    prompts: str | Sequence[str] | None = None,
    *,
    data: Any = None,
    rows: int = 4,
    step: int | str | None = None,
    loss: FunctionLoss | None = None,
    **drawn: Unpack[SeededKeywords],
) -> list[Completed]:
    """Complete prompts before and after training, as `mint-train sample` does.

    Args:
        run: a run folder, or a checkpoint in one.
        prompts: one text of a user's turn, or several; by default those of the run's rows.
        data: rows whose prompts are completed instead.
        rows: the maximum number of prompts from rows.
        step: a checkpoint of the run, "best" or "last"; by default the best by `select_by`, else the last.
        loss: the function that the run was trained with, if that is one of this program's.
        drawn: `samples` per prompt, `max_tokens`, `temperature`, `seed`.

    Raises:
        MintTrainError: the run or the data is wrong, or the backend fails.
    """
    with in_python():
        if prompts is not None and data is not None:
            raise OptionError("prompts and data are both given; give one of them")
        texts = [prompts] if isinstance(prompts, str) else prompts
        sampling = SHOWN.with_given(known_keywords(drawn, SeededKeywords, "sample"))
        trained = find_trained(str(run), step, {}, loss=loss)
        return complete(trained, texts, data, rows, sampling)


@dataclass(frozen=True, slots=True)
class Scored:
    """The completions of a prompt, with their scores."""

    prompt: str
    """As a reader sees it."""
    completions: Sequence[str]
    scores: Sequence[float | None]
    """Higher is better; None for an empty completion, and for one that the judge left out."""


@dataclass(frozen=True, slots=True)
class SampledRows:
    """Rows of what a policy wrote and a judge scored."""

    rows: Sequence[Mapping[str, Any]]
    """What `train(..., data=made.rows)` trains on."""
    output: Path | None
    """The file that holds them, if one was asked for."""
    scored: Sequence[Scored]
    """All prompts, those that gave no row among them."""
    mean_score: float | None
    """Of all completions that have a score."""
    without_row: int
    """Prompts that gave no row, such as one whose scores are all equal."""
    notes: Sequence[str]
    """What the command prints: what was left out, cut or empty, and what the judge says."""


@dataclass(frozen=True, slots=True)
class ComparedPolicies:
    """How often one policy's completions beat another's."""

    rate: WinRate
    """With `raw` and `length_controlled`, each a `value` with the bounds `low` and `high` of 95 %."""
    matches: int
    """Comparisons, each in both orders."""
    left_out: int
    """Comparisons that the judge left out."""
    rows: Sequence[Mapping[str, Any]]
    """A row for each comparison, with both completions."""
    output: Path | None
    """The file that holds them, if one was asked for."""
    notes: Sequence[str]


def pairs(
    prompts: Any,
    *,
    judge: str | JudgeFunction,
    policy: str | Path | None = None,
    output: str | Path | None = None,
    form: Literal["pair", "rank", "rate", "rollouts"] = "pair",
    **given: Unpack[PairsKeywords],
) -> SampledRows:
    """Sample completions of prompts, let a judge score them, and make rows, as `mint-train pairs` does.

    Args:
        prompts: a file, rows, or a list of texts, each a user's turn.
        judge: the name of a judge, or a function of a prompt and a list of its completions that returns a
            score for each, None to leave one out.
        policy: who writes: a run (`RUN`, `RUN@STEP` or `RUN@best`), a state on the service, an adapter, or a
            base model; by default the base model.
        output: file for the rows. Only with it a call that was stopped goes on where it was.
        form: preferences, rankings, ratings, or rollouts with their sampling logprobs.
        given: `pair`, which completions make a preference; `samples`, `max_tokens`, `temperature` and `seed`,
            by default those of `mint_train.settings.sampling.JUDGED`; `judge_options`, `judge_timeout`,
            `keep_all`, `overwrite`, `progress`; and the policy's settings, such as `model`.

    Raises:
        MintTrainError: what was given is wrong, the backend or the judge failed, or no row was made.

    Example:
        >>> made = pairs(["Name a river."], judge=lambda prompt, texts: [-len(text) for text in texts])
        >>> train("dpo", data=made.rows)
    """
    with in_python(), rows_file(output) as path:
        known = known_keywords(given, PairsKeywords, "pairs")
        writer = open_writer(form, known.get("pair"))
        opened, settings = judge_with(known, judge), policy_settings(known)
        found = read_prompts(prompts, reading_settings(settings))
        written = {part: known[part] for part in ("keep_all", "overwrite") if part in known}
        making = Making(opened, writer, JUDGED.with_given(known), path, **written)
        with open_policy(named(policy), settings, echo_problem) as policy_opened, progress(known) as tell:
            made = require_rows(make_rows(policy_opened, found, making, tell))
        notes = [*made.readable.lines(), *made.lines(), writer.note(), opened.note()]
        return sampled_rows(made, read_rows(path), None if output is None else path, in_keywords(notes))


def winrate(
    first: str | Path,
    second: str | Path,
    prompts: Any,
    *,
    judge: str | JudgeFunction,
    output: str | Path | None = None,
    **given: Unpack[SampledKeywords],
) -> ComparedPolicies:
    """Let two policies complete the same prompts and a judge compare them, as `mint-train winrate` does.

    Args:
        first: a run (`RUN`, `RUN@STEP` or `RUN@best`), a state on the service, an adapter, or a base
            model.
        second: what it is compared with, likewise.
        prompts: as for `pairs`.
        judge: as for `pairs`; it sees each two completions in both orders.
        output: file with a row per comparison. Only with it a call that was stopped goes on where it was.
        given: as for `pairs`; `samples` are comparisons per prompt, by default one.

    Raises:
        MintTrainError: what was given is wrong, a backend or the judge failed, or it left all out.
    """
    with in_python(), rows_file(output) as path:
        known = known_keywords(given, SampledKeywords, "winrate")
        opened, settings = judge_with(known, judge), policy_settings(known)
        found = read_prompts(prompts, reading_settings(settings))
        overwrite = known.get("overwrite", False)
        comparing = Comparing(opened, COMPARED.with_given(known), path, overwrite)
        with progress(known) as tell:
            policies = [open_policy(str(name), settings, echo_problem) for name in (first, second)]
            compared = compare_policies(policies, found, comparing, tell)
        return ComparedPolicies(
            rate=compared.rate,
            matches=compared.matches,
            left_out=compared.left_out,
            rows=read_rows(path),
            output=None if output is None else path,
            notes=in_keywords([*compared.notes, opened.note()]),
        )


def open_writer(form: str, take: str | None) -> RowWriter:
    """Return what makes rows of a form.

    Raises:
        OptionError: the form has no pairs to choose, or the choice is unknown.
    """
    if take is not None and form != "pair":
        raise OptionError(f"pair is for preferences, and form is {form}; give one of them")
    return RowWriter(form, {} if take is None else {"take": take})


def sampled_rows(
    made: Made, rows: Sequence[Mapping[str, Any]], output: Path | None, notes: Sequence[str]
) -> SampledRows:
    """Return what was made as a program gets it."""
    judged = zip(made.written, made.scores, strict=True)
    scored = [Scored(one.candidates().question, one.texts, scores) for one, scores in judged]
    return SampledRows(rows, output, scored, made.mean, made.without_row, notes)


def known_keywords(given: Mapping[str, Any], keywords: type[Any], function: str) -> dict[str, Any]:
    """Return those keywords that are given.

    Raises:
        OptionError: one is not a keyword of the function.
    """
    known = keywords.__annotations__
    for name in given:
        if name not in known:
            raise OptionError(f'{function} has no keyword "{name}"{nearest(name, known)}')
    return {name: value for name, value in given.items() if value is not None}


def judge_with(known: Mapping[str, Any], judge: str | JudgeFunction) -> Judge:
    """Open the judge with what the keywords say of it.

    Raises:
        UserError: no judge has this name, it is broken, or an option of it is wrong.
    """
    options = plain_options(known.get("judge_options"), "judge_options")
    return open_judge(judge, options, known.get("judge_timeout", JUDGE_SECONDS))


def policy_settings(known: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keywords that are settings of the policy."""
    return {name: value for name, value in known.items() if name in POLICY_SETTINGS}


def progress(known: Mapping[str, Any]) -> AbstractContextManager[Progress]:
    """Return what shows the progress while it is entered, or nothing where the keywords ask for that."""
    return silent_progress() if known.get("progress") == "quiet" else shown_progress()


def in_keywords(notes: Sequence[str | None]) -> list[str]:
    """Return what a command prints as a program reads it, without what is None."""
    return [as_keywords(note) for note in notes if note]


def named(policy: str | Path | None) -> str | None:
    """Return the name of a policy; None for the base model."""
    return None if policy is None else str(policy)


@contextmanager
def rows_file(output: str | Path | None) -> Iterator[Path]:
    """Yield the file to write, a temp file where none is asked for."""
    if output is not None:
        yield Path(output)
        return
    with TemporaryDirectory(prefix="mint-train-") as folder:
        yield Path(folder, ROWS_FILE)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file that was just written."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
