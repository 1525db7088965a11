"""How many steps a run takes, and how many groups each trains on."""

from __future__ import annotations

from mint_train.settings.merge import check_warmup
from mint_train.settings.model import DEFAULT_STEPS, Settings


def steps_per_epoch(groups: int, batch_size: int) -> int:
    """Count the steps of one pass; the last one may be smaller, and nothing is dropped."""
    return -(-groups // batch_size)


def count_steps(settings: Settings, groups: int) -> int:
    """Return the steps of the run: as asked for, else one epoch of the user's data, else the default.

    Raises:
        OptionError: the warm-up is longer than that.
    """
    if settings.steps is not None:
        return settings.steps
    if settings.epochs is None and not settings.data:
        steps = DEFAULT_STEPS
    else:
        steps = (settings.epochs or 1) * steps_per_epoch(groups, groups_per_step(settings))
    check_warmup(settings, steps)
    return steps


def is_due(step: int, last: int, every: int | None) -> bool:
    """Return whether something is done after a step (0: before the first), of a run with a last one.

    That is before the first step, after the last one, and, unless `every` is None, every `every` steps.
    """
    return step in (0, last) or (every is not None and step % every == 0)


def times_due(step: int, last: int, every: int | None) -> int:
    """Count the times that something is due after a step from the first to `step`, as `is_due` has it."""
    regularly = 0 if every is None else step // every
    return regularly + (0 < step == last and (every is None or last % every != 0))


def groups_per_step(settings: Settings) -> int:
    """Return how many groups a step trains on at most."""
    return settings.batch_size * settings.accumulate
