"""One look over a whole trace before any replay: what it holds, and its recorded totals.

The totals are summed here without any page state: the baseline replay must reproduce them exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tracekit.replay import events as ev
from tracekit.replay.accounts import HISTOGRAM_CELLS, histogram_cell
from tracekit.replay.events import Columns
from tracekit.replay.jit import compiled, int64
from tracekit.replay.quantiles import quantile
from tracekit.replay.reduction import PLAIN_ROWS
from tracekit.replay.timeline import Timeline

__all__ = ["Survey", "survey"]

FIRST_SAMPLE_NS = 2_000_000_000  # samples come once a second: a first one later than this says nothing
ATTACHED = ("pids", "whole_guest_but_the_recorder")
"""Keys of a trace's `filters` that say: it was recorded of something that ran already."""


@dataclass(frozen=True)
class Survey:
    """What a trace holds. Arrays by fault class: faults, those with a latency, and the sum of these (ns).

    `histograms[class]`: recorded latencies by cell of `accounts.histogram_cells`. By lane: `last_ns`, the
    time of its last event; `lane_ns`, the sum of its latencies; `lane_faults[lane, class]`, and
    `lane_measured` of these. `earlier_bytes`: guest memory that may have been backed before the recording
    began (0 = it saw the VM start; inf = nothing bounds it). `assumed_slots`: some memslots were guessed, so
    a gfn may name another page than the guest's. `inside_vmm`: the VMM runs the guest's code itself (QEMU's
    TCG), so the guest's faults are its threads' own, and nothing exits.
    """

    counts: NDArray[np.int64]
    faults: NDArray[np.int64]
    measured: NDArray[np.int64]
    latency_ns: NDArray[np.int64]
    histograms: NDArray[np.int64]
    last_ns: NDArray[np.int64]
    lane_ns: NDArray[np.int64]
    lane_faults: NDArray[np.int64]
    lane_measured: NDArray[np.int64]
    writes: int
    access_known: int
    outside_rows: int
    earlier_bytes: float
    assumed_slots: bool
    inside_vmm: bool

    @property
    def guest_events(self) -> bool:
        """Whether the guest side was recorded: its allocations and frees."""
        return bool(self.counts[ev.ALLOC])

    @property
    def large_pages(self) -> bool:
        """Whether most memory that the faults mapped came as large pages."""
        pages = self.faults.reshape(-1, ev.LEVELS).sum(axis=0) * np.array([1, 1, 512, 1 << 18])
        return bool(pages[2:].sum() > pages[:2].sum())

    @property
    def histogram(self) -> NDArray[np.int64]:
        """Recorded latencies of all classes by cell."""
        return np.asarray(self.histograms.sum(axis=0), np.int64)

    def quartiles_ns(self, cls: int) -> tuple[float, float]:
        """Return the quartiles of the latencies of a class (outer edges of their cells; 0, 0 without any)."""
        cells = self.histograms[cls]
        return quantile(cells, 0.25)[0], quantile(cells, 0.75)[1]

    def mean_ns(self, cls: int) -> float | None:
        """Return the mean recorded latency of a class of faults; None without any."""
        return float(self.latency_ns[cls]) / int(self.measured[cls]) if self.measured[cls] else None


class Totals(NamedTuple):
    """What is summed over batches: see `Survey`; `writes` holds writes and known accesses."""

    faults: NDArray[np.int64]
    measured: NDArray[np.int64]
    latency_ns: NDArray[np.int64]
    histograms: NDArray[np.int64]
    last_ns: NDArray[np.int64]
    lane_ns: NDArray[np.int64]
    lane_faults: NDArray[np.int64]
    lane_measured: NDArray[np.int64]
    writes: NDArray[np.int64]

    @classmethod
    def new(cls, lanes: int) -> Totals:
        """Return totals of nothing, with room for so many lanes."""
        by_class, by_lane = np.zeros(ev.CLASSES, np.int64), np.zeros(lanes, np.int64)
        return cls(
            faults=by_class,
            measured=by_class.copy(),
            latency_ns=by_class.copy(),
            histograms=np.zeros(ev.CLASSES * HISTOGRAM_CELLS, np.int64),
            last_ns=by_lane,
            lane_ns=by_lane.copy(),
            lane_faults=np.zeros(lanes * ev.CLASSES, np.int64),
            lane_measured=np.zeros(lanes * ev.CLASSES, np.int64),
            writes=np.zeros(2, np.int64),
        )

    def grown(self, lanes: int) -> Totals:
        """Return the same with room for so many lanes."""
        return self._replace(
            last_ns=_longer(self.last_ns, lanes),
            lane_ns=_longer(self.lane_ns, lanes),
            lane_faults=_longer(self.lane_faults, lanes * ev.CLASSES),
            lane_measured=_longer(self.lane_measured, lanes * ev.CLASSES),
        )


class Recorded(NamedTuple):
    """What was recorded up to some time, as the fields of `Survey` with these names."""

    faults: NDArray[np.int64]
    measured: NDArray[np.int64]
    latency_ns: NDArray[np.int64]
    last_ns: NDArray[np.int64]

    @classmethod
    def of(cls, totals: Totals) -> Recorded:
        """Copy what will change."""
        return cls(*(getattr(totals, name).copy() for name in cls._fields))


def add_batch(c: Columns, totals: Totals) -> None:
    """Add the rows of one batch to the totals, which must have room for their lanes."""
    add = _compiled() if len(c.t) > PLAIN_ROWS else _add_rows
    add(c, totals)


def _add_rows(c: Columns, totals: Totals) -> None:
    for i in range(len(c.t)):
        lane = int64(c.lane[i])
        totals.last_ns[lane] = c.t[i]  # in time order: the last one stays
        bits = int64(c.bits[i])
        if c.op[i] != ev.FAULT or bits & ev.CONTINUED:
            continue
        cls = int64(c.cls[i])
        totals.faults[cls] += 1
        totals.lane_faults[lane * ev.CLASSES + cls] += 1
        totals.writes[0] += 1 if bits & ev.WRITE else 0
        totals.writes[1] += 1 if bits & (ev.READ | ev.WRITE | ev.EXECUTE) else 0
        if bits & ev.MEASURED:
            latency = int64(c.latency[i])
            totals.measured[cls] += 1
            totals.latency_ns[cls] += latency
            totals.lane_ns[lane] += latency
            totals.lane_measured[lane * ev.CLASSES + cls] += 1
            totals.histograms[cls * HISTOGRAM_CELLS + histogram_cell(latency)] += 1


@cache
def _compiled() -> Callable[[Columns, Totals], None]:
    return compiled(_add_rows)


def survey(timeline: Timeline) -> Survey:
    """Read the whole trace once; the timeline then knows its pages, lanes and bounds."""
    totals = Totals.new(0)
    for c in timeline:
        totals = totals.grown(len(timeline.lanes.vm))
        add_batch(c, totals)
    totals = totals.grown(len(timeline.lanes.vm))
    return Survey(
        counts=timeline.seen,
        faults=totals.faults,
        measured=totals.measured,
        latency_ns=totals.latency_ns,
        histograms=totals.histograms.reshape(ev.CLASSES, HISTOGRAM_CELLS),
        last_ns=totals.last_ns,
        lane_ns=totals.lane_ns,
        lane_faults=totals.lane_faults.reshape(-1, ev.CLASSES),
        lane_measured=totals.lane_measured.reshape(-1, ev.CLASSES),
        writes=int(totals.writes[0]),
        access_known=int(totals.writes[1]),
        outside_rows=timeline.outside_rows,
        earlier_bytes=earlier_bytes(timeline),
        assumed_slots=bool((timeline.trace.memslots["known_by"] == "assumed").any()),
        inside_vmm=inside_vmm(timeline, totals.faults),
    )


def inside_vmm(timeline: Timeline, faults: NDArray[np.int64]) -> bool:
    """Return whether no vCPU of KVM ran, by the trace's own word, and all faults (by class) are the VMM's."""
    vms = timeline.trace.meta.vms
    taken = faults.reshape(-1, ev.LEVELS).sum(axis=1)
    own = taken[ev.HOST_MINOR] + taken[ev.HOST_MAJOR]
    return bool(vms and all(vm.get("vcpus") == 0 for vm in vms) and own and own == taken.sum())


def earlier_bytes(timeline: Timeline) -> float:
    """Return how much guest memory may have been backed before the recording: at most the VMMs' RSS then.

    0 if the recording saw its VMs start, inf if it did not and no sample of its first seconds says more.
    """
    trace = timeline.trace
    filters = getattr(trace.meta, "filters", None) or {}
    if not any(filters.get(key) for key in ATTACHED):
        return 0.0
    most = math.inf if timeline.memory_bytes is None else float(timeline.memory_bytes)
    samples: pl.DataFrame | None = getattr(trace, "samples", None)
    if samples is None:
        return most
    early = samples.filter(
        pl.col("metric") == "rss_bytes",
        pl.col("ts_ns").cast(pl.Int64) <= timeline.start_ns + FIRST_SAMPLE_NS,
    ).sort("ts_ns")
    first = early.group_by("vm").first()["value"]
    return most if len(first) < timeline.vms else min(most, float(first.sum()) * timeline.share)


def _longer(values: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    return np.concatenate([values, np.zeros(n - len(values), np.int64)])
