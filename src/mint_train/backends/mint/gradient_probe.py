"""Find out by experiment whether an adapter moves as the gradients that it is sent say.

Each experiment sends weights for a few tokens, takes one small step, and looks how far the logprobs have
moved. The step is plain gradient descent: AdamW with both betas 0 and an epsilon far above any gradient moves
the adapter by `learning rate / epsilon * gradient`. So the movement is linear in the gradient, and what holds
of gradients can be read from logprobs, on services that name no gradient norm too.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from mint_train.backends.base import Future
from mint_train.backends.mint.gradient_experiments import (
    BASE,
    CANCELLING,
    CHECKS,
    LONG,
    MIXED,
    PREFIX_WEIGHTS,
    SHORT,
    SIGNED_CHECKS,
    STILL,
    TAIL,
    TEXTS,
    Check,
    Experiment,
    has_weights,
)
from mint_train.backends.mint.gradient_form import GradientForm, was_without_gradients
from mint_train.errors import MintTrainError, ServiceError
from mint_train.sdk import Datum, types

EPSILON = 1e5
FIRST_RATE = 3e-7
"""Step per gradient that calibration begins with."""
SIGN_STEP = types.AdamParams(learning_rate=1e-3, beta1=0.0, beta2=0.0, eps=1e-12)
"""A step that moves each weight alike, however small its gradient is, and none without a gradient."""
AIMS = (5e-4, 5e-3, 1e-1)
"""Movements in nats to aim for: the last one only if no smaller one repeats itself, as it is less linear."""
FACTOR = 3.0
"""How far a movement may be from an aim, either way."""
LEAST, MOST = 1e-5, 1.0
"""Movements in nats that are taken for none, and for a step that was not the one asked for."""
SPOILED = 0.3
"""Movement in nats after which an adapter has moved too far to count as fresh."""
REPEATS = 0.02
"""How far two equal experiments may differ, relative to their movement."""
TOLERANCE = 0.05
"""How far a movement may be from the one expected, relative to it."""
CLIP_NORM = 1e-6
"""Far below any gradient's, so that a clipped step moves nothing."""
CLIPPED = 0.5
"""Share of a step that one which is clipped stays below."""
KEPT_GRADIENTS = "an update without gradients moves a fresh adapter: it kept those of another one"
WRONG_SIGN = "the sign is wrong: tokens with positive weights become less likely"
CALIBRATIONS = 8
TRIES = 5
PATIENCE_SECONDS = 60.0
"""How long experiments are repeated in which requests fail."""


Trial = tuple[Experiment, types.AdamParams]
"""An experiment and its update."""


class Adapter(Protocol):
    """An adapter that experiments may change."""

    def forward_backward(self, data: list[Datum], loss_fn: str) -> Future[types.ForwardBackwardOutput]:
        """Add the gradient of a loss of the service."""
        ...

    def optim_step(self, adam_params: types.AdamParams) -> Future[types.OptimStepResponse]:
        """Update the adapter."""
        ...


class CannotMeasureError(MintTrainError):
    """The service's updates do not show what gradients they were made of."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one experiment showed."""

    name: str
    holds: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a form gives the gradients that were sent."""

    fault: str | None
    """What is wrong, as the end of a sentence; None where nothing is."""
    precise: bool = True
    """Whether weights arrive with more digits than bfloat16 has."""
    clips: bool = True
    """Whether gradients are clipped to the norm that an update asks for."""
    left_over: bool = False
    """Whether a fresh adapter held gradients of another one, which its first update has used up."""


@dataclass
class Probe:
    """Experiments on one fresh adapter in one form."""

    adapter: Adapter
    form: GradientForm
    rate: float = FIRST_RATE
    """How far the adapter moves per gradient."""
    tolerance: float = TOLERANCE
    logprobs: np.ndarray = field(default_factory=lambda: np.zeros(LONG, np.float32))
    """Of the long text's target tokens, as last read."""
    first_logprobs: np.ndarray | None = None
    findings: list[Finding] = field(default_factory=list)

    @property
    def spoiled(self) -> bool:
        """Whether the adapter has moved too far for further experiments."""
        moved = self.logprobs - (self.logprobs if self.first_logprobs is None else self.first_logprobs)
        return not bool(np.abs(moved).max() < SPOILED)

    def judge_at_once(self) -> Verdict:
        """Run the experiments that only a right form passes, in one series, so that they are waited for once.

        A fault that is found says little of what is wrong.

        Raises:
            CannotMeasureError: the first step is too large or too small, or does not repeat itself.
            MintTrainError: the service fails or refuses.
        """
        step = descent_step(self.rate)
        trials = [(STILL, SIGN_STEP), (BASE, step), (BASE, step), (MIXED.experiment, step)]
        left, first, second, mixed, clipped = self.moved(
            [*trials, (BASE, descent_step(self.rate, CLIP_NORM))]
        )
        base, differing = (first + second) / 2, np.abs(first - second)
        if np.abs(left).max() > LEAST + 10 * differing.max():
            return Verdict(KEPT_GRADIENTS, left_over=True)
        sized = AIMS[0] / FACTOR <= np.abs(second).max() <= FACTOR * AIMS[1]
        if not sized or np.linalg.norm(differing) > REPEATS * np.linalg.norm(second):
            raise CannotMeasureError("the first step is not a good one")
        if base @ PREFIX_WEIGHTS <= 0:
            return Verdict(WRONG_SIGN)
        fault = self.first_fault([MIXED], [mixed], base, 0 * base)
        return Verdict(fault, clips=self.clips(clipped, base))

    def judge(self) -> Verdict:
        """Run all experiments one after the other.

        Raises:
            CannotMeasureError: no step repeats itself.
            MintTrainError: the service fails or refuses.
        """
        left, still = self.moved([(STILL, SIGN_STEP)] * 2)
        largest = float(np.abs(left).max())
        if not self.note(
            "no gradients, zero weights",
            largest <= LEAST + 10 * np.abs(still).max(),
            f"logprobs move by {largest:.2g} nats, 0 expected",
        ):
            return Verdict(KEPT_GRADIENTS, left_over=True)
        base = self.calibrate()
        if not self.note(
            "sign", float(base @ PREFIX_WEIGHTS) > 0, f"tokens gain {base.max():.2g} nats a step"
        ):
            return Verdict(WRONG_SIGN)
        step = descent_step(self.rate)
        found = self.moved([(check.experiment, step) for check in CHECKS])
        if (fault := self.first_fault(CHECKS, found, base, 0 * base)) is not None:
            return Verdict(fault)
        signed = [TAIL, *(check.experiment for check in SIGNED_CHECKS), CANCELLING]
        tail, *found, cancelling, clipped = self.moved(
            [*((experiment, step) for experiment in signed), (BASE, descent_step(self.rate, CLIP_NORM))]
        )
        if (fault := self.first_fault(SIGNED_CHECKS, found, base, tail)) is not None:
            return Verdict(fault)
        precise = self.agrees("weights of 1000 and -1001 on one token", cancelling, -base)
        return Verdict(None, precise, self.clips(clipped, base))

    def note(self, name: str, holds: bool, detail: str) -> bool:
        """Keep what an experiment showed, and return whether it is right."""
        self.findings.append(Finding(name, holds, detail))
        return holds

    def first_fault(
        self, checks: Sequence[Check], found: Sequence[np.ndarray], base: np.ndarray, tail: np.ndarray
    ) -> str | None:
        """Compare movements with those expected, and return what is wrong by the first that differs."""
        wrong = [
            check.fault
            for check, moved in zip(checks, found, strict=True)
            if not self.agrees(check.name, moved, check.base * base + check.tail * tail)
        ]
        return wrong[0] if wrong else None

    def agrees(self, name: str, moved: np.ndarray, expected: np.ndarray) -> bool:
        """Return whether a movement is the one expected."""
        length = float(np.linalg.norm(expected))
        share = float(moved @ expected) / length**2
        return self.note(
            name,
            bool(np.linalg.norm(moved - expected) <= self.tolerance * length),
            f"{share:.3f} of the movement expected",
        )

    def clips(self, moved: np.ndarray, base: np.ndarray) -> bool:
        """Return whether a step that asks for a small norm of the gradients is a small one."""
        share = float(np.linalg.norm(moved) / np.linalg.norm(base))
        detail = f"a step clipped to a norm of {CLIP_NORM:.0e} moves {share:.3f} of one that is not"
        return self.note("gradient clipping", share < CLIPPED, detail)

    def calibrate(self) -> np.ndarray:
        """Find a small step that repeats itself.

        Returns:
            The movement by `BASE`, `[LONG]`.

        Raises:
            CannotMeasureError: there is none.
        """
        aim = AIMS[0]
        for _ in range(CALIBRATIONS):
            first, second = self.moved([(BASE, descent_step(self.rate))] * 2)
            size = float(np.abs(second).max())
            if not np.isfinite(size) or size > MOST:
                raise CannotMeasureError("a small step moves the adapter far")
            if aim / FACTOR <= size <= FACTOR * max(aim, AIMS[1]):
                differing = float(np.linalg.norm(first - second) / np.linalg.norm(second))
                if differing <= (REPEATS if aim < AIMS[-1] else 5 * REPEATS):
                    self.tolerance = max(TOLERANCE, 3 * differing)
                    base: np.ndarray = (first + second) / 2
                    return base
                aim = next((larger for larger in AIMS if larger > FACTOR * size), AIMS[-1])
            self.rate *= aim / size if size > LEAST else 100.0
        raise CannotMeasureError("no step of an update repeats itself")

    def moved(self, trials: Sequence[Trial]) -> list[np.ndarray]:
        """Return how far each experiment moves the long text's logprobs, nats, float32 `[LONG]`.

        An update that finds no gradients may have come before them, so the experiments are repeated. A
        service that drops what it was sent shows the same again. They are repeated too if a request fails,
        since all logprobs are read anew.

        Raises:
            ServiceError: the service fails each time, or is slow to fail.
        """
        began = time.monotonic()
        for left in reversed(range(TRIES)):
            try:
                before, overtaken = self.read_series(trials)
            except ServiceError:
                if not left or time.monotonic() - began > PATIENCE_SECONDS:
                    raise
                continue
            if not overtaken:
                break
        return [after - start for start, after in pairwise(before)]

    def read_series(self, trials: Sequence[Trial]) -> tuple[list[np.ndarray], bool]:
        """Carry out experiments one after the other.

        Returns:
            The long text's logprobs before each of them and after the last, and whether an update came before
            its gradients.

        Raises:
            ServiceError: a request failed.
        """
        series = (*trials, (STILL, trials[-1][1]))
        sent: list[tuple[list[Future[Any]], Future[Any]]] = []
        before, overtaken = [], False
        try:
            for trial in series:
                sent.append(self.submit(*trial))
                if self.first_logprobs is None:  # importance_sampling needs them in the next experiment
                    self.logprobs = self.first_logprobs = read_logprobs([one.result() for one in sent[0][0]])
            for (experiment, _), (passes, update) in zip(series, sent, strict=True):
                before.append(read_logprobs([one.result() for one in passes]))
                overtaken |= was_without_gradients(update.result()) and has_weights(experiment)
        except ServiceError:
            self.use_up(sent, series[-1])
            raise
        self.logprobs = before[-1]
        return before, overtaken

    def use_up(self, sent: Sequence[tuple[list[Future[Any]], Future[Any]]], still: Trial) -> None:
        """Wait for what was sent, and take a step, so that no gradients are left for the next experiment."""
        for passes, update in (*sent, self.submit(*still)):
            for future in (*passes, update):
                with suppress(ServiceError):
                    future.result()

    def submit(self, experiment: Experiment, step: types.AdamParams) -> tuple[list[Future[Any]], Future[Any]]:
        """Send an experiment's gradients and its update, without waiting."""
        return self.submit_gradients(experiment), self.adapter.optim_step(step)

    def submit_gradients(self, experiment: Experiment) -> list[Future[Any]]:
        """Send an experiment's gradients, without waiting."""
        datums = sum(len(request) for request in experiment)
        passes = []
        for request in experiment:
            sizes = [LONG if long else SHORT for long, _ in request]
            gradients = [-weights[:size] for (_, weights), size in zip(request, sizes, strict=True)]
            texts = [TEXTS[long] for long, _ in request]
            data = self.form.data(texts, gradients, [self.logprobs[:size] for size in sizes], datums)
            passes.append(self.adapter.forward_backward(data, self.form.loss_fn))
        return passes


def descent_step(rate: float, clip: float = 0.0) -> types.AdamParams:
    """Return the parameters of AdamW with which it moves the adapter by rate times gradient."""
    return types.AdamParams(
        learning_rate=rate * EPSILON, beta1=0.0, beta2=0.0, eps=EPSILON, grad_clip_norm=clip
    )


def read_logprobs(answers: Sequence[types.ForwardBackwardOutput]) -> np.ndarray:
    """Return the long text's logprobs from an experiment's answers, whose last row it always is."""
    logprobs: np.ndarray = answers[0].loss_fn_outputs[-1]["logprobs"].to_numpy()
    return logprobs.astype(np.float32).reshape(-1)
