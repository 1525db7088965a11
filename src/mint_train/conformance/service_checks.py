"""What a run relies on in a service, proved on fresh adapters that are given back."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from mint_train.backends.mint.client import MintTrainingClient
from mint_train.backends.mint.gradient_experiments import (
    BASE,
    LONG,
    PREFIX_WEIGHTS,
    STILL,
    TAIL,
    TEXTS,
    Experiment,
)
from mint_train.backends.mint.gradient_form import CROSS_ENTROPY, FORMS, GradientForm, gradient_norm
from mint_train.backends.mint.gradient_probe import (
    CannotMeasureError,
    Probe,
    Verdict,
    descent_step,
    read_logprobs,
)
from mint_train.sdk import Datum, types

SAME = 1e-4
"""Nats within which two logprobs are the same."""
SIZE_TOLERANCE = 0.05
OTHER_SEED = 2
PARTED = 1e-3
"""Share of a step by which adapters of two seeds part at least."""
ZERO_TEXT = Datum(
    model_input=TEXTS[1].model_input,
    loss_fn_inputs=TEXTS[1].loss_fn_inputs
    | {"weights": types.TensorData.from_numpy(np.zeros(LONG, np.float32))},
)
"""The long text, with the weights that some services want of a forward too."""

OpenAdapter = Callable[[int], MintTrainingClient]
"""Creates an adapter with a seed."""


@dataclass(frozen=True, slots=True)
class Result:
    """One line of the kit."""

    name: str
    passed: bool
    detail: str
    needed: bool = True
    """Whether a run relies on it; else it is good to know."""


@contextmanager
def adapter(open_adapter: OpenAdapter, seed: int = 1) -> Iterator[MintTrainingClient]:
    """Open an adapter, and free its slot whatever happens."""
    client = open_adapter(seed)
    try:
        yield client
    finally:
        client.leave()


def check_service(open_adapter: OpenAdapter) -> Iterator[Result]:
    """Yield a result for each property; where no form of gradients is right, nothing follows.

    Raises:
        MintTrainError: the service fails, or has no free adapter slot.
    """
    for form in FORMS:
        with adapter(open_adapter) as client:
            probe = Probe(client, form)
            verdict = yield from check_form(probe)
        if verdict.fault is None:
            break
    else:
        yield Result("gradients", False, "they are carried out as sent in no form")
        return
    yield Result("gradients", True, f"a run sends them as {form.loss_fn}")
    yield from check_size(open_adapter, form, probe.rate)
    yield from check_seed(open_adapter, form, probe.rate)
    yield check_state(open_adapter, form, probe.rate)


def check_form(probe: Probe) -> Generator[Result, None, Verdict]:
    """Yield a result for each experiment with a form of gradients, and return the verdict."""
    form = probe.form
    name = form.loss_fn + (" * tokens * datums" if form.divided else "")
    try:
        verdict = probe.judge()
    except CannotMeasureError as error:
        verdict = Verdict(str(error))
    for finding in probe.findings:
        yield Result(f"{name}, {finding.name}", finding.holds, finding.detail, needed=False)
    if verdict.fault is not None:
        yield Result(name, False, verdict.fault, needed=False)
    return verdict


def check_size(open_adapter: OpenAdapter, form: GradientForm, rate: float) -> Iterator[Result]:
    """Check the size of a step by the gradient norm that the service names."""
    with adapter(open_adapter) as client:
        probe = started(client, form, rate)
        before, answer = step(probe, BASE, rate)
        after, _ = step(probe, STILL, rate)
    norm = gradient_norm(answer)
    if norm is None:
        yield Result("size", True, "not known: the service names no gradient norm", needed=False)
    else:
        share = float((after - before) @ PREFIX_WEIGHTS) / (rate * norm**2)
        detail = f"a step moves {share:.3f} of what the service's own gradient norm says"
        yield Result("size", abs(share - 1) < SIZE_TOLERANCE, detail)


def check_seed(open_adapter: OpenAdapter, form: GradientForm, rate: float) -> Iterator[Result]:
    """Check that a fresh adapter changes nothing, and that its seed decides how it moves."""
    starts, moves = [], []
    for seed in (1, 1, OTHER_SEED):
        with adapter(open_adapter, seed) as client:
            probe = started(client, form, rate)
            moves.extend(probe.moved([(BASE, descent_step(rate))]))
            starts.append(probe.first_logprobs)
    differing = max(float(np.abs(one - starts[0]).max()) for one in starts if one is not None)
    detail = f"three fresh adapters differ by {differing:.2g} nats"
    yield Result("a reference stays the same", differing < SAME, detail)
    size = float(np.linalg.norm(moves[0]))
    same, other = (float(np.linalg.norm(move - moves[0])) / size for move in moves[1:])
    detail = f"two adapters of one seed part by {same:.3f} of a step, of two seeds by {other:.3f}"
    yield Result("seed", other > 10 * same + PARTED, detail, needed=False)


def check_state(open_adapter: OpenAdapter, form: GradientForm, rate: float) -> Result:
    """Check that a saved state gives a fresh adapter the same logprobs, as its first request."""
    # both at once: TuFT forgets the states of an adapter that has been given up
    with adapter(open_adapter) as first, adapter(open_adapter, OTHER_SEED) as second:
        probe = started(first, form, rate)
        probe.moved([(each, descent_step(rate)) for each in (BASE, TAIL)])
        saved, fresh = probe.logprobs, probe.first_logprobs
        path = first.save_state("check-server").result().path
        second.load_state_with_optimizer(path).result()
        loaded = read_logprobs([second.forward([ZERO_TEXT], CROSS_ENTROPY).result()])
    differing = float(np.abs(loaded - saved).max())
    moved = 0.0 if fresh is None else float(np.abs(saved - fresh).max())
    detail = f"logprobs differ by {differing:.2g} nats after a load, by {moved:.2g} from a fresh adapter's"
    return Result("a saved state loads into a fresh adapter", differing < moved / 10, detail)


def started(client: MintTrainingClient, form: GradientForm, rate: float) -> Probe:
    """Return a probe that has read the adapter's logprobs, which a form may need."""
    probe = Probe(client, form, rate)
    probe.moved([(STILL, descent_step(rate))])
    return probe


def step(probe: Probe, experiment: Experiment, rate: float) -> tuple[np.ndarray, types.OptimStepResponse]:
    """Take one step, await it, and return the logprobs before it and the answer to the update."""
    passes = probe.submit_gradients(experiment)
    probe.logprobs = read_logprobs([one.result() for one in passes])
    return probe.logprobs, probe.adapter.optim_step(descent_step(rate)).result()
