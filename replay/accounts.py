"""The counters that a replay fills, and the few functions that fill them.

Each recorded fault gets exactly one verdict by exactly one mechanism (0 = it stayed), so that what was
saved and what remains always add up to what was recorded. Only faults that change are counted here: what
stays is the rest of what the survey counted once, for all replays.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from tracekit.replay.events import CLASSES
from tracekit.replay.jit import hot, rare
from tracekit.replay.pages import CLOCK_ADDED, CLOCK_CLOSED, CLOCK_UNPLACED, World

__all__ = [
    "add_fault",
    "advance",
    "book_fault",
    "count",
    "histogram_cells",
    "saved_span",
    "shorten_added",
    "wait",
]

# Verdicts: what became of a recorded fault.
KEPT: Final = 0
SKIPPED: Final = 1  # the access itself does not happen any more
HIT: Final = 2  # the page was backed already
SHORTENED: Final = 3  # still a fault, but a shorter one
REPRICED: Final = 4  # a fault of another level instead (counted there by add_fault)
OVERLAPPED: Final = 5  # the vCPU did other work while it waited
VERDICTS: Final = 6

# Cells of one (who, verdict, class) in World.faults.
COUNT: Final = 0
BASE_NS: Final = 1  # recorded latency
UNMEASURED: Final = 2  # faults without a recorded latency: priced by the cost profile
NEW_NS: Final = 3  # service time in the counterfactual
CELLS: Final = 4

# Why a fault was added (World.added holds count and ns for each who, reason, class).
REFAULT: Final = 0  # a page that a mechanism took away was used again
DEFERRED: Final = 1  # a first touch that was spared happened later after all
INSTEAD: Final = 2  # replaces a REPRICED fault
REASONS: Final = 3

# World.tally: counters of one mechanism.
HYPERCALLS: Final = 0
RANGES: Final = 1
PREFAULTS: Final = 2  # pages backed ahead of use
PREFAULTS_UNUSED: Final = 3  # ... and taken away again before any use (the rest is counted at the end)
LATE: Final = 4  # prefaults that came too late to avoid the fault
UNMAPS: Final = 5  # pages taken away
ZEROING_SPARED: Final = 6  # pages that the guest need not zero any more
ZEROED_TWICE: Final = 7  # pages zeroed by the host and again by the guest in the baseline
BACKGROUND_NS: Final = 8  # host CPU beside the path, at nominal cost
SCANNED: Final = 9
CANDIDATES: Final = 10  # faults that a mechanism could not tell apart from those it saves
MERGED: Final = 11
PREFAULTS_2M: Final = 12
UNMAPS_ON_PATH: Final = 13  # of UNMAPS: a faulting lane took them away itself
PAGED_OUT: Final = 14  # of UNMAPS: their contents went to swap
TALLIES: Final = 15

# World.by_lane: cells of one lane.
LANE_FAULTS_SAVED: Final = 0  # less those that were added
LANE_STALL_SAVED: Final = 1
LANE_CELLS: Final = 2

# Stall histogram: 128 cells per octave (0.8 % wide), from the bits of a float64. World.histogram holds the
# counterfactual's difference from the recording.
HISTOGRAM_CELLS: Final = 64 * 128 + 64
_ONE: Final = 1023 << 7

OPEN_SPANS: Final = 64
"""Stretches of removed stall that a later one may still be joined with."""
SPAN_DEPTH: Final = 4 * OPEN_SPANS
"""Stretches that are kept: those that are closed are added up when there is no room for more."""
_FIRST_OPEN: Final = 2 * (SPAN_DEPTH + 1)  # cell of World.spans


@hot
def histogram_cell(ns: int) -> int:
    """Return the histogram cell of a time in ns: exact below 128 ns, 0.8 % wide above."""
    if ns < 1:
        return 0
    bits = np.float64(ns).view(np.int64)
    return int((bits >> 45) - _ONE) + 1


def histogram_cells(ns: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the cells of many times at once (`histogram_cell` for arrays)."""
    bits = np.maximum(ns, 1).astype(np.float64).view(np.int64)
    return np.where(ns < 1, 0, (bits >> 45) - _ONE + 1)


@hot
def count(s: World, who: int, item: int, n: int) -> None:
    """Add `n` to a counter of mechanism `who`."""
    s.tally[who * TALLIES + item] += n


@hot
def advance(s: World, lane: int, gain: int) -> None:
    """Let a lane run ahead of the recording by `gain` ns more; its VM's own clock follows.

    Where an event is on that clock itself, nobody knows which vCPU is ahead or late, so none is.
    """
    clock, gain = s.host_of[lane], gain * s.clock[CLOCK_CLOSED]
    if lane == clock:
        s.clock[CLOCK_UNPLACED] += gain
        return
    s.shift[lane] += gain
    s.shift[clock] = s.shift[lane]


@hot
def add_fault(s: World, lane: int, who: int, reason: int, cls: int, ns: int) -> None:
    """Book a fault of a lane that the recording does not have; `ns` is its service time."""
    at = ((who * REASONS + reason) * CLASSES + cls) * 2
    s.added[at] += 1
    s.added[at + 1] += ns
    s.clock[CLOCK_ADDED] += 1
    if reason != INSTEAD:
        s.histogram[histogram_cell(ns)] += 1
        s.by_lane[lane * LANE_CELLS + LANE_FAULTS_SAVED] -= 1
        s.by_lane[lane * LANE_CELLS + LANE_STALL_SAVED] -= ns


@hot
def wait(s: World, lane: int, who: int, cls: int, ns: int) -> None:
    """Let a lane work `ns` inside a fault that is booked without it: no fault of its own, in no quantile."""
    s.added[((who * REASONS + REFAULT) * CLASSES + cls) * 2 + 1] += ns
    s.clock[CLOCK_ADDED] += 1
    s.by_lane[lane * LANE_CELLS + LANE_STALL_SAVED] -= ns
    advance(s, lane, -ns)


@hot
def shorten_added(s: World, lane: int, who: int, reason: int, cls: int, ns: int, new: int) -> None:
    """Let a fault that was added with `ns` take `new` ns instead."""
    s.added[((who * REASONS + reason) * CLASSES + cls) * 2 + 1] += new - ns
    s.histogram[histogram_cell(ns)] -= 1
    s.histogram[histogram_cell(new)] += 1
    s.by_lane[lane * LANE_CELLS + LANE_STALL_SAVED] += ns - new


@hot
def book_fault(
    s: World, lane: int, who: int, verdict: int, cls: int, latency: int, measured: bool, service: int
) -> None:
    """Book what became of one recorded fault of a lane; one that stays as it was belongs to the rest."""
    if verdict == KEPT and service == latency:
        return
    at = ((who * VERDICTS + verdict) * CLASSES + cls) * CELLS
    s.faults[at + COUNT] += 1
    if measured:
        s.faults[at + BASE_NS] += latency
    else:
        s.faults[at + UNMEASURED] += 1
    s.faults[at + NEW_NS] += service
    if verdict != KEPT:
        s.histogram[histogram_cell(latency)] -= 1
        s.by_lane[lane * LANE_CELLS + LANE_STALL_SAVED] += latency - service
        if verdict not in (SKIPPED, HIT):
            s.histogram[histogram_cell(service)] += 1
        else:
            s.by_lane[lane * LANE_CELLS + LANE_FAULTS_SAVED] += 1


@rare
def _add_closed(spans: NDArray[np.int64]) -> None:
    closed, depth = spans[_FIRST_OPEN], spans[1]
    for k in range(1, closed + 1):
        spans[0] += spans[2 * k + 1] - spans[2 * k]
    for k in range(2 * (closed + 1), 2 * (depth + 1)):
        spans[k - 2 * closed] = spans[k]
    spans[1] = depth - closed
    spans[_FIRST_OPEN] = 0


@hot
def saved_span(s: World, start: int, end: int) -> None:
    """Add a removed stretch of stall to the union over all lanes (recorded time, ends never decrease).

    spans[0] = length of the union without the stretches that are kept, spans[1] = how many are, then the
    pairs of their ends. The oldest open one is closed when there are many; a later stretch that reaches below
    it counts its overlap twice, so the union is an upper bound, exact unless a stall is longer than 64
    younger ones apart.
    """
    depth, closed = s.spans[1], s.spans[_FIRST_OPEN]
    while depth > closed and s.spans[2 * depth + 1] >= start:
        start = min(start, s.spans[2 * depth])
        depth -= 1
    if depth == closed + OPEN_SPANS:
        s.spans[_FIRST_OPEN] = closed + 1
        if depth == SPAN_DEPTH:
            s.spans[1] = depth
            _add_closed(s.spans)
            depth = s.spans[1]
    depth += 1
    s.spans[2 * depth] = start
    s.spans[2 * depth + 1] = end
    s.spans[1] = depth
