"""One look over a whole trace before any replay: what it holds, and its recorded totals.

The totals are summed here without any page state: the baseline replay must reproduce them exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tracekit.replay import events as ev
from tracekit.replay.engine import fault_classes
from tracekit.replay.timeline import Timeline

__all__ = ["Survey", "survey"]


@dataclass(frozen=True)
class Survey:
    """What a trace holds. Arrays by fault class: faults, those with a latency, and the sum of these (ns)."""

    counts: NDArray[np.int64]
    faults: NDArray[np.int64]
    measured: NDArray[np.int64]
    latency_ns: NDArray[np.int64]
    writes: int
    access_known: int
    outside_rows: int

    @property
    def guest_events(self) -> bool:
        """Whether the guest side was recorded: its allocations and frees."""
        return bool(self.counts[ev.ALLOC])

    def mean_ns(self, cls: int) -> float | None:
        """Return the mean recorded latency of a class of faults; None without any."""
        return float(self.latency_ns[cls]) / int(self.measured[cls]) if self.measured[cls] else None


def survey(timeline: Timeline) -> Survey:
    """Read the whole trace once; the timeline then knows its pages, lanes and bounds."""
    faults = np.zeros(ev.CLASSES, np.int64)
    measured = np.zeros(ev.CLASSES, np.int64)
    total = np.zeros(ev.CLASSES, np.int64)
    writes = known = 0
    for c in timeline:
        is_fault = (c.op == ev.FAULT) & (c.bits & ev.CONTINUED == 0)
        bits, latency = c.bits[is_fault], c.latency[is_fault]
        cls = fault_classes(bits, c.level[is_fault])
        has = bits & ev.MEASURED != 0
        faults += np.bincount(cls, minlength=ev.CLASSES)
        measured += np.bincount(cls[has], minlength=ev.CLASSES)
        for one in np.unique(cls[has]):
            total[one] += int(latency[has & (cls == one)].sum())
        writes += int(np.count_nonzero(bits & ev.WRITE))
        known += int(np.count_nonzero(bits & 7))
    return Survey(
        counts=timeline.seen,
        faults=faults,
        measured=measured,
        latency_ns=total,
        writes=writes,
        access_known=known,
        outside_rows=timeline.outside_rows,
    )
