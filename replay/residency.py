"""Resident guest memory over the time of one replay: what its counters say in the end."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tracekit.replay.pages import CLOCK_BIN_SHIFT, HOLD_BITS, World

__all__ = ["Residency"]


@dataclass(frozen=True)
class Residency:
    """Resident pages over time. That of a replay with nothing on is the baseline's.

    `pages`: at the end. `changes[bin]`: in each span of 2^`bin_shift` ns; `gains[bin]`: of these, what came.
    `weighted`: the sum of change * t over all changes, page·ns.
    """

    pages: int
    changes: NDArray[np.int64]
    gains: NDArray[np.int64]
    bin_shift: int
    weighted: int

    @classmethod
    def of(cls, world: World) -> Residency:
        """Read the counters of a replay."""
        weighted = (int(world.hold[0]) << HOLD_BITS) + int(world.hold[1])
        shift = int(world.clock[CLOCK_BIN_SHIFT])
        return cls(int(world.resident[0]), world.curve.copy(), world.gains.copy(), shift, weighted)

    def page_ns(self, horizon_ns: int) -> float:
        """Return pages times the time that they were resident, up to `horizon_ns` (page·ns)."""
        return float(self.pages * horizon_ns - self.weighted)

    def peak(self) -> int:
        """Return the most pages that were resident at the end of a bin."""
        return max(int(self.changes.cumsum().max()), 0)

    def same_as(self, other: Residency) -> bool:
        """Say whether nothing here tells the two apart."""
        numbers = (self.pages, self.weighted) == (other.pages, other.weighted)
        looks = np.array_equal(self.changes, other.changes) and np.array_equal(self.gains, other.gains)
        return numbers and looks

    def most(self) -> int:
        """Return what can't have been exceeded at any moment: all in a bin may have come before any went."""
        return max(int((self.changes.cumsum() - self.changes + self.gains).max()), 0)
