"""LRU stack distances of every reference in one pass: the miss ratio at all memory sizes at once.

Mattson et al., "Evaluation techniques for storage hierarchies", IBM Systems Journal 9(2), 1970: under LRU a
reference hits in every memory of at least as many pages as its stack distance, the number of distinct
pages used since the page's own last use, itself included. Each reference takes a slot of a time axis, a bit
of which is set while it is the last use of its page: the distance is the number of bits set from the last
use on. Leaves of 512 bits are counted by population count; above them, `later[leaf]` counts the bits in
the leaves behind it in its group of 64, `further[group]` those in the groups behind it in its row of 64,
and `rows` whole rows, so that a count is three look-ups and a change two short vector loops.

A page given back leaves a hole: memories large enough to hold the hole have a free frame, which the
next page brought in from below fills. So a hole keeps its slot until a use of a page beneath it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Final, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tracekit.replay.jit import compiled, hot, prefetch
from tracekit.replay.missratio.curve import MissRatioCurve, as_capacities, spread
from tracekit.replay.missratio.references import EVICT, FAULT, FORGET, as_references

__all__ = ["StackDistances"]

LEAF_BITS: Final = 9
GROUP_BITS: Final = LEAF_BITS + 6
ROW_BITS: Final = GROUP_BITS + 6
ROW: Final = 1 << ROW_BITS
CHUNK: Final = 1 << 13
AHEAD: Final = 48
"""References whose look-ups are called into the cache ahead of time."""
NEAR: Final = 12
"""The same for the time axis, most of which is in a near cache anyway."""

ONE: Final = np.int64(1)  # shifted by 63 it wraps as the words do
NEVER: Final = -1  # last use of a page that was not used, or was given back since
PRESENT: Final = -2  # resident: its uses are not recorded
UNCOUNTED: Final = -1

# Cells of Axis.cells.
CLOCK: Final = 0  # next free slot
OPEN: Final = 1  # bits set in the leaf that is being filled
HOLES: Final = 2
RESIDENT: Final = 3
FREED: Final = 4  # frames that resident pages gave back and nothing filled since
PEAK: Final = 5  # most frames in use
ODD: Final = 6  # events that contradict the state: a fault of a resident page, an eviction of an evicted one


class Axis(NamedTuple):
    """The time axis: bits, counts over them, and the holes as a heap with the latest on top."""

    words: NDArray[np.int64]
    later: NDArray[np.int16]
    further: NDArray[np.int32]
    rows: NDArray[np.int64]
    holes: NDArray[np.int64]
    cells: NDArray[np.int64]


@hot
def popcount(x: int) -> int:
    """Return the number of bits set in a 64-bit word (the form that compilers turn into one instruction)."""
    x = x - ((x >> 1) & 0x5555555555555555)
    x = (x & 0x3333333333333333) + ((x >> 2) & 0x3333333333333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F0F0F0F0F
    return ((x * 0x0101010101010101) >> 56) & 0xFF


@hot
def bits_from(axis: Axis, slot: int, clock: int) -> int:
    """Return how many bits are set in the slots from `slot` to now."""
    leaf = slot >> LEAF_BITS
    at = slot >> 6
    found = popcount(axis.words[at] & (-1 << (slot & 63)))
    words = axis.words[leaf << 3 : (leaf + 1) << 3]
    for k in range(8):
        found += popcount(words[k]) if k > at & 7 else 0
    if leaf != clock >> LEAF_BITS:
        group = leaf >> 6
        found += axis.later[leaf] + axis.further[group] + axis.cells[OPEN]
        for row in range((slot >> ROW_BITS) + 1, (clock >> ROW_BITS) + 1):
            found += axis.rows[row]
    return found


@hot
def add_before(counts: NDArray[Any], own: int, n: int) -> None:
    """Add `n` to those of 64 counts that stand before `own` (a slice: no index can be negative)."""
    for k in range(64):
        counts[k] += n if k < own else 0


@hot
def add(axis: Axis, leaf: int, n: int) -> None:
    """Count `n` bits more in a full leaf."""
    group = leaf >> 6
    row = leaf >> 12
    add_before(axis.later[group << 6 : (group + 1) << 6], leaf & 63, n)
    add_before(axis.further[row << 6 : (row + 1) << 6], group & 63, n)
    axis.rows[row] += n


@hot
def clear(axis: Axis, slot: int, clock: int) -> None:
    """Clear the bit of a slot."""
    axis.words[slot >> 6] &= ~(ONE << (slot & 63))
    leaf = slot >> LEAF_BITS
    if leaf == clock >> LEAF_BITS:
        axis.cells[OPEN] -= 1
    else:
        add(axis, leaf, -1)


@hot
def push_hole(axis: Axis, slot: int) -> None:
    """Turn the slot of a page into a hole."""
    at = axis.cells[HOLES]
    axis.cells[HOLES] += 1
    while at > 0 and axis.holes[(at - 1) >> 1] < slot:
        axis.holes[at] = axis.holes[(at - 1) >> 1]
        at = (at - 1) >> 1
    axis.holes[at] = slot


@hot
def replace_top(axis: Axis, slot: int, count: int) -> None:
    """Put `slot` in place of the latest of the first `count` holes."""
    at = 0
    while 2 * at + 1 < count:
        child = 2 * at + 1
        if child + 1 < count and axis.holes[child + 1] > axis.holes[child]:
            child += 1
        if axis.holes[child] <= slot:
            break
        axis.holes[at] = axis.holes[child]
        at = child
    axis.holes[at] = slot


@hot
def leave(axis: Axis, slot: int, clock: int) -> None:
    """Bring a page to the top from `slot` (negative: from outside): a hole above it is filled on the way."""
    count = axis.cells[HOLES]
    if count > 0 and (slot < 0 or axis.holes[0] > slot):
        clear(axis, axis.holes[0], clock)
        if slot >= 0:
            replace_top(axis, slot, count)
        else:
            axis.cells[HOLES] = count - 1
            replace_top(axis, axis.holes[count - 1], count - 1)
    elif slot >= 0:
        clear(axis, slot, clock)


@hot
def fault(axis: Axis, slot: int, clock: int) -> int:
    """Take a recorded fault of a page evicted at `slot` (negative: not seen before); return its position."""
    cells = axis.cells
    if slot == PRESENT:
        cells[ODD] += 1
        return UNCOUNTED
    position = 0
    cells[PEAK] = max(cells[PEAK], cells[RESIDENT] + cells[FREED])  # not after: the eviction may be next
    if slot >= 0:
        position = cells[RESIDENT] + cells[FREED] + bits_from(axis, slot, clock)
    if cells[FREED] > 0:
        cells[FREED] -= 1
        if slot >= 0:
            push_hole(axis, slot)
    else:
        leave(axis, slot, clock)
    cells[RESIDENT] += 1
    return position


@hot
def forget(axis: Axis, slot: int) -> None:
    """Take a page out: its place stays as a hole."""
    if slot >= 0:
        push_hole(axis, slot)
    elif slot == PRESENT:
        axis.cells[RESIDENT] -= 1
        axis.cells[FREED] += 1


def advance(
    pages: NDArray[np.int64],
    ops: NDArray[np.uint8],
    last: NDArray[Any],
    axis: Axis,
    histogram: NDArray[np.int64],
    scratch: NDArray[np.int64],
) -> None:
    """Take references in time order; the axis must have a free slot for each."""
    cells = axis.cells
    for begin in range(0, len(pages), len(scratch)):
        m = min(len(scratch), len(pages) - begin)
        clock = cells[CLOCK]
        # One loop for each array that is looked up at random, so that many look-ups are under way at once.
        if len(ops) == 0:
            for i in range(m):
                prefetch(last, pages[begin + min(i + AHEAD, m - 1)])
                page = pages[begin + i]
                scratch[i] = last[page]
                last[page] = clock + i
        else:
            for i in range(m):
                page = pages[begin + i]
                scratch[i] = last[page]
                op = ops[begin + i]
                last[page] = PRESENT if op == FAULT else NEVER if op == FORGET else clock + i
        for i in range(m):
            ahead = max(scratch[min(i + NEAR, m - 1)], 0)
            prefetch(axis.words, ahead >> 6)
            prefetch(axis.later, (ahead >> GROUP_BITS) << 6)
            prefetch(axis.later, ((ahead >> GROUP_BITS) << 6) + 32)
            slot = scratch[i]
            op = 0 if len(ops) == 0 else ops[begin + i]
            now = clock + i
            position = UNCOUNTED
            if op == 0:
                position = bits_from(axis, slot, now) if slot >= 0 else 0
                leave(axis, slot, now)
            elif op == FAULT:
                position = fault(axis, slot, now)
            elif op == FORGET:
                forget(axis, slot)
            elif slot >= 0:  # evicted again
                cells[ODD] += 1
                clear(axis, slot, now)
            else:
                cells[RESIDENT] -= 1
            scratch[i] = position
            if op in (0, EVICT):
                axis.words[now >> 6] |= ONE << (now & 63)
                cells[OPEN] += 1
            if now & 511 == 511:
                add(axis, now >> LEAF_BITS, cells[OPEN])
                cells[OPEN] = 0
        for i in range(m):
            prefetch(histogram, max(scratch[min(i + AHEAD, m - 1)], 0))
            if scratch[i] >= 0:
                histogram[scratch[i]] += 1
        cells[CLOCK] = clock + m


def renumber(last: NDArray[Any], axis: Axis, before: NDArray[np.int64]) -> int:
    """Move all slots in use to the start of the axis, in order; return how many they are."""
    count = 0
    for k in range(len(axis.words)):
        before[k] = count
        count += popcount(axis.words[k])
    for page in range(len(last)):
        slot = int(last[page])
        if slot >= 0:
            last[page] = before[slot >> 6] + popcount(axis.words[slot >> 6] & ~(-1 << (slot & 63)))
    for k in range(axis.cells[HOLES]):
        slot = axis.holes[k]
        axis.holes[k] = before[slot >> 6] + popcount(axis.words[slot >> 6] & ~(-1 << (slot & 63)))
    return count


@cache
def _kernels() -> tuple[Callable[..., None], Callable[..., int]]:
    return compiled(advance), compiled(renumber)


def _full_axis(count: int, slots: int, holes: NDArray[np.int64], cells: NDArray[np.int64]) -> Axis:
    """Return an axis of `slots` slots whose first `count` bits are set."""
    words = np.zeros(slots >> 6, np.int64)
    words[: count >> 6] = -1
    if count & 63:
        words[count >> 6] = (1 << (count & 63)) - 1
    full = count >> LEAF_BITS
    leaves = np.arange(slots >> LEAF_BITS)
    groups = np.arange(slots >> GROUP_BITS)
    behind = np.clip(np.minimum(full, (leaves | 63) + 1) - leaves - 1, 0, None)
    full_groups = np.clip(full - ((groups + 1) << 6), 0, (((groups | 63) - groups) << 6))
    rows = np.clip(full - (np.arange((slots >> ROW_BITS) + 1) << 12), 0, 1 << 12)
    cells[CLOCK], cells[OPEN] = count, count & 511
    return Axis(
        words,
        (behind << LEAF_BITS).astype(np.int16),
        (full_groups << LEAF_BITS).astype(np.int32),
        rows << LEAF_BITS,
        holes,
        cells,
    )


class StackDistances:
    """Counts LRU stack distances of a reference string, batch by batch.

    Memory: 13 bytes for each page, whatever the length of the trace (17 from 512 Mi pages on). Touches: a
    distance is the smallest memory, in pages, in which the touch hits. Faults and evictions: see
    `tracekit.replay.missratio.evictions`.

    >>> from tracekit.replay.missratio import StackDistances
    >>> distances = StackDistances().feed([1, 2, 3, 1, 1, 2])
    >>> distances.histogram  # 3 first uses, then 1 at distance 3, 1 at 1 and 2 at 3
    array([3, 1, 0, 2])
    >>> distances.curve([1, 2, 3]).miss_ratio.round(3)
    array([0.833, 0.833, 0.5  ])
    """

    def __init__(self, pages: int = 0, *, resident_at_start: int = 0) -> None:
        self._last: NDArray[Any] = np.full(pages, NEVER, np.int32)
        self._scratch = np.empty(CHUNK, np.int64)
        # Filled, not merely zeroed: numpy then asks for huge pages, which random look-ups need.
        self._counts = np.full(pages + resident_at_start + 2, 0, np.int64)
        cells = np.zeros(8, np.int64)
        cells[RESIDENT] = cells[PEAK] = resident_at_start
        self._axis = _full_axis(0, ROW, np.empty(64, np.int64), cells)

    def feed(self, pages: ArrayLike, ops: ArrayLike | None = None) -> Self:
        """Take the next references; raises UsageError if pages are not dense numbers."""
        page, op, top = as_references(pages, ops)
        if top > len(self._last):
            self._grow(max(top, min(2 * len(self._last), top + (1 << 20))))
        self._make_room_for_holes(int(np.count_nonzero((op == FORGET) | (op == FAULT))))
        advance_, _ = _kernels()
        begin = 0
        while begin < len(page):
            room = (len(self._axis.words) << 6) - int(self._axis.cells[CLOCK])
            if room == 0:
                self._compact()
                continue
            part = slice(begin, begin + room)
            advance_(page[part], op[part], self._last, self._axis, self._counts, self._scratch)
            begin += room
        return self

    def _grow(self, pages: int) -> None:
        more = pages - len(self._last)
        self._last = np.concatenate([self._last, np.full(more, NEVER, self._last.dtype)])
        self._counts = np.concatenate([self._counts, np.zeros(more, np.int64)])

    def _make_room_for_holes(self, more: int) -> None:
        need = int(self._axis.cells[HOLES]) + more + 1
        if more and need > len(self._axis.holes):
            holes = np.empty(max(need, 2 * len(self._axis.holes)), np.int64)
            holes[: len(self._axis.holes)] = self._axis.holes
            self._axis = self._axis._replace(holes=holes)

    def _compact(self) -> None:
        axis = self._axis
        before = np.empty(len(axis.words), np.int64)
        count = _kernels()[1](self._last, axis, before)
        # Four slots for each page: the axis is compacted at most once in three times as many references.
        slots = max(-(-4 * len(self._last) // ROW) * ROW, ROW)
        if slots >= 1 << 31 and self._last.dtype == np.int32:
            self._last = self._last.astype(np.int64)
        self._axis = _full_axis(count, slots, axis.holes, axis.cells)

    @property
    def histogram(self) -> NDArray[np.int64]:
        """References at each distance in pages; [0] counts the cold ones, which miss in any memory."""
        used = np.flatnonzero(self._counts)
        return self._counts[: int(used[-1]) + 1 if len(used) else 1].copy()

    @property
    def references(self) -> int:
        """Number of touches (or faults) so far."""
        return int(self._counts.sum())

    @property
    def frames(self) -> int:
        """Most frames in use at once in a fault trace: the smallest size its curve is known for."""
        cells = self._axis.cells
        return int(max(cells[PEAK], cells[RESIDENT] + cells[FREED]))

    @property
    def contradictions(self) -> int:
        """Faults of resident pages and evictions of evicted ones: signs of lost or unseen events."""
        return int(self._axis.cells[ODD])

    def curve(self, capacity_pages: ArrayLike | None = None) -> MissRatioCurve:
        """Return the exact LRU miss ratio at these sizes (default: about 512 up to the largest distance)."""
        counts = self.histogram
        sizes = spread(len(counts) - 1) if capacity_pages is None else as_capacities(capacity_pages)
        hits = np.cumsum(counts) - counts[0]
        total = self.references
        misses = total - hits[np.minimum(sizes, len(hits) - 1)]
        return MissRatioCurve.exact(sizes, misses, total, int(counts[0]))
