"""How far a run on a service goes ahead of the answers that it waits for."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import fmean

STEPS_PER_LOOK = 8
"""Steps between two looks at which form is faster."""
UNSETTLED_STEPS = 2
"""The first of them, which still hold some of the waiting of the form before."""
SLOWEST = 2
"""Steps of the others that do not count, since a state was saved in them, say."""
CLEARLY_FASTER = 0.9
"""The share of the other form's time per step below which awaiting each step is worth it."""


@dataclass
class Pipelining:
    """Whether a step is sent before the one before it is known to be done: what is faster on this service.

    To go ahead is better over a long way, and where a service computes for long. But a service may look for
    what is done at intervals that grow from when it is asked, as SkyRL does: near by, asking late then brings
    the answer sooner. So a run tries both forms, and changes whenever the one that it has becomes slower than
    the other one was. Losses and gradients are the same in both.
    """

    ahead: bool = True
    seconds: list[float] = field(default_factory=list)
    """Of each step since the last look."""
    known: dict[bool, float] = field(default_factory=dict)
    """By whether it goes ahead, the seconds per step of a form when it was last seen."""

    @property
    def most_in_flight(self) -> int:
        """Steps that may be on their way when the next one is submitted; 0 where each is awaited."""
        return int(self.ahead)

    def note(self, seconds: float) -> None:
        """Take the time of a finished step into account."""
        self.seconds.append(seconds)
        if len(self.seconds) == STEPS_PER_LOOK:
            self.known[self.ahead] = fmean(sorted(self.seconds[UNSETTLED_STEPS:])[:-SLOWEST])
            self.seconds.clear()
            self.ahead = len(self.known) == 2 and self.known[False] > CLEARLY_FASTER * self.known[True]
