"""Rows made of judged completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from mint_train.errors import JudgeError, OptionError
from mint_train.plugin import Judged
from mint_train.sampling.making import RowWriter


def judged(scores: Sequence[float | None], texts: Sequence[str] = (), **given: Any) -> Judged:
    texts = texts or [f"t{index}" for index in range(len(scores))]
    tokens = [[index, 2] for index in range(len(scores))]
    known = {"tokens": tokens, "logprobs": [[-0.5, -0.1]] * len(scores), "seed": 3}
    return Judged(prompt={"prompt": "Go on."}, completions=texts, scores=scores, **{**known, **given})


def sides(scores: Sequence[float | None], take: str, **given: Any) -> list[tuple[str, str]]:
    rows = RowWriter("pair", {"take": take}).rows(judged(scores, **given))
    return [(row["chosen"], row["rejected"]) for row in rows]


def test_pairs_are_chosen_by_score() -> None:
    scores = [2.0, 5.0, None, 1.0, 2.0]
    assert sides(scores, "best-worst") == [("t1", "t3")]
    assert sides(scores, "all") == [("t1", "t0"), ("t1", "t4"), ("t1", "t3"), ("t0", "t3"), ("t4", "t3")]
    assert sides(scores, "threshold=4") == [("t1", "t3")]
    assert sides(scores, "threshold=4.5") == []
    drawn = {sides(scores, "best-random", seed=seed)[0] for seed in range(20)}
    assert drawn == {("t1", "t0"), ("t1", "t3"), ("t1", "t4")}
    assert len({sides(scores, "best-random", seed=1)[0] for _ in range(5)}) == 1


@pytest.mark.parametrize("take", ["best-worst", "best-random", "all", "threshold=0"])
def test_equal_scores_give_no_pair(take: str) -> None:
    assert sides([1.0, 1.0, None], take) == []
    assert sides([None, None], take) == []


def test_empty_and_repeated_completions_are_in_no_pair() -> None:
    assert sides([9.0, 2.0, 1.0, 0.0], "all", texts=[" ", "a", "b", "a"]) == [("a", "b")]


def test_a_completion_that_looks_like_json_is_written_as_a_message() -> None:
    (row,) = RowWriter("pair", {}).rows(judged([1.0, 0.0], ['[{"role": "user"}]', "b"]))
    assert row["chosen"] == [{"role": "assistant", "content": '[{"role": "user"}]'}]
    assert row["rejected"] == "b"


@pytest.mark.parametrize("take", ["worst-best", "threshold=", "threshold=x", "threshold=-1"])
def test_another_choice_is_refused(take: str) -> None:
    with pytest.raises(OptionError, match="must be best-worst, best-random, all or threshold=NUMBER"):
        RowWriter("pair", {"take": take})


def test_a_ranking_has_no_ties() -> None:
    writer = RowWriter("rank", {})
    (row,) = writer.rows(judged([2.0, 5.0, None, 2.0]))
    assert (row["completions"], row["scores"]) == (["t1", "t0"], [5.0, 2.0])
    assert writer.rows(judged([1.0, 1.0])) == []


def test_ratings_are_against_the_mean_or_a_bound() -> None:
    def labels(**options: Any) -> dict[str, bool]:
        rows = RowWriter("rate", options).rows(judged([1.0, 2.0, 3.0, None]))
        return {row["completion"]: row["label"] for row in rows}

    assert labels() == {"t0": False, "t2": True}
    assert labels(least=2) == {"t0": False, "t1": True, "t2": True}


def test_rollouts_keep_tokens_rewards_and_logprobs() -> None:
    writer = RowWriter("rollouts", {})
    (row,) = writer.rows(judged([1.0, None, 0.0]))
    assert row == {
        "prompt": "Go on.",
        "completion_tokens": [[0, 2], [2, 2]],
        "rewards": [1.0, 0.0],
        "old_logprobs": [[-0.5, -0.1], [-0.5, -0.1]],
    }
    assert writer.rows(judged([None, None])) == []
    with pytest.raises(JudgeError, match="the service gave no logprobs"):
        writer.rows(judged([1.0, 0.0], logprobs=[[], []]))


def test_the_note_says_how_long_the_sides_are() -> None:
    writer = RowWriter("pair", {})
    assert writer.note() is None
    writer.rows(judged([1.0, 0.0], ["one two three", "one"]))
    assert writer.note() == "Chosen completions have 3.0 words on average, rejected ones 1.0."
