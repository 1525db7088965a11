"""What a run prints for another program: one JSON object per event and line, and how to read it back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mint_train.observers.terminal import echo, echo_problem
from mint_train.plugins.hookspecs import hookimpl
from mint_train.run_folder.records import Checkpoint, Evaluation, RunRecord, RunResult, Samples, StepRecord
from mint_train.settings.prices import Cost


class JsonLines:
    """Prints each event under the name of its hook: `{"event": "step_finished", "step": 1, ...}`."""

    def print(self, event: str, values: Mapping[str, Any]) -> None:
        """Print an event; paths become texts."""
        echo(json.dumps({"event": event, **values}, ensure_ascii=False, allow_nan=False, default=str))

    @hookimpl
    def notice(self, text: str, warning: bool) -> None:
        """Print a line about the run; a warning goes to standard error, as errors do."""
        if warning:
            echo_problem(text)
        else:
            self.print("notice", {"text": text})

    @hookimpl
    def run_started(self, run: RunRecord) -> None:
        """Print what the run is; the rest is in its `run.json`."""
        names = ("folder", "loss", "backend", "model", "steps", "groups")
        self.print("run_started", {name: getattr(run, name) for name in names})

    @hookimpl
    def step_finished(self, step: StepRecord) -> None:
        """Print a step as `metrics.jsonl` has it."""
        self.print("step_finished", step.to_line())

    @hookimpl
    def evaluated(self, evaluation: Evaluation) -> None:
        """Print an evaluation as `evaluations.jsonl` has it."""
        self.print("evaluated", evaluation.to_line())

    @hookimpl
    def sampled(self, samples: Samples) -> None:
        """Print the completions with their scores."""
        self.print("sampled", asdict(samples))

    @hookimpl
    def checkpoint_saved(self, checkpoint: Checkpoint) -> None:
        """Print a checkpoint with its paths."""
        self.print("checkpoint_saved", asdict(checkpoint))

    @hookimpl
    def run_rolled_back(self, step: int, problem: str) -> None:
        """Print what failed, and the step that the run was rolled back to."""
        self.print("run_rolled_back", {"step": step, "problem": problem})

    @hookimpl
    def run_finished(self, result: RunResult) -> None:
        """Print how the run ended, and where its results are."""
        values = asdict(replace(result, evaluations=()))
        del values["evaluations"]  # each has been printed
        self.print("run_finished", values)


def parse_event(line: str) -> dict[str, Any] | None:
    """Return a line that `JsonLines` printed as a dictionary with its "event"; None for any other line."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "event" in event else None


def show_event(event: Mapping[str, Any], display: Any) -> None:
    """Call a display's method for an event of another process, if the display has one.

    Args:
        event: what `parse_event` returned.
        display: an object with some of the observers' hooks.
    """
    values = dict(event)
    name = values.pop("event")
    records: dict[str, tuple[str, Any]] = {
        "step_finished": ("step", lambda: StepRecord(**values)),
        "evaluated": ("evaluation", lambda: Evaluation(rows=(), **values)),
        "run_finished": ("result", lambda: read_result(values)),
    }
    method = getattr(display, name, None)
    if method is None:
        return
    if name == "notice":
        method(text=values["text"], warning=False)
    elif name == "run_rolled_back":
        method(**values)
    elif name in records:
        argument, record = records[name]
        method(**{argument: record()})


def read_result(values: Mapping[str, Any]) -> RunResult:
    """Return the result that a `run_finished` event describes."""
    saved = values["checkpoint"]
    cost = values["cost"]
    more = {
        "folder": Path(values["folder"]),
        "checkpoint": Checkpoint(**saved) if saved else None,
        "cost": Cost(**cost) if cost else None,
    }
    return RunResult(**{**values, **more})
