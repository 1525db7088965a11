"""Two policies compared: the rate, its interval, and what length has to do with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from few_rows import lines

from mint_train.backends.base import Sample
from mint_train.errors import JudgeError, OptionError, UserError
from mint_train.groups.prompts import read_prompts
from mint_train.judging.judge import open_judge
from mint_train.report.curves import read_runs
from mint_train.report.page import make_page
from mint_train.run_folder.win_rates import read_win_rates
from mint_train.sampling.matches import Comparing, compare_policies
from mint_train.sampling.policy import Policy, open_policy, reading_settings
from mint_train.sampling.win_rate import Outcome, Rate, win_rate
from mint_train.settings.sampling import Sampling


def outcomes(won: list[float], longer: list[float] | None = None) -> list[Outcome]:
    lengths = longer or [0.0] * len(won)
    return [Outcome(index, *each) for index, each in enumerate(zip(won, lengths, strict=True))]


def test_a_tie_counts_half() -> None:
    rate = win_rate(outcomes([1.0, 1.0, 0.5, 0.0]))
    assert rate.raw.value == 0.625
    assert (rate.wins, rate.ties, rate.losses, rate.prompts) == (0.5, 0.25, 0.25, 4)
    assert rate.length_controlled.value == pytest.approx(0.625, abs=1e-3)


def test_the_interval_is_that_of_the_mean() -> None:
    """For many prompts a bootstrap gives the normal interval."""
    dice = np.random.default_rng(1)
    won = dice.integers(0, 2, 400).astype(float)
    rate = win_rate(outcomes(list(won))).raw
    half = 1.96 * won.std() / 20
    assert (rate.low, rate.high) == pytest.approx((won.mean() - half, won.mean() + half), abs=0.01)
    assert rate == win_rate(outcomes(list(won))).raw, "the same each time"


def test_completions_of_one_prompt_are_drawn_together() -> None:
    """Ten copies of a prompt's outcome say no more than one."""
    won = [1.0, 0.0, 1.0, 1.0, 0.0, 1.0]
    once = win_rate(outcomes(won)).raw
    repeated = win_rate([Outcome(index, each, 0.0) for index, each in enumerate(won) for _ in range(10)]).raw
    assert repeated == once


def test_a_win_that_length_explains_is_none_at_equal_length() -> None:
    dice = np.random.default_rng(0)
    longer = dice.normal(8, 10, 600)
    won = (dice.random(600) < 1 / (1 + np.exp(-3 * np.tanh(longer / longer.std())))).astype(float)
    rate = win_rate(outcomes(list(won), list(longer)))
    assert rate.raw.value > 0.7
    assert rate.length_controlled.value == pytest.approx(0.5, abs=0.1)
    assert rate.length_controlled.low < 0.5 < rate.length_controlled.high


def test_lengths_that_always_differ_alike_explain_nothing() -> None:
    won = [1.0, 1.0, 0.0, 1.0]
    assert win_rate(outcomes(won, [7.0] * 4)) == win_rate(outcomes(won))


def test_a_policy_that_always_wins_has_a_finite_rate() -> None:
    rate = win_rate(outcomes([1.0] * 5, [1.0, 2.0, 3.0, 4.0, 5.0]))
    assert rate.raw == Rate(1.0, pytest.approx(0.5, abs=0.05), 1.0)
    assert 0.9 < rate.length_controlled.value <= 1.0
    assert rate.length_controlled.low < 0.6


@pytest.mark.parametrize("won", [1.0, 0.0, 0.5])
@pytest.mark.parametrize("completions", [1, 10])
def test_a_single_prompt_says_little(won: float, completions: int) -> None:
    rate = win_rate([Outcome(0, won, longer) for longer in range(completions)]).raw
    assert rate.value == won
    assert rate.low <= won <= rate.high
    assert rate.high - rate.low > 0.6


@pytest.mark.parametrize("prompts", [1, 2, 5, 20, 60])
def test_each_win_raises_the_rate_and_its_interval(prompts: int) -> None:
    rates = [win_rate(outcomes([1.0] * wins + [0.0] * (prompts - wins))) for wins in range(prompts + 1)]
    for one in (lambda rate: rate.raw, lambda rate: rate.length_controlled):
        found = [one(rate) for rate in rates]
        assert all(0 <= rate.low <= rate.value <= rate.high <= 1 for rate in found)
        for before, after in pairwise(found):
            assert before.value < after.value
            # of so many resamples a standard error is known to a few per cent
            assert before.low <= after.low + 0.01
            assert before.high <= after.high + 0.01


@pytest.mark.slow
@pytest.mark.parametrize(("prompts", "completions"), [(6, 1), (12, 1), (12, 3)])
@pytest.mark.parametrize("chance", [0.5, 0.9])
def test_intervals_hold_the_true_rate(prompts: int, completions: int, chance: float) -> None:
    """Of 100 intervals, 91 or more do in 97 of 100 such tests, if 95 % of all do."""
    dice = np.random.default_rng(0)
    raw = controlled = 0
    for _ in range(100):
        won = dice.random((prompts, completions)) < chance
        longer = dice.normal(0, 10, won.shape)
        of_prompts = [
            Outcome(prompt, float(won[prompt, each]), longer[prompt, each])
            for prompt in range(prompts)
            for each in range(completions)
        ]
        rate = win_rate(of_prompts)
        raw += rate.raw.low <= chance <= rate.raw.high
        controlled += rate.length_controlled.low <= chance <= rate.length_controlled.high
    assert raw > 90
    assert controlled > 90


def test_one_prompt_whose_completions_differ_says_as_little() -> None:
    rate = win_rate([Outcome(0, won, 0.0) for won in (1.0, 1.0, 0.0, 1.0)]).raw
    assert (rate.value, rate.high - rate.low > 0.6) == (0.75, True)


class Saying:
    """A sampler that always says one thing."""

    window = None

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens

    def draw(self, prompts: Any, sampling: Sampling, _: object) -> Iterator[tuple[int, list[Sample]]]:
        for index in range(len(prompts)):
            yield index, [Sample(self.tokens, [-0.5] * len(self.tokens), True)] * sampling.samples


@pytest.fixture(scope="module")
def policy() -> Iterator[Policy]:
    with open_policy(None, {"backend": "local"}, print) as opened:
        yield opened


@pytest.fixture
def compare(policy: Policy, write_rows: Callable[..., Path], tmp_path: Path) -> Callable[..., Any]:
    data = write_rows([{"prompt": f"Say {number}.", "answer": "yes"} for number in range(4)], "prompts.jsonl")

    @contextmanager
    def saying(text: str, run: Path | None = None) -> Iterator[Policy]:
        sampler: Any = Saying([*policy.renderer.completion_tokens(text)])
        yield replace(policy, name=text, sampler=sampler, identity={"says": text}, run=run, step=3)

    def compared(a: str, b: str, judge: Any, run: Path | None = None, **given: Any) -> Any:
        comparing = Comparing(judge, Sampling(samples=2), tmp_path / "won.jsonl", **given)
        prompts = read_prompts(str(data), reading_settings({}))
        return compare_policies([saying(a, run), saying(b)], prompts, comparing, lambda *_: None)

    return compared


def test_two_policies_are_compared_in_both_orders(compare: Callable[..., Any], tmp_path: Path) -> None:
    found = compare("yes", "no it is not", open_judge("exact"))
    assert (found.rate.raw.value, found.matches, found.rate.prompts, found.left_out) == (1.0, 8, 4, 0)
    rows = lines(tmp_path / "won.jsonl")
    assert rows[0] == {
        "prompt": "Say 0.",
        "source": rows[0]["source"],
        "a": "yes",
        "b": "no it is not",
        "a_won": 1.0,
        "scores": {"a first": [1.0, 0.0], "b first": [1.0, 0.0]},
    }
    assert not list(tmp_path.glob("won.jsonl.*"))
    with pytest.raises(OptionError, match=r"won\.jsonl exists; name another file, or add --overwrite"):
        compare("yes", "no", open_judge("exact"))
    assert compare("no", "yes", open_judge("exact"), overwrite=True).rate.raw.value == 0.0


def test_the_run_of_the_first_policy_keeps_each_win_rate_once(
    compare: Callable[..., Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert compare("yes", "no it is not", open_judge("exact")).run is None
    missing = compare("yes", "no it is not", open_judge("exact"), run=run, overwrite=True)
    assert (missing.run, missing.rate.raw.value) == (None, 1.0), "what is not kept is measured all the same"
    assert missing.notes[0].startswith(
        f"Not kept for the report: {run / 'win_rates.jsonl'} cannot be written"
    )
    run.mkdir()
    for a, b, judge in (("no", "yes", "exact"), ("yes", "no it is not", "length"), ("no", "yes", "exact")):
        assert compare(a, b, open_judge(judge), run=run, overwrite=True).run == run
    assert len(lines(run / "win_rates.jsonl")) == 3
    long, lost = read_win_rates(run)[::-1]
    assert (long["against"], long["judge"], lost["against"], lost["judge"]) == (
        "no it is not", "length", "yes", "exact",
    )  # fmt: skip
    assert lost["win_rate"] == {"value": 0.0, "low": 0.0, "high": pytest.approx(0.58, abs=0.02)}
    assert (lost["step"], lost["better"], lost["equal"], lost["worse"]) == (3, 0.0, 0.0, 1.0)
    assert (lost["comparisons"], lost["left_out"], lost["sampling"]["samples"]) == (8, 0, 2)
    (run / "win_rates.jsonl").write_text('{"step": 1, "against": "yes"}\n')
    with pytest.raises(UserError, match=r"win_rates\.jsonl is broken: the line of step 1 has no"):
        read_win_rates(run)


def test_the_report_of_a_run_shows_its_win_rates(
    train: Callable[..., Any], run_cli: Any, write_rows: Callable[..., Path], tmp_path: Path
) -> None:
    train(steps=1, progress="quiet")
    data = write_rows([{"prompt": "Say it."}, {"prompt": "Go on."}], "prompts.jsonl")
    judged = ("--judge", "length", "--set", "unit=characters", "--max-tokens", 6)
    ended = run_cli("winrate", "run", "run", "--data", data, *judged, "--output", "won.jsonl")
    assert ended.status == 0, ended.err
    assert ended.out.endswith("Next: mint-train plot run, whose page shows the win rate too\n")
    page = make_page(read_runs([tmp_path / "run"]))
    table = page[page.index("<h2>Win rates</h2>") :].split("</table>")[0]
    for cell in ("length (unit=characters)", "50.0% [15.4%, 84.6%]", "100.0%", "2"):
        assert f">{cell}</td>" in table, cell
    assert '<th scope="row">run after step 1</th><td>run</td>' in table
    (tmp_path / "run" / "win_rates.jsonl").unlink()
    assert "Win rates" not in make_page(read_runs([tmp_path / "run"]))


def test_a_judge_that_prefers_a_position_finds_no_winner(
    compare: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = open_judge("length")
    monkeypatch.setattr(judge, "score", lambda batch: [[1.0, 0.0]] * len(batch))
    found = compare("yes", "no", judge)
    assert (found.rate.raw.value, found.rate.ties) == (0.5, 1.0)


def test_what_the_judge_leaves_out_in_one_order_is_left_out(
    compare: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    judge = open_judge("length")
    real = judge.score

    def score(batch: Any) -> Any:
        known = real(batch)
        return [
            [None, None] if one.question == "Say 1." and one.completions[0] == "no" else scores
            for one, scores in zip(batch, known, strict=True)
        ]

    monkeypatch.setattr(judge, "score", score)
    found = compare("yes", "no", judge)
    assert (found.matches, found.left_out, found.rate.prompts) == (6, 2, 3)
    assert [row["a_won"] for row in lines(tmp_path / "won.jsonl")].count(None) == 2
    monkeypatch.setattr(judge, "score", lambda batch: [[None, None]] * len(batch))
    with pytest.raises(JudgeError, match='the judge "length" left out all 8 comparisons'):
        compare("yes", "no", judge, overwrite=True)


def test_the_command_line(run_cli: Any, write_rows: Callable[..., Path], starter_model_folder: Path) -> None:
    data = write_rows([{"prompt": "Say it."}, {"prompt": "Go on."}], "prompts.jsonl")
    ended = run_cli(
        "winrate", starter_model_folder, starter_model_folder, "--data", data, "--judge", "length",
        "--max-tokens", 6, "--output", "won.jsonl",
    )  # fmt: skip
    assert ended.status == 0, ended.err
    assert "2 comparisons on 2 prompts, each in both orders." in ended.out
    assert "wins, a tie half" in ended.out
    assert "15.4% to 84.6%" in ended.out
    assert "Each comparison is in won.jsonl." in ended.out
