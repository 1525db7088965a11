"""Checks of the rows' weights: a row of weight 2 counts as two equal rows, and one of weight 0 as none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from mint_train.batches.groups import Group
from mint_train.conformance.material import Logprobs, Material, gradients_or_zeros, require_that
from mint_train.errors import LossError

TOLERANCE = 1e-7
FEWEST_ROWS = 3


def weights_count_as_rows(material: Material) -> str:
    """Check that a row at weight 2 trains as the row given twice, and one at weight 0 as no row."""
    if material.has_trait("ORDER_MATTERS"):
        return "not tried: the loss says that order matters to it (ORDER_MATTERS)"
    groups, logprobs = material.groups, material.logprobs_by_group()
    if len(groups) < FEWEST_ROWS:
        return "not tried: it takes three rows"
    for index in (0, len(groups) - 1):
        for weight, twice in ((2.0, [index, index]), (0.0, [])):
            rows = [*range(index), *twice, *range(index + 1, len(groups))]
            value, by_row = evaluated(material, [groups[n] for n in rows], [logprobs[n] for n in rows])
            weighed = [*groups[:index], replace(groups[index], weight=weight), *groups[index + 1 :]]
            other, gradients = evaluated(material, weighed, logprobs)
            what = f"with {groups[index].source} at weight {weight:g}, not {len(twice)} times,"
            require_that(
                math.isclose(value, other, rel_tol=TOLERANCE, abs_tol=TOLERANCE),
                f"{what} the loss is {other:.9g} instead of {value:.9g}; average with batch.mean",
            )
            expected = [torch.zeros_like(gradient) for gradient in gradients]
            for n, gradient in zip(rows, by_row, strict=True):
                expected[n] += gradient
            same = all(
                torch.allclose(one, two, rtol=TOLERANCE, atol=TOLERANCE)
                for one, two in zip(gradients, expected, strict=True)
            )
            require_that(same, f"{what} the gradient is another; average with batch.mean")
    return "weights of 2 and 0"


def evaluated(
    material: Material, groups: Sequence[Group], logprobs: Sequence[Logprobs]
) -> tuple[float, list[torch.Tensor]]:
    """Return the loss of some groups, and its gradient by the logprobs of each group, packed."""
    own = [[logprob.detach().clone().requires_grad_() for logprob in of_group] for of_group in logprobs]
    flat = [logprob for of_group in own for logprob in of_group]
    try:
        value, _ = material.evaluate(material.batch(groups), flat)
    except LossError as error:
        require_that(False, str(error))
    parts = iter(gradients_or_zeros(value, flat))
    return float(value.detach()), [torch.cat([next(parts) for _ in of_group]) for of_group in own]
