"""How far a run on a service submits ahead of the responses that it awaits."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import fmean

STEPS_PER_LOOK = 8
"""Steps per measurement window."""
UNSETTLED_STEPS = 2
"""Leading steps of a window to discard: they include waits from the previous mode."""
SLOWEST = 2
"""The slowest of the other steps, also discarded: they may include a checkpoint."""
LOOKS_BEFORE_CHANGE = 3
"""Windows in the mode that the network suggests, before the other one is measured for one window."""
NEAR_SECONDS = 0.1
"""A round trip up to which a run begins by awaiting each step."""
CLEARLY_FASTER = 0.9
"""Awaiting each step must take less than this share of the time per step of running ahead."""


@dataclass
class Pipelining:
    """Whether a step is submitted before the previous one is known to be done: whichever is faster.

    Running ahead wins when the network is slow, or the service computes for a long time. But a service may
    poll for finished work at intervals that grow from the moment it is asked, as SkyRL does: nearby, asking
    later then brings the response sooner. So the round trip decides how a run begins, which is all that a
    short run needs. A longer one measures the other mode too, and from then on switches whenever the current
    one becomes slower than the other one was. Losses and gradients are the same in both.
    """

    ahead: bool = True
    seconds: list[float] = field(default_factory=list)
    """Of each step in the current window."""
    looks: int = 0
    """Finished windows."""
    known: dict[bool, float] = field(default_factory=dict)
    """Seconds per step when a mode was last measured; the key says whether it runs ahead."""

    @classmethod
    def beginning(cls, round_trip: float) -> Pipelining:
        """Return the mode of the first steps.

        Args:
            round_trip: seconds of the fastest request so far.
        """
        return cls(ahead=round_trip > NEAR_SECONDS)

    @property
    def most_in_flight(self) -> int:
        """Steps that may be in flight when the next one is submitted; 0 if each is awaited."""
        return int(self.ahead)

    def note(self, seconds: float) -> None:
        """Account for the time of a finished step."""
        self.seconds.append(seconds)
        if len(self.seconds) == STEPS_PER_LOOK:
            self.known[self.ahead] = fmean(sorted(self.seconds[UNSETTLED_STEPS:])[:-SLOWEST])
            self.seconds.clear()
            self.looks += 1
            if len(self.known) == 2:
                self.ahead = self.known[False] > CLEARLY_FASTER * self.known[True]
            elif self.looks == LOOKS_BEFORE_CHANGE:
                self.ahead = not self.ahead
