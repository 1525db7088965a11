"""Completions of a policy for the prompts of a file, and a judge's scores of them: each made once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from mint_train.backends.base import Sample, Sampling
from mint_train.errors import DataError, JudgeError, RowError
from mint_train.judging.judge import Judge, Scores
from mint_train.observers.progress import Progress
from mint_train.rows.candidates import Candidates
from mint_train.sampling.journal import Journal
from mint_train.sampling.policy import Policy
from mint_train.sampling.prompts import Located, Prompts

JUDGED_AT_ONCE = 16
"""Prompts that a judge gets in one batch, and the most that a kill makes it judge again."""


@dataclass(frozen=True, slots=True)
class Written:
    """A prompt with what the policy wrote."""

    prompt: Located
    texts: Sequence[str]
    samples: Sequence[Sample]

    def candidates(self) -> Candidates:
        """Return what a judge scores: the completions that hold a text."""
        texts = [text for text in self.texts if text.strip()]
        return Candidates(self.prompt.prompt, texts, self.prompt.row)

    def all_scores(self, scores: Scores) -> Scores:
        """Return a score for each completion, None for an empty one, of those of `candidates`."""
        found = iter(scores)
        return [next(found) if text.strip() else None for text in self.texts]


@dataclass(frozen=True, slots=True)
class Readable:
    """Prompts as token ids."""

    prompts: Sequence[Located]
    tokens: Sequence[list[int]]
    left_out: Sequence[str]
    """Why each prompt that is left out is, with its file and line."""
    stop: tuple[int, ...]
    """The tokens that end a completion in training."""

    def lines(self) -> list[str]:
        """Say which prompts are left out."""
        return [f"Left out, as the model cannot read it: {why}" for why in self.left_out]


def render_prompts(policy: Policy, prompts: Prompts) -> Readable:
    """Render prompts as training does; those that fill the model's window are left out.

    Raises:
        DataError: the rendering refuses a prompt, or none is left.
    """
    kept, tokens, left_out = [], [], []
    stop: tuple[int, ...] = ()
    window = policy.sampler.window
    for row in prompts.rows:
        try:
            rendered = policy.prompt_tokens(row.prompt)
            stop = stop or (policy.end_token(row.prompt),)
        except RowError as error:
            raise DataError(f"{row.source}: {error}") from None
        if window is not None and len(rendered) >= window:
            left_out.append(
                f"{row.source}: its {len(rendered):,} tokens fill the model's window of {window:,}"
            )
            continue
        kept.append(row)
        tokens.append(rendered)
    if not kept:
        raise DataError(f"no prompt can be completed: {left_out[0]}")
    return Readable(kept, tokens, left_out, stop)


def decided_by(policy: Policy, prompts: Prompts, sampling: Sampling) -> dict[str, Any]:
    """Return what decides the completions, as JSON has it."""
    return {"prompts": prompts.sha256, "policy": dict(policy.identity), "sampling": asdict(sampling)}


def write_all(
    policy: Policy, prompts: Prompts, sampling: Sampling, journal: Path, tell: Progress
) -> tuple[list[Written], Readable]:
    """Write completions for all prompts; what the journal holds is not written again.

    Args:
        policy: writes them.
        prompts: those of the file.
        sampling: how they are drawn.
        journal: the file that keeps them.
        tell: hears of the progress.

    Raises:
        UserError: a prompt cannot be rendered, or the journal is of something else.
        MintTrainError: the backend failed, or the disk refuses.
    """
    readable = render_prompts(policy, prompts)
    sampling = replace(sampling, stop=readable.stop)
    kept = Journal(journal, decided_by(policy, prompts, sampling))
    total = len(readable.prompts)
    tell("sampled", len(kept.entries), total)
    for index, samples in policy.sampler.draw(readable.tokens, sampling, kept.entries):
        kept.add(index, [[one.tokens, one.logprobs, one.ended] for one in samples])
        tell("sampled", len(kept.entries), total)
    written = []
    for index, row in enumerate(readable.prompts):
        samples = [Sample(*one) for one in kept.entries[index]]
        written.append(Written(row, [policy.text_of(one) for one in samples], samples))
    return written, readable


class ToJudge(Protocol):
    """Completions of a prompt that a judge is to score."""

    @property
    def prompt(self) -> Located:
        """The prompt, with its row."""
        ...

    def candidates(self) -> Candidates:
        """Return what the judge scores."""
        ...

    def all_scores(self, scores: Scores) -> Scores:
        """Return a score for each completion, of those of `candidates`."""
        ...


def judge_all(
    judge: Judge, written: Sequence[ToJudge], journal: Path, decided: Mapping[str, Any], tell: Progress
) -> list[Scores]:
    """Return the scores of all completions; what the journal holds is not judged again.

    Args:
        judge: scores them.
        written: the completions.
        journal: the file that keeps the scores.
        decided: what decides the completions.
        tell: hears of the progress.

    Raises:
        JudgeError: the judge failed.
        DataError: a row lacks what the judge needs.
        UserError: the journal is of something else.
    """
    kept = Journal(journal, {"judge": judge.name, "options": judge.options, **decided})
    tell("judged", len(kept.entries), len(written))
    left = [index for index in range(len(written)) if index not in kept.entries]
    for start in range(0, len(left), JUDGED_AT_ONCE):
        together = left[start : start + JUDGED_AT_ONCE]
        for index, scores in zip(together, score(judge, [written[n] for n in together]), strict=True):
            kept.add(index, scores)
        tell("judged", len(kept.entries), len(written))
    return [kept.entries[index] for index in range(len(written))]


def score(judge: Judge, written: Sequence[ToJudge]) -> Iterator[Scores]:
    """Yield the scores of each prompt's completions, None for those that are empty.

    Raises:
        JudgeError: the judge failed.
        DataError: a row lacks what the judge needs, with its file and line.
    """
    asked = [one.candidates() for one in written]
    full = [candidates for candidates in asked if candidates.completions]
    try:
        found = iter(judge.score(full) if full else [])
    except RowError as error:
        raise DataError(f"{faulty(judge, written)}: {error}") from None
    for one, candidates in zip(written, asked, strict=True):
        yield one.all_scores(next(found) if candidates.completions else [])


def faulty(judge: Judge, written: Sequence[ToJudge]) -> str:
    """Return the file and line of the first row that a judge refuses."""
    for one in written:
        with suppress(JudgeError):
            try:
                judge.score([one.candidates()])
            except RowError:
                return str(one.prompt.source)
    return str(written[0].prompt.source)


def own_seed(seed: int, prompt: Located) -> int:
    """Return a seed of a prompt's own."""
    digest = hashlib.blake2b(f"{seed} {prompt.prompt!r}".encode(), digest_size=4).digest()
    return int.from_bytes(digest)
