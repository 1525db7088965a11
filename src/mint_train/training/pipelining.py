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
CLEARLY_FASTER = 0.9
"""Awaiting each step must take less than this share of the time per step of running ahead."""


@dataclass
class Pipelining:
    """Whether a step is submitted before the previous one is known to be done: whichever is faster.

    Running ahead wins when the network is slow, or the service computes for a long time. But a service may
    poll for finished work at intervals that grow from the moment it is asked, as SkyRL does: nearby, asking
    later then brings the response sooner. So a run measures both modes, and switches whenever the current
    one becomes slower than the other one was. Losses and gradients are the same in both.
    """

    ahead: bool = True
    seconds: list[float] = field(default_factory=list)
    """Of each step in the current window."""
    known: dict[bool, float] = field(default_factory=dict)
    """Seconds per step when a mode was last measured; the key says whether it runs ahead."""

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
            self.ahead = len(self.known) == 2 and self.known[False] > CLEARLY_FASTER * self.known[True]
