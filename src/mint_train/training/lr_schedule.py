"""The optimiser's parameters by step, the learning rate among them."""

from __future__ import annotations

import math
from typing import Literal

from mint_train.sdk import types
from mint_train.settings.model import Settings

Shape = Literal["constant", "linear", "cosine"]


def learning_rate(step: int, steps: int, peak: float, shape: Shape, warmup_steps: int) -> float:
    """Return the learning rate of a step.

    It rises linearly over the warm-up steps and reaches the peak one step after them; then it stays there
    (constant), or falls to 0 one step after the last, linearly or along half a cosine.

    Args:
        step: counted from 1.
        steps: all steps of the run.
        peak: the highest learning rate.
        shape: what follows the warm-up.
        warmup_steps: steps before the peak.
    """
    done = step - 1
    if done < warmup_steps:
        return peak * (done + 1) / (warmup_steps + 1)
    progress = (done - warmup_steps) / max(1, steps - warmup_steps)
    if shape == "linear":
        return peak * (1 - progress)
    if shape == "cosine":
        return peak * (1 + math.cos(math.pi * progress)) / 2
    return peak


def adam_params(settings: Settings, steps: int, step: int) -> types.AdamParams:
    """Return the optimiser's parameters for one of the run's steps."""
    return types.AdamParams(
        learning_rate=learning_rate(step, steps, settings.lr, settings.schedule, settings.warmup_steps),
        beta1=settings.adam_beta1,
        beta2=settings.adam_beta2,
        eps=settings.adam_eps,
        weight_decay=settings.weight_decay,
        grad_clip_norm=settings.grad_clip,
    )
