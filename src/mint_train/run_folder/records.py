"""What a run tells its observers: plain values, made by the runner and changed by nobody."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

ON_THE_SERVICE = "tinker://"
"""How a path of a saved state or of weights begins that a service keeps."""

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
    step_line: Mapping[str, str]
    description: Mapping[str, Any]
    """What `run.json` holds: settings without secrets, versions, plugins, data."""


@dataclass(frozen=True, slots=True)
class StepRecord:
    """A finished optimiser step; steps count from 1."""

    step: int
    metrics: Mapping[str, float]
    """The loss's metrics, "loss" first; nats where the loss says nothing else."""
    learning_rate: float
    tokens: int
    seconds: float


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
    """Metrics that couple the groups of a batch, and so have no value per group and no interval."""
    rows: Sequence[Mapping[str, Any]]
    """Per group its "source", file and line, and its own metrics."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A saved state of a run after a step, as the backend names it."""

    step: int
    state: str
    """Path of weights and optimiser, to resume from."""
    sampler: str | None
    """Path of the weights alone, to sample from; the local backend's is a PEFT adapter folder."""
    loss_state: Mapping[str, float]
    """What the loss keeps from step to step."""


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a run ended."""

    status: RunStatus
    folder: Path
    steps: int
    """Optimiser steps done, those before a resume counted in."""
    metrics: Mapping[str, float]
    """The last step's metrics; empty where there was none."""
    checkpoint: Checkpoint | None
