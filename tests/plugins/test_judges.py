"""A judge is found by its name, and whatever it does wrong is one line."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from mint_train.errors import JudgeError, MintTrainError, OptionError, PluginError, RowError
from mint_train.judging.judge import Judge, open_judge
from mint_train.plugin import Candidates, hookimpl
from mint_train.plugins.discovery import NamedPlugin
from mint_train.testing import check_judge

BATCH = [Candidates("Say one.", ["one", "two"]), Candidates("Say two.", ["two"])]


def judging(function: Any, time_limit: float = 60.0) -> Judge:
    """A judge whose one hook is a function of the batch."""

    class Mine:
        @hookimpl
        def score(self, batch: Sequence[Candidates]) -> Any:
            return function(batch)

    return Judge(NamedPlugin("mine", Mine(), "a test"), time_limit=time_limit)


def lengths(batch: Sequence[Candidates]) -> list[list[float]]:
    return [[float(len(text)) for text in one.completions] for one in batch]


def test_scores_are_floats_in_the_order_of_the_completions() -> None:
    import numpy as np

    assert judging(lengths).score(BATCH) == [[3.0, 3.0], [3.0]]
    assert judging(lambda _: [np.array([1, 2]), (None,)]).score(BATCH) == [[1.0, 2.0], [None]]


def out_of_ink(_: object) -> None:
    raise ValueError("out of\nink")


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        (out_of_ink, r"failed in score at test_judges.py:\d+: ValueError: out of ink"),
        (lambda _: exit(3), r"failed in score at .*SystemExit: 3"),
        (
            lambda _: [[1.0, float("nan")], [1.0]],
            r'gave the score nan to a completion of the prompt "Say one\."',
        ),
        (lambda _: [[1.0, float("inf")], [1.0]], r"gave the score inf .*; it must be finite"),
        (lambda _: [["good", 1], [1.0]], r"gave the score 'good' to a completion"),
        (lambda _: [[1.0], [1.0]], r'gave 1 score for 2 completions of the prompt "Say one\."'),
        (lambda _: [[1.0, 2.0]], r"gave 1 list of scores for 2 prompts"),
        (lambda _: None, r"gave no list of scores for 2 prompts"),
        (lambda _: [1.0, 2.0], r'gave no list of scores for 2 completions of the prompt "Say one\."'),
    ],
)
def test_what_a_judge_does_wrong_is_one_line(function: Any, problem: str) -> None:
    with pytest.raises(JudgeError, match=rf'^the judge "mine" {problem}') as raised:
        judging(function).score(BATCH)
    assert "\n" not in str(raised.value)
    assert raised.value.exit_status == 1


def test_a_judge_that_hangs_is_given_up() -> None:
    free, output = threading.Event(), sys.stdout
    try:
        with pytest.raises(JudgeError, match=r'the judge "mine" took more than 0.05 s for one batch'):
            judging(lambda _: free.wait(), time_limit=0.05).score(BATCH)
        assert sys.stdout is output, "what the judge printed went elsewhere"
    finally:
        free.set()


def test_a_judge_may_have_any_time_but_none() -> None:
    assert judging(lambda batch: [[0.0] * len(one.completions) for one in batch], time_limit=1e300).score(
        BATCH
    )
    for none in (0.0, float("nan"), "long"):
        with pytest.raises(OptionError, match=f"--judge-timeout {none}: it must be a number above 0"):
            open_judge("length", time_limit=none)  # type: ignore[arg-type]


def test_a_timeout_of_the_judges_own_is_its_own_error() -> None:
    def late(_: object) -> None:
        raise TimeoutError("the socket")

    with pytest.raises(JudgeError, match=r"failed in score at .*TimeoutError: the socket"):
        judging(late).score(BATCH)


def test_an_error_of_the_judges_own_says_whose_it_is() -> None:
    def refuse(_: object) -> None:
        raise RowError("answer", "is missing")

    with pytest.raises(RowError, match=r'^the judge "mine": field "answer": is missing$'):
        judging(refuse).score(BATCH)


@pytest.mark.parametrize(
    ("name", "options", "kind", "problem"),
    [
        ("lenght", {}, PluginError, 'no judge "lenght" is installed; did you mean "length"'),
        ("length", {"preferred": "short"}, OptionError, 'the judge "length" has no option "preferred"'),
        (
            "length",
            {"prefer": "tall"},
            OptionError,
            '--set prefer=tall of the judge "length": input should be',
        ),
        ("regex", {}, OptionError, '--set pattern of the judge "regex": it must be given'),
    ],
)
def test_a_wrong_name_or_option_is_refused(
    name: str, options: dict[str, str], kind: type[MintTrainError], problem: str
) -> None:
    with pytest.raises(kind) as raised:
        open_judge(name, options)
    assert problem in str(raised.value)


def test_a_judge_needs_the_hook() -> None:
    class Empty:
        def score(self, batch: object) -> None: ...

    with pytest.raises(PluginError, match='has a function "score" without @hookimpl'):
        Judge(NamedPlugin("empty", Empty(), "a test"))


def by_place(batch: Sequence[Candidates]) -> list[list[float]]:
    return [[float(place) for place, _ in enumerate(one.completions)] for one in batch]


def by_rank_in_batch(batch: Sequence[Candidates]) -> list[list[float]]:
    longest = max(len(text) for one in batch for text in one.completions)
    return [[len(text) / longest for text in one.completions] for one in batch]


@pytest.mark.parametrize(
    ("function", "failing"),
    [
        (lengths, set()),
        (by_place, {"the order of completions does not matter", "equal completions score alike"}),
        (by_rank_in_batch, {"a batch gives what singles give"}),
        (
            lambda batch: [[None for _ in one.completions] for one in batch],
            {"each completion gets a score or none"},
        ),
    ],
)
def test_the_kit_finds_a_judge_that_depends_on_how_it_is_asked(function: Any, failing: set[str]) -> None:
    results = check_judge(judging(function))
    assert {result.name for result in results if not result.passed} == failing
    assert len(results) == 5


def test_the_kit_on_the_command_line(run_cli: Any, write_rows: Any) -> None:
    ended = run_cli("check-judge", "length", "--set", "prefer=long")
    assert ended.status == 0, ended.err
    assert ended.out.endswith("All 5 checks passed.\n")
    rows = write_rows([{"prompt": "Say it.", "completions": ["it", "no"]}])
    ended = run_cli("check-judge", "exact", "--data", rows)
    assert ended.status == 1
    assert 'field "answer": is missing' in ended.out
    ended = run_cli("check-judge", "exact", "--data", write_rows([{"prompt": "Say it."}]))
    assert (ended.status, ended.out) == (2, "")
    assert "a row to check a judge with has a prompt, and completions" in ended.err
