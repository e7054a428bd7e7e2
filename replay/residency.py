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

    def page_ns(self, horizon_ns: int) -> tuple[float, float]:
        """Return pages times the time they were resident up to `horizon_ns` (page·ns), and how unsure it is.

        What changed in bins after that does not count: work in flight at the end. When in its bin it was is
        not known.
        """
        held = float(self.pages * horizon_ns - self.weighted)
        later = slice(self._bins(horizon_ns), None)
        if not self.gains[later].any() and not self.changes[later].any():
            return held, 0.0
        middle = (np.arange(len(self.changes))[later] + 0.5) * 2.0**self.bin_shift
        both = 2 * self.gains[later] - self.changes[later]  # what came, and what went
        unsure = float(both.sum()) * 2.0 ** (self.bin_shift - 1)
        return held + float((self.changes[later] * (middle - horizon_ns)).sum()), unsure

    def peak(self, horizon_ns: int) -> int:
        """Return the most pages that were resident at the end of a bin, up to `horizon_ns`."""
        return max(int(self.changes[: self._bins(horizon_ns)].cumsum().max()), 0)

    def same_as(self, other: Residency) -> bool:
        """Say whether nothing here tells the two apart."""
        numbers = (self.pages, self.weighted) == (other.pages, other.weighted)
        looks = np.array_equal(self.changes, other.changes) and np.array_equal(self.gains, other.gains)
        return numbers and looks

    def most(self, horizon_ns: int) -> int:
        """Return what can't have been exceeded at any moment: all in a bin may have come before any went."""
        some = slice(self._bins(horizon_ns))
        return max(int((self.changes[some].cumsum() - self.changes[some] + self.gains[some]).max()), 0)

    def _bins(self, horizon_ns: int) -> int:
        """Return how many bins begin before a time or at it."""
        return min(horizon_ns >> self.bin_shift, len(self.changes) - 1) + 1
