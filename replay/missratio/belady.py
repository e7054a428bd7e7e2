"""Belady's optimum (MIN) at one memory size in a single pass that never looks ahead.

Belady, "A study of replacement algorithms for a virtual-storage computer", IBM Systems Journal 5(2), 1966.
A page can be kept from one use to the next if, at each reference between, fewer than C - 1 other pages are
being kept; taking the intervals in the order of their ends and keeping each that fits is optimal (interval
scheduling on C machines; Hawkeye's OPTgen, Jain & Lin, ISCA 2016, counts the same way). All intervals end
now, so only the suffix maxima of the occupancy matter, and these fall by at most one per slot: one bit
per slot says where. A hit moves one bit: the nearest at or before the page's last use goes, one appears
just before now; with none to move it needs one of the C - 1 bits that are still free. Otherwise it is a
miss.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Final, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tracekit.errors import UsageError
from tracekit.replay.jit import compiled, hot, prefetch
from tracekit.replay.missratio.references import FORGET, as_references

__all__ = ["Belady"]

ONE: Final = np.int64(1)  # shifted by 63 it wraps as the words do
NEVER: Final = -1
CHUNK: Final = 1 << 13
AHEAD: Final = 48
"""References whose look-ups are called into the cache ahead of time."""
NEAR: Final = 12
LEAST_SLOTS: Final = 1 << 20

# Cells.
NEXT: Final = 0
STEPS: Final = 1  # bits set
REFERENCES: Final = 2
MISSES: Final = 3
COLD: Final = 4


class Steps(NamedTuple):
    """The bits of the slots, and for each level above one bit per word below that is not zero."""

    words: NDArray[np.int64]
    blocks: NDArray[np.int64]
    areas: NDArray[np.int64]
    cells: NDArray[np.int64]


@hot
def highest(x: int) -> int:
    """Return the position of the highest bit set in a 64-bit word that is not zero."""
    if x < 0:
        return 63
    at = 0
    for shift in (32, 16, 8, 4, 2, 1):
        if x >> shift > 0:
            x >>= shift
            at += shift
    return at


@hot
def at_or_before(s: Steps, slot: int) -> int:
    """Return the nearest slot at or before this one whose bit is set; -1 if there is none."""
    word = slot >> 6
    found = s.words[word] & (-1 if slot & 63 == 63 else (1 << ((slot & 63) + 1)) - 1)
    if found == 0:
        block = word >> 6
        found = s.blocks[block] & ((1 << (word & 63)) - 1)
        if found == 0:
            area = block >> 6
            found = s.areas[area] & ((1 << (block & 63)) - 1)
            while found == 0:
                area -= 1
                if area < 0:
                    return -1
                found = s.areas[area]
            block = (area << 6) + highest(found)
            found = s.blocks[block]
        word = (block << 6) + highest(found)
        found = s.words[word]
    return (word << 6) + highest(found)


@hot
def put(s: Steps, slot: int) -> None:
    """Set the bit of a slot."""
    s.words[slot >> 6] |= ONE << (slot & 63)
    s.blocks[slot >> 12] |= ONE << ((slot >> 6) & 63)
    s.areas[slot >> 18] |= ONE << ((slot >> 12) & 63)


@hot
def take(s: Steps, slot: int) -> None:
    """Clear the bit of a slot."""
    s.words[slot >> 6] &= ~(ONE << (slot & 63))
    if s.words[slot >> 6] == 0:
        s.blocks[slot >> 12] &= ~(ONE << ((slot >> 6) & 63))
        if s.blocks[slot >> 12] == 0:
            s.areas[slot >> 18] &= ~(ONE << ((slot >> 12) & 63))


def run_belady(
    pages: NDArray[np.int64],
    ops: NDArray[np.uint8],
    capacity: int,
    last: NDArray[Any],
    s: Steps,
    scratch: NDArray[np.int64],
    missed: NDArray[np.bool_],
) -> None:
    """Take references in time order; there must be a free slot for each."""
    steps = s.cells[STEPS]
    clock = s.cells[NEXT]
    misses = 0
    cold = 0
    start = clock
    for begin in range(0, len(pages), len(scratch)):
        m = min(len(scratch), len(pages) - begin)
        ahead = clock
        for i in range(m):
            prefetch(last, pages[begin + min(i + AHEAD, m - 1)])
            page = pages[begin + i]
            scratch[i] = last[page]
            forget = len(ops) > 0 and ops[begin + i] == FORGET
            last[page] = NEVER if forget else ahead
            ahead += 0 if forget else 1
        for i in range(m):
            prefetch(s.words, max(scratch[min(i + NEAR, m - 1)], 0) >> 6)
            if len(ops) > 0 and ops[begin + i] == FORGET:
                continue
            slot = scratch[i]
            miss = slot < 0
            cold += miss
            if not miss and slot < clock - 1:
                step = at_or_before(s, slot)
                if step >= 0:
                    take(s, step)
                elif steps < capacity - 1:
                    steps += 1
                else:
                    miss = True
                if not miss:
                    put(s, clock - 1)
            misses += miss
            if len(missed) > 0:
                missed[begin + i] = miss
            clock += 1
    s.cells[NEXT] = clock
    s.cells[STEPS] = steps
    s.cells[REFERENCES] += clock - start
    s.cells[MISSES] += misses
    s.cells[COLD] += cold


def renumber(last: NDArray[Any], old: Steps, new: Steps, before: NDArray[np.int64]) -> None:
    """Move the slots that are a last use or hold a bit to the start of the new axis, in order."""
    for slot in range(len(before)):
        before[slot] = 0
    for page in range(len(last)):
        if last[page] >= 0:
            before[last[page]] = 1
    if old.cells[NEXT] > 0:
        before[old.cells[NEXT] - 1] = (
            1  # a reference stands between earlier uses and now, whatever became of it
        )
    count = 0
    for slot in range(old.cells[NEXT]):
        step = (old.words[slot >> 6] >> (slot & 63)) & 1
        if before[slot] != 0 or step != 0:
            before[slot] = count
            if step != 0:
                put(new, count)
            count += 1
    for page in range(len(last)):
        if last[page] >= 0:
            last[page] = before[last[page]]
    new.cells[NEXT] = count


@cache
def _kernels() -> tuple[Callable[..., None], Callable[..., None]]:
    return compiled(run_belady), compiled(renumber)


def _steps(slots: int, cells: NDArray[np.int64]) -> Steps:
    words, blocks, areas = (np.zeros((slots >> shift) + 1, np.int64) for shift in (6, 12, 18))
    return Steps(words, blocks, areas, cells)


class Belady:
    """Counts the fewest misses that any policy could have with a memory of `capacity_pages`.

    Fed batch by batch; memory: 4 to 8 bytes for each page and slot, bounded by the guest's size.

    >>> from tracekit.replay.missratio import Belady
    >>> memory = Belady(2).feed([1, 2, 3, 1, 2, 3])  # keep 1 until its use, then 3
    >>> memory.misses, memory.cold
    (4, 3)
    """

    def __init__(self, capacity_pages: int, pages: int = 0) -> None:
        """Start with an empty memory of 1 page or more; `pages`: room for so many pages, grows."""
        if capacity_pages < 1:
            raise UsageError(f"a memory of {capacity_pages} pages", hint="give 1 page or more")
        self.capacity_pages = capacity_pages
        self._last: NDArray[Any] = np.full(pages, NEVER, np.int32)
        self._scratch = np.empty(CHUNK, np.int64)
        self._slots = LEAST_SLOTS
        self._steps = _steps(self._slots, np.zeros(8, np.int64))

    def feed(self, pages: ArrayLike, ops: ArrayLike | None = None) -> Self:
        """Take the next references (touches and forgets)."""
        self._feed(pages, ops, np.empty(0, np.bool_))
        return self

    def missed(self, pages: ArrayLike, ops: ArrayLike | None = None) -> NDArray[np.bool_]:
        """Take the next references and return which of them miss.

        >>> from tracekit.replay.missratio import Belady
        >>> Belady(2).missed([1, 2, 3, 1, 2])
        array([ True,  True,  True, False,  True])
        """
        missed = np.zeros(np.size(pages), np.bool_)
        self._feed(pages, ops, missed)
        return missed

    def _feed(self, pages: ArrayLike, ops: ArrayLike | None, missed: NDArray[np.bool_]) -> None:
        page, op, top = as_references(pages, ops, allowed=FORGET)
        if top > len(self._last):
            more = max(top, min(2 * len(self._last), top + (1 << 20))) - len(self._last)
            self._last = np.concatenate([self._last, np.full(more, NEVER, self._last.dtype)])
        run, _ = _kernels()
        begin = 0
        while begin < len(page):
            room = self._slots - int(self._steps.cells[NEXT])
            if room == 0:
                self._compact()
                continue
            part = slice(begin, begin + room)
            run(
                page[part],
                op[part],
                self.capacity_pages,
                self._last,
                self._steps,
                self._scratch,
                missed[part],
            )
            begin += room

    def _compact(self) -> None:
        before = np.empty(self._slots, self._last.dtype)
        # There are never more bits than pages, so at most half of these slots stay in use.
        self._slots = max(LEAST_SLOTS, 4 * len(self._last))
        if self._slots >= 1 << 31:
            self._last = self._last.astype(np.int64)
        fresh = _steps(self._slots, self._steps.cells.copy())
        _kernels()[1](self._last, self._steps, fresh, before)
        self._steps = fresh

    @property
    def references(self) -> int:
        """Touches so far."""
        return int(self._steps.cells[REFERENCES])

    @property
    def misses(self) -> int:
        """The fewest misses possible."""
        return int(self._steps.cells[MISSES])

    @property
    def cold(self) -> int:
        """Misses that no memory could have avoided: first uses, and uses after the page was given back."""
        return int(self._steps.cells[COLD])

    @property
    def refaults(self) -> int:
        """Misses of pages that had been evicted."""
        return self.misses - self.cold
