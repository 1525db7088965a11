"""What a run's policy wrote for its prompts, as a report shows it: each text once, with its steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from mint_train.report.curves import Run
from mint_train.rows.candidates import Candidates

SHOWN_PROMPTS = 6
"""Per run; the others are folded away."""
SHOWN_TEXTS = 4
"""Per prompt: the first, and the last ones; those between are folded away."""
LONGEST_TEXT = 1200


def cut(text: str) -> str:
    """Return a text as far as a report shows it."""
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]} …"


def samples_of(runs: Sequence[Run]) -> dict[str, list[dict[str, Any]]]:
    """Return the prompts of all runs with what was written for them: those that are shown, and the folded."""
    shown: list[dict[str, Any]] = []
    folded: list[dict[str, Any]] = []
    for run in runs:
        prompts = list(completed_prompts(run))
        shown += prompts[:SHOWN_PROMPTS]
        folded += prompts[SHOWN_PROMPTS:]
    return {"shown": shown, "folded": folded}


def completed_prompts(run: Run) -> Iterator[dict[str, Any]]:
    """Yield each prompt of a run with its texts, in the order of the prompts."""
    by_prompt: dict[str, list[Mapping[str, Any]]] = {}
    for line in run.samples:
        by_prompt.setdefault(repr(line["prompt"]), []).append(line)
    for lines in by_prompt.values():
        texts = [entry(list(same)) for _, same in groupby(lines, key=lambda line: str(line["completion"]))]
        first = len(texts) - SHOWN_TEXTS + 1 if len(texts) > SHOWN_TEXTS else 1
        yield {
            "run": run.name,
            "prompt": cut(Candidates(lines[0]["prompt"], []).question),
            "first": texts[:1],
            "between": texts[1:first],
            "last": texts[first:],
        }


def entry(lines: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return a text that was written after one or more steps in a row, with its score."""
    steps = [line["step"] for line in lines]
    when = f"after step {steps[0]}" if steps[0] else "before the first step"
    if len(steps) > 1:
        when = f"{when}, and up to step {steps[-1]}"
    score = lines[-1].get("score")
    scored = "" if score is None else f": score {score:.3g}"
    return {"when": f"{when}{scored}", "text": cut(str(lines[0]["completion"])) or "(empty)"}
