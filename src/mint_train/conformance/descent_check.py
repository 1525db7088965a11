"""The check that descending a loss improves what the loss itself measures: a sign can be wrong."""

from __future__ import annotations

from collections.abc import Set

from mint_train.conformance.material import Material, require_that

SPREADS = (0.3, 1.0, 3.0, 10.0) * 3
STEP = 1e-3
"""Of the largest gradient, in nats."""
NOTICEABLE = 1e-9


def descent_improves_metrics(material: Material) -> str:
    """Check that no metric gets worse whenever the logprobs go a small step down the loss.

    A loss may well worsen a metric at some logprobs. A metric fails that never improves and gets worse at
    half of them or more, as the margin does where chosen and rejected are mixed up.
    """
    better = {name: metric.better for name, metric in material.loss.metrics.items() if metric.better}
    improved, worsened = dict.fromkeys(better, 0), dict.fromkeys(better, 0)
    for seed, spread in enumerate(SPREADS):
        for name, growth in growths(material, better.keys(), spread, seed).items():
            gain = growth if better[name] == "higher" else -growth
            improved[name] += gain > NOTICEABLE
            worsened[name] += gain < -NOTICEABLE
    for name, times in worsened.items():
        require_that(
            bool(improved[name]) or 2 * times < len(SPREADS),
            f'"{name}" is called better when {better[name]}, and a small step down the loss made it worse at '
            f"{times} of {len(SPREADS)} sets of logprobs: a sign is wrong, or chosen and rejected are mixed "
            "up; if it is meant so, describe the metric in the hook metrics",
        )
    return ", ".join(name for name, times in improved.items() if times) or "none moves with the loss"


def growths(material: Material, names: Set[str], spread: float, seed: int) -> dict[str, float]:
    """Return by how much each of some metrics grows with a small step down the loss, by its name."""
    batch, logprobs = material.batch(), material.logprobs(spread, seed)
    _, before = material.evaluate(batch, logprobs)
    gradients = material.gradients(batch, logprobs)
    largest = max(float(gradient.abs().max()) for gradient in gradients)
    if not largest:
        return {}
    moved = [
        (each.detach() - STEP / largest * gradient).requires_grad_()
        for each, gradient in zip(logprobs, gradients, strict=True)
    ]
    _, after = material.evaluate(batch, moved)
    computed = names & before.keys() & after.keys()
    return {name: float(after[name]) - float(before[name]) for name in computed}
