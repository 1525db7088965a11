"""`mint-train pairs`: from prompts to rows to train on, by a policy, a judge and a row writer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mint_train.errors import JudgeError, PluginError, counted
from mint_train.groups.completions import RenderedPrompts, Written
from mint_train.groups.prompts import Prompts
from mint_train.judging.judge import Judge, Scores, as_options
from mint_train.observers.progress import Progress
from mint_train.plugins.creating import Kind, create_plugin
from mint_train.plugins.discovery import manager_of
from mint_train.plugins.guarding import HookGuard, said
from mint_train.plugins.judge_hookspecs import RowWriterSpec
from mint_train.rows.candidates import Judged, prompt_columns
from mint_train.rows.row import kind
from mint_train.run_folder.files import write_rows
from mint_train.sampling.collecting import (
    decided_by,
    judge_all,
    own_seed,
    sampled_tokens,
    write_all,
)
from mint_train.sampling.journal import journals_of, require_unused
from mint_train.sampling.policy import Policy
from mint_train.settings.prices import describe_tokens
from mint_train.settings.sampling import Sampling

MORE = "more --samples, a higher --temperature, or another judge"
"""What may give rows where there are none."""
ROW_WRITER = Kind("row writer", "mint_train.row_writers", "install mint-train-judges")


class RowWriter:
    """What makes rows of judged completions."""

    def __init__(self, name: str, options: Mapping[str, Any]) -> None:
        """Create an installed row writer with its options.

        Raises:
            PluginError: none has this name, or it is broken.
            OptionError: an option is unknown or malformed.
        """
        link = create_plugin(ROW_WRITER, name, as_options(ROW_WRITER, name, options))
        self.name, self._hook = name, manager_of([link], ROW_WRITER.name, RowWriterSpec).hook

    def rows(self, judged: Judged) -> list[Mapping[str, Any]]:
        """Return the rows of one prompt.

        Raises:
            PluginError: the plugin raises, or makes a row that is not an object, or that JSON cannot hold.
        """
        with self._guard("rows"):
            made = list(self._hook.rows(judged=judged))
        for row in made:
            if problem := problem_of_row(row):
                raise PluginError(f'the row writer "{self.name}" made a row that {problem}')
        return made

    def note(self) -> str | None:
        """Return what the writer tells the user of all its rows, or None.

        Raises:
            PluginError: the plugin raises.
        """
        with self._guard("rows_note"):
            notes = self._hook.rows_note()
        return str(notes[0]) if notes else None

    def _guard(self, hook: str) -> HookGuard:
        return HookGuard(PluginError, f'the row writer "{self.name}"', hook)


def problem_of_row(row: object) -> str:
    """Return why a row cannot be a line of a file, or nothing if it can."""
    if not isinstance(row, Mapping):
        return f"is {kind(row)}; give an object with fields"
    try:
        json.dumps(dict(row), ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        return f"cannot be written as JSON: {said(error)}"
    return ""


@dataclass(frozen=True, slots=True)
class Making:
    """How rows are made."""

    judge: Judge
    writer: RowWriter
    sampling: Sampling
    output: Path
    keep_all: bool = False
    """Whether each row also holds every completion with its score."""
    overwrite: bool = False

    @property
    def journals(self) -> list[Path]:
        """Where completions and scores are kept until all rows are made."""
        return journals_of(self.output, ("samples", "scores"))


@dataclass(frozen=True, slots=True)
class Made:
    """What was made."""

    rows: int
    written: Sequence[Written]
    scores: Sequence[Scores]
    without_row: int
    """Prompts that gave no row."""
    readable: RenderedPrompts
    retokenised: int
    """Completions whose text becomes other tokens than those that the policy wrote."""

    @property
    def known_scores(self) -> list[float]:
        """The scores of all completions that have one."""
        return [score for scores in self.scores for score in scores if score is not None]

    @property
    def mean(self) -> float | None:
        """The mean score of all completions that have one."""
        known = self.known_scores
        return sum(known) / len(known) if known else None

    @property
    def tokens(self) -> Mapping[str, int]:
        """The tokens of the prompts, each once, and of what was written for them."""
        return sampled_tokens(self.written, self.readable)

    @property
    def empty(self) -> int:
        """How many completions hold no text."""
        return sum(not text.strip() for each in self.written for text in each.texts)

    def why_no_rows(self) -> str:
        """Say why no row was made, and what may give some."""
        total = sum(len(one.texts) for one in self.written)
        texts: list[list[str]] = []
        judged: list[set[float]] = []
        for one, scores in zip(self.written, self.scores, strict=True):
            said = [(text, score) for text, score in zip(one.texts, scores, strict=True) if text.strip()]
            texts.append([text for text, _ in said])
            judged.append({score for _, score in said if score is not None})
        if not any(texts):
            return f"all {counted(total, 'completion')} are empty; take {MORE}"
        if not any(judged):
            return f"the judge left out all {counted(total - self.empty, 'completion')}; take another judge"
        if all(len(one) < 2 for one in texts):
            return "no prompt has two completions to compare; take more --samples"
        if all(len(set(one)) < 2 for one in texts):
            return "the completions of each prompt are the same text; take a higher --temperature"
        if all(len(scores) < 2 for scores in judged):
            return f"the judge tells no prompt's completions apart; take {MORE}"
        return "the row writer takes none of the completions that the judge tells apart; see its options"

    def lines(self) -> list[str]:
        """Say what was sampled and judged, a line each."""
        samples = [sample for each in self.written for sample in each.samples]
        cut = sum(not sample.ended for sample in samples)
        other = (
            f", {self.retokenised:,} that become other tokens when they are read" if self.retokenised else ""
        )
        left_out = len(samples) - len(self.known_scores) - self.empty
        mean = "none" if self.mean is None else f"{self.mean:.4g}"
        made = f"{counted(len(self.written), 'prompt')}, {counted(len(samples), 'completion')}"
        note = "Training takes the cut of a completion for its end; a higher --max-tokens cuts fewer."
        return [
            f"{made}, mean score {mean}: {cut:,} cut at --max-tokens, {self.empty:,} empty, "
            f"{left_out:,} left out by the judge{other}.",
            *([note] if cut else []),
            f"{counted(self.rows, 'row')}; {counted(self.without_row, 'prompt')} gave none.",
            f"Tokens: {describe_tokens(self.tokens)}.",
        ]


def require_rows(made: Made) -> Made:
    """Return what was made, unless it is nothing.

    Raises:
        JudgeError: no row was made.
    """
    if not made.rows:
        raise JudgeError(f"no row was made: {made.why_no_rows()}")
    return made


def make_rows(policy: Policy, prompts: Prompts, making: Making, tell: Progress) -> Made:
    """Sample, judge and write rows; a call that was stopped goes on where it was.

    Raises:
        UserError: the output exists, or what was begun there is something else.
        MintTrainError: the backend or the judge failed.
    """
    journals = making.journals
    require_unused(making.output, journals, prompts, overwrite=making.overwrite)
    written, readable = write_all(policy, prompts, making.sampling, journals[0], tell)
    decided = decided_by(policy, prompts, making.sampling)
    scores = judge_all(making.judge, written, journals[1], decided, tell)
    rows: list[dict[str, Any]] = []
    without = 0
    for one, found in zip(written, scores, strict=True):
        made = making.writer.rows(judged_of(one, found, making.sampling.seed))
        without += not made
        rows += [dict(row) | beside(policy, one, found, making) for row in made]
    if rows:
        write_rows(making.output, rows)
        for path in journals:
            path.unlink(missing_ok=True)
    texts = [pair for one in written for pair in zip(one.texts, one.samples, strict=True)]
    retokenised = sum(not policy.reads_back(*pair) for pair in texts)
    return Made(len(rows), written, scores, without, readable, retokenised)


def judged_of(written: Written, scores: Scores, seed: int) -> Judged:
    """Return what a row writer makes rows of."""
    return Judged(
        prompt=prompt_columns(written.prompt.prompt),
        completions=written.texts,
        scores=scores,
        tokens=[one.tokens for one in written.samples],
        logprobs=[one.logprobs for one in written.samples],
        seed=own_seed(seed, written.prompt),
    )


def beside(policy: Policy, written: Written, scores: Scores, making: Making) -> dict[str, Any]:
    """Return the columns that say where a row comes from; no loss reads them."""
    columns: dict[str, Any] = {
        "sampled_from": policy.name,
        "sampled_with": {
            "seed": making.sampling.seed,
            "temperature": making.sampling.temperature,
            "render": policy.settings.render,
            "judge": making.judge.name,
        },
    }
    if written.prompt.weight != 1:
        columns["weight"] = written.prompt.weight
    if making.keep_all:
        pairs = zip(written.texts, scores, strict=True)
        columns["samples"] = [{"text": text, "score": score} for text, score in pairs]
    return columns
