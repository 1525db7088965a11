"""`mint-train winrate`: two policies complete the same prompts, and a judge compares them in both orders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mint_train.errors import JudgeError, MintTrainError
from mint_train.groups.completions import Written
from mint_train.groups.prompts import LocatedPrompt, Prompts
from mint_train.judging.judge import Judge, Scores
from mint_train.observers.progress import Progress
from mint_train.rows.candidates import Candidates, prompt_columns
from mint_train.run_folder.files import write_rows
from mint_train.run_folder.win_rates import keep_win_rate
from mint_train.sampling.collecting import decided_by, judge_all, sampled_tokens, write_all
from mint_train.sampling.journal import journals_of, require_unused
from mint_train.sampling.policy import Policy
from mint_train.sampling.win_rate import Outcome, WinRate, win_rate
from mint_train.settings.sampling import Sampling


@dataclass(frozen=True, slots=True)
class Match:
    """A completion of each policy for one prompt, in one order."""

    prompt: LocatedPrompt
    texts: Sequence[str]

    def candidates(self) -> Candidates:
        """Return what a judge compares."""
        return Candidates(self.prompt.prompt, self.texts, self.prompt.row)

    def all_scores(self, scores: Scores) -> Scores:
        """Return the scores."""
        return scores


@dataclass(frozen=True, slots=True)
class Compared:
    """How two policies compare."""

    rate: WinRate
    matches: int
    left_out: int
    """Comparisons that the judge left out."""
    notes: Sequence[str]
    """Prompts that were left out, a line each, and why the run of A does not keep the win rate."""
    tokens: Mapping[str, int]
    """Of the prompts and of what both policies wrote, by kind."""
    run: Path | None = None
    """The folder of A's run, where it keeps the win rate for its report."""


@dataclass(frozen=True, slots=True)
class ClosedPolicy:
    """What is known of a policy that is closed again."""

    name: str
    run: Path | None
    step: int


@dataclass(frozen=True, slots=True)
class Comparing:
    """How two policies are compared."""

    judge: Judge
    sampling: Sampling
    output: Path
    overwrite: bool = False

    @property
    def journals(self) -> list[Path]:
        """Where the completions of both policies and the scores are kept until all are compared."""
        return journals_of(self.output, ("a.samples", "b.samples", "scores"))


def compare_policies(
    policies: Sequence[AbstractContextManager[Policy]], prompts: Prompts, comparing: Comparing, tell: Progress
) -> Compared:
    """Complete all prompts by two policies, one after the other, judge, and write a row per comparison.

    Args:
        policies: two, each opened when it is its turn.
        prompts: what both complete.
        comparing: the judge, the sampling, and the file to write.
        tell: is called with the progress.

    Raises:
        UserError: the output exists, or what was begun there is something else.
        JudgeError: the judge failed, or left all comparisons out.
        MintTrainError: a backend failed.
    """
    output, judge, journals = comparing.output, comparing.judge, comparing.journals
    require_unused(output, journals, prompts, overwrite=comparing.overwrite)
    sides: list[dict[str, Written]] = []
    closed: list[ClosedPolicy] = []
    decided: dict[str, Any] = {}
    notes: list[str] = []
    tokens = Counter[str]()
    for side, opened, journal in zip("ab", policies, journals, strict=False):
        with opened as policy:
            written, readable = write_all(policy, prompts, comparing.sampling, journal, tell)
            decided[side] = decided_by(policy, prompts, comparing.sampling)
        closed.append(ClosedPolicy(policy.name, policy.run, policy.step))
        sides.append({str(one.prompt.source): one for one in written})
        notes += readable.lines()
        tokens.update(sampled_tokens(written, readable))
    forward = matches_of(*sides)
    backward = [Match(match.prompt, match.texts[::-1]) for match in forward]
    scores = judge_all(judge, [*forward, *backward], journals[2], decided, tell)
    judged = zip(forward, scores[: len(forward)], scores[len(forward) :], strict=True)
    rows = [result_of(*each) for each in judged]
    known = [row for row in rows if row["a_won"] is not None]
    if not known:
        raise JudgeError(f'the judge "{judge.name}" left out all {len(rows)} comparisons')
    write_rows(output, rows)
    for path in journals:
        path.unlink(missing_ok=True)
    rate = win_rate(outcomes_of(known))
    found = Compared(rate, len(known), len(rows) - len(known), list(dict.fromkeys(notes)), tokens)
    return kept_for_report(found, closed, prompts, comparing)


def kept_for_report(
    compared: Compared, policies: Sequence[ClosedPolicy], prompts: Prompts, comparing: Comparing
) -> Compared:
    """Keep a win rate in the folder of A's run, where A is of one."""
    first, second = policies
    if first.run is None:
        return compared
    rate = compared.rate
    line = {
        "step": first.step,
        "against": second.name,
        "judge": comparing.judge.name,
        "judge_options": comparing.judge.options,
        "prompts": prompts.sha256,
        "sampling": asdict(comparing.sampling),
        "win_rate": asdict(rate.raw),
        "length_controlled": asdict(rate.length_controlled),
        "better": rate.wins,
        "equal": rate.ties,
        "worse": rate.losses,
        "comparisons": compared.matches,
        "left_out": compared.left_out,
    }
    try:
        keep_win_rate(first.run, line)
    except MintTrainError as error:  # the run may be somebody else's; the rows are written
        return replace(compared, notes=[*compared.notes, f"Not kept for the report: {error}"])
    return replace(compared, run=first.run)


def outcomes_of(rows: Sequence[Mapping[str, Any]]) -> list[Outcome]:
    """Return what the rows of comparisons say."""
    numbers = {source: index for index, source in enumerate(dict.fromkeys(row["source"] for row in rows))}
    return [Outcome(numbers[row["source"]], row["a_won"], words(row["a"]) - words(row["b"])) for row in rows]


def matches_of(first: Mapping[str, Written], second: Mapping[str, Written]) -> list[Match]:
    """Return the matches of the prompts that both policies completed, sample by sample."""
    return [
        Match(one.prompt, pair)
        for source, one in first.items()
        if source in second
        for pair in zip(one.texts, second[source].texts, strict=True)
    ]


def result_of(match: Match, forward: Scores, backward: Scores) -> dict[str, Any]:
    """Return the row of a comparison; a score that is missing in one order leaves it out."""
    a, b = match.texts
    orders = [(forward[0], forward[1]), (backward[1], backward[0])]
    won = None
    if all(score is not None for order in orders for score in order):
        won = sum(outcome(*order) for order in orders) / len(orders)
    return {
        **prompt_columns(match.prompt.prompt),
        "source": str(match.prompt.source),
        "a": a,
        "b": b,
        "a_won": won,
        "scores": {"a first": list(forward), "b first": list(backward[::-1])},
    }


def outcome(a: float | None, b: float | None) -> float:
    """Return 1 where A scores higher, 0 where B does, and 0.5 for a tie."""
    if a == b or a is None or b is None:
        return 0.5
    return float(a > b)


def words(text: str) -> int:
    """Return the words of a text."""
    return len(text.split())
