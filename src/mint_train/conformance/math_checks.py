"""Checks of a loss's mathematics on random and on extreme logprobs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import copy
from dataclasses import replace
from typing import Any

import torch

from mint_train.conformance.material import (
    Logprobs,
    Material,
    make_generator,
    require_that,
    shuffled,
)
from mint_train.losses.guard import check_scalar
from mint_train.losses.loss import Loss
from mint_train.losses.term import Term
from mint_train.run_folder.metric import Metric

SPREADS = (0.3, 1.0, 3.0, 10.0, 30.0)
MARGIN = 1e4
STEPS = (1e-5, 1e-7)
TOLERANCE = 1e-6
SAMPLED_TOKENS = 24


def gradient_reaches_all(material: Material) -> str:
    """Check that each trained logprob moves the loss in one of several random batches; others never."""
    batch = material.batch()
    reached = [torch.zeros_like(trained) for trained in material.trained]
    for seed, spread in enumerate(SPREADS * 5):
        logprobs = material.logprobs(spread, seed)
        check_scalar(material.loss.name, material.evaluate(batch, logprobs)[0])
        for found, gradient in zip(reached, material.gradients(batch, logprobs), strict=True):
            found |= gradient != 0
    for number, (found, trained) in enumerate(zip(reached, material.trained, strict=True)):
        missed, stray = int((trained & ~found).sum()), int((found & ~trained).sum())
        where = material.describe_datum(number)
        require_that(missed == 0, f"{missed} trained logprobs of {where} never get a gradient")
        require_that(
            stray == 0, f"{stray} logprobs of {where} get a gradient, though they are not to be trained"
        )
    return f"{sum(int(trained.sum()) for trained in material.trained)} logprobs"


def gradient_matches_differences(material: Material) -> str:
    """Check the gradient against central differences in float64, in random directions and token by token."""
    if material.has_trait("STOPS_GRADIENT"):
        return "not compared: the loss says that it holds a part of itself constant (STOPS_GRADIENT)"
    batch, logprobs = material.batch(), material.logprobs()
    gradients = material.gradients(batch, logprobs)
    scale = max(float(gradient.abs().max()) for gradient in gradients)
    worst = 0.0
    for direction in directions(material):
        exact = sum(float((own * along).sum()) for own, along in zip(gradients, direction, strict=True))
        # a loss may jump or kink within the first step (a hinge, a rank), but hardly within the second too
        for step in STEPS:
            measured = central_difference(material, logprobs, direction, step)
            error = abs(exact - measured) / max(1.0, scale, abs(exact))
            if error <= TOLERANCE:
                break
        worst = max(worst, error)
        require_that(
            error <= TOLERANCE,
            f"the gradient gives {exact:.9g} where differences give {measured:.9g}{about_state(material)}",
        )
    worst = max(worst, vocabulary_gradient_error(material))
    return f"worst error {worst:.1e}"


def vocabulary_gradient_error(material: Material) -> float:
    """Check the gradient by each quantity over the vocabulary against differences; return the worst error."""
    batch, logprobs = material.batch(), material.logprobs()
    vocabulary = material.vocabulary(batch)
    worst = 0.0
    for name, values in vocabulary.items():
        value, _ = material.loss.evaluate(batch, logprobs, {}, vocabulary)
        found = torch.autograd.grad(value, values, allow_unused=True)[0]
        along = torch.randn(len(values), generator=make_generator(), dtype=torch.float64)
        along = along * (batch.weights != 0)
        exact = 0.0 if found is None else float((found * along).sum())
        moved = [vocabulary | {name: values.detach() + sign * STEPS[0] * along} for sign in (1, -1)]
        up, down = (float(material.loss.evaluate(batch, logprobs, {}, one)[0].detach()) for one in moved)
        measured = (up - down) / (2 * STEPS[0])
        error = abs(exact - measured) / max(1.0, abs(exact))
        problem = f"the gradient by {name} gives {exact:.9g} where differences give {measured:.9g}"
        require_that(error <= TOLERANCE, problem)
        worst = max(worst, error)
    return worst


def about_state(material: Material) -> str:
    """Say what may be the matter where a loss keeps state, or nothing."""
    state: dict[str, float] = {}
    batch = material.batch()
    material.loss.evaluate(batch, material.logprobs(), state, material.vocabulary(batch))
    if not state:
        return ""
    return (
        f"; it keeps {', '.join(state)} as state: if that moves with the batch, without gradient, say so "
        'with traits={"STOPS_GRADIENT": True}'
    )


def directions(material: Material) -> Iterator[Logprobs]:
    """Yield random directions over all trained tokens, then some single tokens."""
    generator = make_generator()
    for _ in range(4):
        yield [
            torch.randn(len(trained), generator=generator, dtype=torch.float64) * trained
            for trained in material.trained
        ]
    positions = [
        (number, int(token))
        for number, trained in enumerate(material.trained)
        for token in trained.nonzero().flatten()
    ]
    for chosen in torch.randperm(len(positions), generator=generator)[:SAMPLED_TOKENS].tolist():
        direction = [torch.zeros(len(trained), dtype=torch.float64) for trained in material.trained]
        direction[positions[chosen][0]][positions[chosen][1]] = 1.0
        yield direction


def central_difference(material: Material, logprobs: Logprobs, direction: Logprobs, step: float) -> float:
    """Measure the slope of the loss along a direction."""
    values = []
    for sign in (1, -1):
        moved = [
            (own.detach() + sign * step * along).requires_grad_()
            for own, along in zip(logprobs, direction, strict=True)
        ]
        values.append(float(material.evaluate(material.batch(), moved)[0].detach()))
    return (values[0] - values[1]) / (2 * step)


def weightless_logprobs_do_not_matter(material: Material) -> str:
    """Check that other logprobs where the weight is 0.0 leave the loss and its metrics as they are."""
    logprobs = material.logprobs()
    other = [
        torch.where(torch.from_numpy(weights != 0), own.detach(), -77.0).requires_grad_()
        for own, weights in zip(
            logprobs, [weights for group in material.groups for weights in group.weights], strict=True
        )
    ]
    compare(material, logprobs, other, "other logprobs where the weight is 0.0 change")
    batch = material.batch()
    untrained = batch.weights == 0
    for name, values in material.vocabulary(batch).items():
        found = []
        for one in (values, torch.where(untrained, -77.0, values.detach())):
            given = material.vocabulary(batch) | {name: one}
            found.append(material.loss.evaluate(batch, logprobs, {}, given))
        (value, metrics), (changed, others) = found
        what = f"another {name} where the weight is 0.0 changes"
        same_results(value, changed, dict(metrics), dict(others), what)
    return "set to -77"


def compare(material: Material, one: Logprobs, two: Logprobs, what: str) -> None:
    """Fail unless loss and metrics are the same for two sets of logprobs of the batch."""
    first, second = (material.evaluate(material.batch(), logprobs) for logprobs in (one, two))
    same_results(first[0], second[0], dict(first[1]), dict(second[1]), what)


def same_results(
    one: torch.Tensor, two: torch.Tensor, metrics: dict[str, float], others: dict[str, float], what: str
) -> None:
    """Fail unless two results are equal up to rounding."""
    pairs = {"loss": (float(one.detach()), float(two.detach()))}
    require_that(metrics.keys() == others.keys(), f"{what} which metrics there are")
    pairs |= {f'metric "{name}"': (float(metrics[name]), float(others[name])) for name in metrics}
    for name, (before, after) in pairs.items():
        require_that(
            math.isclose(before, after, rel_tol=1e-5, abs_tol=1e-7),
            f"{what} the {name}: {before:.9g} becomes {after:.9g}",
        )


def order_of_groups_does_not_matter(material: Material) -> str:
    """Check that the same groups in another order give the same loss and metrics."""
    if material.has_trait("ORDER_MATTERS"):
        return "not compared: the loss says that order matters to it (ORDER_MATTERS)"
    order = shuffled(len(material.groups))
    per_group = material.logprobs_by_group()
    logprobs = [logprob for own in per_group for logprob in own]
    moved = [logprob for index in order for logprob in per_group[index]]
    value, metrics = material.evaluate(material.batch(), logprobs)
    other, others = material.evaluate(material.batch([material.groups[index] for index in order]), moved)
    same_results(value, other, dict(metrics), dict(others), "another order of groups changes")
    return f"{len(order)} groups shuffled"


def float32_stays_finite(material: Material) -> str:
    """Check that all is finite in float32 with sums of logprobs 1e4 apart, either way."""
    count = 0
    for what, logprobs, reference in extremes(material):
        groups = material.groups
        if reference is not None:
            groups = [
                replace(group, reference_logprobs=own) for group, own in zip(groups, reference, strict=True)
            ]
        batch = material.batch(groups, torch.float32)
        own = [logprob.float().detach().requires_grad_() for logprob in logprobs]
        value, metrics = material.evaluate(batch, own)
        require_that(bool(torch.isfinite(value)), f"the loss is {float(value.detach())} with {what}")
        gradients = torch.autograd.grad(value, own, allow_unused=True)
        finite = all(bool(torch.isfinite(found).all()) for found in gradients if found is not None)
        require_that(finite, f"the gradient is not finite with {what}")
        for name, metric in metrics.items():
            require_that(math.isfinite(float(metric)), f'the metric "{name}" is {float(metric)} with {what}')
        count += 1
    return f"{count} extreme batches"


def extremes(material: Material) -> Iterator[tuple[str, Logprobs, list[tuple[torch.Tensor, ...]] | None]]:
    """Yield batches where one datum of each group lies 1e4 below the others, and one where all are equal."""
    yield "all logprobs equal", flat_logprobs(material, None), None
    for position in range(max(len(group.datums) for group in material.groups)):
        yield f"datum {position} of each group at -1e4", flat_logprobs(material, position), None
        if material.loss.reference is not None:
            low = flat_logprobs(material, position)
            per_group: list[tuple[torch.Tensor, ...]] = []
            start = 0
            for group in material.groups:
                per_group.append(tuple(low[start : start + len(group.datums)]))
                start += len(group.datums)
            yield f"the reference of datum {position} at -1e4", flat_logprobs(material, None), per_group


def flat_logprobs(material: Material, low: int | None) -> Logprobs:
    """Give every token the logprob -0.5, and the datums at one position a sum of -1e4."""
    logprobs = []
    for group in material.groups:
        for position, weights in enumerate(group.weights):
            flat = torch.full((len(weights),), -0.5, dtype=torch.float64)
            if position == low:
                trained = torch.from_numpy(weights != 0)
                flat[trained] = -MARGIN / int(trained.sum())
            logprobs.append(flat)
    return logprobs


def metrics_are_plain(material: Material) -> str:
    """Check that metrics and state are finite Python numbers, under names that the run does not take."""
    state: dict[str, float] = {}
    batch = material.batch()
    _, metrics = material.loss.evaluate(batch, material.logprobs(), state, material.vocabulary(batch))
    for kind, values in (("metric", metrics), ("state", state)):
        for name, value in values.items():
            require_that(isinstance(name, str) and bool(name), f"the {kind} name {name!r} is not text")
            # the run converts a metric that is a detached scalar tensor; a checkpoint holds no tensor
            plain = isinstance(value, int | float) or (kind == "metric" and is_detached_scalar(value))
            require_that(plain, f'the {kind} "{name}" is a {type(value).__name__}; make it a float')
            require_that(math.isfinite(value), f'the {kind} "{name}" is {value}')
    return ", ".join(metrics) or "none"


def is_detached_scalar(value: object) -> bool:
    """Return whether the value is a detached 0-d tensor."""
    return isinstance(value, torch.Tensor) and value.dim() == 0 and not value.requires_grad


def described_metrics_are_computed(material: Material) -> str:
    """Check that each metric that the loss itself describes is computed, and that its format fits."""
    computed = metrics_either_way(material)
    described = {name: metric for term in material.loss.terms for name, metric in own_metrics(term).items()}
    for name, metric in described.items():
        known = ", ".join(computed) or "none"
        require_that(name in computed, f'"{name}" is described, but the metrics are {known}')
        try:
            format(float(computed[name]), metric.format)
        except ValueError as error:
            require_that(False, f'the format "{metric.format}" of "{name}": {error}')
    return ", ".join(described) or "it describes none of its own"


def own_metrics(term: Term) -> dict[str, Metric]:
    """Return the metrics described by the plugin that computes the loss, and by those that extend it."""
    computing = term.depth("compute_loss")
    found: dict[str, Metric] = {}
    described: Any
    for implementation in term.hook.metrics.get_hookimpls():
        if any(link.plugin is implementation.plugin for link in term.chain[computing:]):
            described = implementation.function()
            found |= described
    return found


def metrics_either_way(material: Material) -> dict[str, float]:
    """Collect the metrics as the options have it, and those that come with a reference."""
    _, metrics = material.evaluate(material.batch(), material.logprobs())
    if material.loss.reference is not None:
        return dict(metrics)
    referred = Material(with_reference(material.loss), material.given_rows, material.tokenizer)
    _, others = referred.evaluate(referred.batch(), referred.logprobs())
    return {**others, **metrics}


def with_reference(loss: Loss) -> Loss:
    """Copy a loss with the option `reference=initial`, where it has that option."""
    terms = [copy(term) for term in loss.terms]
    for term in terms:
        if "reference" in term.options_model.model_fields:
            term.options = term.options.model_copy(update={"reference": "initial"})
    return Loss(terms, loss.name)


def evaluation_changes_nothing(material: Material) -> str:
    """Check that the same batch gives the same result twice, and its logprobs stay as they were."""
    logprobs = material.logprobs()
    before = [logprob.detach().clone() for logprob in logprobs]
    compare(material, logprobs, logprobs, "a second evaluation changes")
    for old, new in zip(before, logprobs, strict=True):
        require_that(torch.equal(old, new.detach()), "the loss writes into the logprobs that it is given")
    return "evaluated twice"
