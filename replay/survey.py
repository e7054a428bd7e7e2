"""One look over a whole trace before any replay: what it holds, and its recorded totals.

The totals are summed here without any page state: the baseline replay must reproduce them exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tracekit.replay import events as ev
from tracekit.replay.accounts import HISTOGRAM_CELLS, histogram_cells
from tracekit.replay.engine import fault_classes
from tracekit.replay.timeline import Timeline

__all__ = ["Survey", "survey"]


@dataclass(frozen=True)
class Survey:
    """What a trace holds. Arrays by fault class: faults, those with a latency, and the sum of these (ns).

    `histogram`: recorded latencies by cell of `accounts.histogram_cells`. By lane: time of the last event,
    faults, and the sum of recorded latencies (ns).
    """

    counts: NDArray[np.int64]
    faults: NDArray[np.int64]
    measured: NDArray[np.int64]
    latency_ns: NDArray[np.int64]
    histogram: NDArray[np.int64]
    last_ns: NDArray[np.int64]
    lane_faults: NDArray[np.int64]
    lane_ns: NDArray[np.int64]
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
    histogram = np.zeros(HISTOGRAM_CELLS, np.int64)
    last = lane_faults = lane_ns = np.zeros(0, np.int64)
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
        histogram += np.bincount(histogram_cells(latency[has]), minlength=len(histogram))
        lanes = len(timeline.lanes.vm)
        last, lane_faults, lane_ns = (_longer(a, lanes) for a in (last, lane_faults, lane_ns))
        last[c.lane] = c.t  # in time order: the last one stays
        lane_faults += np.bincount(c.lane[is_fault], minlength=lanes)
        np.add.at(lane_ns, c.lane[is_fault][has], latency[has])
        writes += int(np.count_nonzero(bits & ev.WRITE))
        known += int(np.count_nonzero(bits & 7))
    return Survey(
        counts=timeline.seen,
        faults=faults,
        measured=measured,
        latency_ns=total,
        histogram=histogram,
        last_ns=_longer(last, len(timeline.lanes.vm)),
        lane_faults=_longer(lane_faults, len(timeline.lanes.vm)),
        lane_ns=_longer(lane_ns, len(timeline.lanes.vm)),
        writes=writes,
        access_known=known,
        outside_rows=timeline.outside_rows,
    )


def _longer(values: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    return np.concatenate([values, np.zeros(n - len(values), np.int64)])
