"""How completions are drawn, and the numbers that each command takes where none is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf
from numbers import Integral, Real
from typing import Any

from mint_train.errors import OptionError
from mint_train.settings.fields import MOST


@dataclass(frozen=True, slots=True)
class Sampling:
    """How completions are drawn."""

    samples: int = 1
    """Completions per prompt."""
    max_tokens: int = 64
    """Maximum tokens of a completion."""
    temperature: float = 0.7
    """0 takes the most likely token each time."""
    seed: int = 0
    stop: tuple[int, ...] = ()
    """Tokens that end a completion, beside the end-of-sequence token."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            OptionError: one of them is not a number, too small or too large.
        """
        for name, least in (("samples", 1), ("max_tokens", 1), ("temperature", 0), ("seed", 0)):
            value, whole = getattr(self, name), name != "temperature"
            is_number = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
            if not is_number or not least <= value < inf or (least and value > MOST):  # nor is NaN
                needed = f"a {'whole ' * whole}number, {least} or more" + f", at most {MOST}" * (least > 0)
                raise OptionError(f"--{name.replace('_', '-')} {value}: it must be {needed}")

    def with_given(self, given: Mapping[str, Any]) -> Sampling:
        """Return it with those of its numbers that are among some options.

        Raises:
            OptionError: one of them is not a number, too small or too large.
        """
        return replace(self, **{name: given[name] for name in DRAWN if name in given})


DRAWN = ("samples", "max_tokens", "temperature", "seed")
"""Those parts of `Sampling` that are options."""
SHOWN = Sampling()
"""Of `sample`: short completions to read."""
JUDGED = Sampling(samples=8, max_tokens=256, temperature=1.0)
"""Of `pairs` and of rounds: completions of a prompt that differ, for a judge to score."""
COMPARED = replace(JUDGED, samples=1)
"""Of `winrate`: a completion of each policy."""
