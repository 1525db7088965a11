"""Completions of a policy for the prompts of a file, and a judge's scores of them: each made once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mint_train.backends.base import Sample
from mint_train.groups.completions import (
    JUDGED_AT_ONCE,
    RenderedPrompts,
    ToJudge,
    Written,
    render_prompts,
    score,
)
from mint_train.groups.prompts import LocatedPrompt, Prompts
from mint_train.judging.judge import Judge, Scores
from mint_train.observers.progress import Progress
from mint_train.observers.terminal import echo_problem
from mint_train.sampling.journal import Journal, as_json, whole_lines
from mint_train.sampling.policy import Policy
from mint_train.settings.sampling import Sampling


def decided_by(policy: Policy, prompts: Prompts, sampling: Sampling) -> dict[str, Any]:
    """Return what decides the completions, as JSON has it."""
    return {"prompts": prompts.sha256, "policy": dict(policy.identity), "sampling": asdict(sampling)}


def write_all(
    policy: Policy, prompts: Prompts, sampling: Sampling, journal: Path, tell: Progress
) -> tuple[list[Written], RenderedPrompts]:
    """Write completions for all prompts; what the journal holds is not written again.

    Args:
        policy: writes them.
        prompts: those of the file.
        sampling: how they are drawn.
        journal: the file that keeps them.
        tell: is called with the progress.

    Raises:
        UserError: a prompt cannot be rendered, or the journal is of something else.
        MintTrainError: the backend failed, or the disk refuses.
    """
    readable = render_prompts(policy, prompts, policy.sampler.window)
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


def sampled_tokens(written: Sequence[Written], readable: RenderedPrompts) -> dict[str, int]:
    """Count the tokens of prompts, each once, and of what was written for them, by kind."""
    completed = sum(len(sample.tokens) for one in written for sample in one.samples)
    return {"prompts": sum(map(len, readable.tokens)), "sampled": completed}


def judge_all(
    judge: Judge, written: Sequence[ToJudge], journal: Path, decided: Mapping[str, Any], tell: Progress
) -> list[Scores]:
    """Return the scores of all completions; what the journal holds is not judged again.

    Args:
        judge: scores them.
        written: the completions.
        journal: the file that keeps the scores.
        decided: what decides the completions.
        tell: is called with the progress.

    Raises:
        JudgeError: the judge failed.
        DataError: a row lacks what the judge needs.
        UserError: the journal is of something else.
    """
    begun = {"judge": judge.name, "options": judge.options, "files": judge.versions, **decided}
    drop_scores_of_other_files(journal, begun)
    kept = Journal(journal, begun)
    tell("judged", len(kept.entries), len(written))
    left = [index for index in range(len(written)) if index not in kept.entries]
    for start in range(0, len(left), JUDGED_AT_ONCE):
        together = left[start : start + JUDGED_AT_ONCE]
        for index, scores in zip(together, score(judge, [written[n] for n in together]), strict=True):
            kept.add(index, scores)
        tell("judged", len(kept.entries), len(written))
    return [kept.entries[index] for index in range(len(written))]


def drop_scores_of_other_files(journal: Path, begun: Mapping[str, Any]) -> None:
    """Delete the scores of a judge that has changed since it gave them; completions stay.

    Args:
        journal: the file that keeps the scores.
        begun: what decides them, with the judge's versions.

    Raises:
        UserError: the journal is broken.
    """
    first = next(iter(whole_lines(journal)), None)
    if not isinstance(first, dict) or first.get("files") == begun["files"]:
        return
    if {**first, "files": None} == {**as_json(begun), "files": None}:
        before = first.get("files") or {}
        changed = ", ".join(name for name, digest in begun["files"].items() if before.get(name) != digest)
        echo_problem(f"{changed} has changed since {journal} was begun: all completions are judged again.")
        journal.unlink()


def own_seed(seed: int, prompt: LocatedPrompt) -> int:
    """Return a seed of a prompt's own."""
    digest = hashlib.blake2b(f"{seed} {prompt.prompt!r}".encode(), digest_size=4).digest()
    return int.from_bytes(digest)
