"""What a run tells its observers: plain, immutable values made by the runner."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mint_train.errors import UserError
from mint_train.run_folder.description import RunDescription
from mint_train.run_folder.metric import Metric
from mint_train.settings.prices import Cost

ON_THE_SERVICE = ("tinker://", "mint://")
"""How the path of a saved state or of weights on the service begins."""
SAVED_STATE = "/weights/"
"""In the path of a state with its optimiser; other paths are of weights to sample from."""

STATE_FILE = "state.safetensors"
"""In the folder of a saved state on this machine."""

RunStatus = Literal["done", "interrupted", "failed"]


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run before its first step."""

    folder: Path
    loss: str
    backend: str
    model: str
    steps: int
    groups: int
    metrics: Mapping[str, Metric]
    """What the loss says of its metrics, by name."""
    description: RunDescription
    """What `run.json` holds: settings without secrets, versions, losses, data."""


@dataclass(frozen=True, slots=True)
class StepRecord:
    """A finished optimiser step; steps count from 1."""

    step: int
    metrics: Mapping[str, float]
    """The loss's metrics, "loss" first; nats unless the loss says otherwise."""
    learning_rate: float
    tokens: int
    """Target tokens of the step's datums."""
    seconds: float

    def to_line(self) -> dict[str, Any]:
        """Return the step's line of `metrics.jsonl`."""
        return {
            "step": self.step,
            "metrics": dict(self.metrics),
            "learning_rate": self.learning_rate,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 6),
        }


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The policy on held-out groups, as it stood after a step."""

    step: int
    """Optimiser steps done; 0 before the first."""
    groups: int
    metrics: Mapping[str, float]
    """The loss's metrics, "loss" first: means over groups, or over batches where `batch_means` says so."""
    intervals: Mapping[str, tuple[float, float]]
    """95 % confidence intervals of the metrics that are means over groups."""
    batch_means: Sequence[str]
    """Metrics that couple the groups of a batch, and therefore have no value per group and no interval."""
    rows: Sequence[Mapping[str, Any]]
    """Per group its "source", absolute path and line, and its own "metrics"."""
    held_out: str = ""
    """The name of the held-out set; "" where the only one has none."""

    def to_line(self) -> dict[str, Any]:
        """Return the evaluation's line of `evaluations.jsonl`; its rows have a file of their own."""
        return {
            "step": self.step,
            **({"held_out": self.held_out} if self.held_out else {}),
            "metrics": dict(self.metrics),
            "intervals": dict(self.intervals),
            "batch_means": list(self.batch_means),
            "groups": self.groups,
        }

    @classmethod
    def of_line(cls, line: Mapping[str, Any]) -> Evaluation:
        """Read a line of `evaluations.jsonl`; the rows stay in their file."""
        intervals = {name: (low, high) for name, (low, high) in line["intervals"].items()}
        return cls(rows=(), **{**line, "intervals": intervals})


class HeldOut(Mapping[str, Evaluation]):
    """The last evaluation on each held-out set, by the set's name, which is "" for a set without a name.

    Where there is one set, `metrics` and `intervals` are its own.
    """

    def __init__(self, evaluations: Iterable[Evaluation] = ()) -> None:
        """Take evaluations in their order."""
        self._last = {evaluation.held_out: evaluation for evaluation in evaluations}

    def __getitem__(self, name: str) -> Evaluation:
        return self._last[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._last)

    def __len__(self) -> int:
        return len(self._last)

    def __repr__(self) -> str:
        return repr({name: dict(self[name].metrics) for name in self})

    @property
    def only(self) -> Evaluation:
        """The evaluation, where there is one set.

        Raises:
            UserError: there is none, or more than one.
        """
        if not self:
            raise UserError("no rows were held out: give --eval-data or --eval-fraction")
        if len(self) > 1:
            raise UserError(f"there are {len(self)} held-out sets; choose one by its name: {', '.join(self)}")
        return next(iter(self.values()))

    @property
    def metrics(self) -> Mapping[str, float]:
        """The metrics, "loss" among them, where there is one set."""
        return self.only.metrics

    @property
    def intervals(self) -> Mapping[str, tuple[float, float]]:
        """The 95 % confidence intervals, where there is one set."""
        return self.only.intervals


@dataclass(frozen=True, slots=True)
class Sampled:
    """A prompt that the policy completed."""

    prompt: str
    """As a reader sees it: a single user's text alone, messages with their roles."""
    completion: str
    score: float | None
    """The judge's; None without one, and for what it leaves out."""


@dataclass(frozen=True, slots=True)
class Samples:
    """What the policy writes for the prompts of `--sample-prompts`, as it stood after a step."""

    step: int
    """Optimiser steps done; 0 before the first."""
    completions: Sequence[Sampled]
    """One per prompt, in the order of the prompts."""

    @property
    def mean_score(self) -> float | None:
        """The mean of the scores that are known; None where none is."""
        known = [one.score for one in self.completions if one.score is not None]
        return sum(known) / len(known) if known else None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A saved state of a run after a step, as the backend names it."""

    step: int
    state: str
    """Path of weights and optimiser, to resume from."""
    sampler: str | None
    """Path of the weights alone, to sample from; the local backend's is a PEFT adapter folder."""
    loss_state: Mapping[str, float]
    """The loss's own state, kept from step to step."""


@dataclass(frozen=True, slots=True)
class Round:
    """One of several rounds of sampling, judging and training."""

    number: int
    """Counted from 1."""
    mean_score: float
    """Of its completions, which the policy wrote before it was trained on them."""
    rows: int
    """Rows that were made of them."""
    data: Path
    """The file of these rows."""
    folder: Path
    """The run that was trained on them, if the round came so far."""
    tokens: Mapping[str, int] = field(default_factory=dict)
    """The tokens that it has sent, by kind, to sample and to train."""
    trained: Mapping[str, int] = field(default_factory=dict)
    """Those of them that its run has sent."""


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a run ended."""

    status: RunStatus
    folder: Path
    steps: int
    """Optimiser steps done, including those before a resume."""
    metrics: Mapping[str, float]
    """The last step's metrics; empty if there was no step."""
    checkpoint: Checkpoint | None
    problem: str | None = None
    """Why the run failed."""
    evaluations: Sequence[Evaluation] = ()
    """All evaluations on held-out rows, those before the first step first."""
    tokens: Mapping[str, int] = field(default_factory=dict)
    """The tokens that it has sent, by kind, those before a resume too."""
    cost: Cost | None = None
    """What they cost; None without `--price-file`."""
    budget_spent: bool = False
    """Whether it was interrupted as the next step would pass `--token-budget`."""
    rounds: Sequence[Round] = ()
    """What came before it, where the run is the last one of rounds, and the run itself."""

    @property
    def held_out(self) -> HeldOut:
        """The last evaluation on each held-out set: `result.held_out.metrics`, or by the set's name."""
        return HeldOut(self.evaluations)
