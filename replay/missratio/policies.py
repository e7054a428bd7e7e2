"""Eviction policies at one memory size, in time order: LRU, FIFO and CLOCK on dense arrays.

All three are a queue of slots in the order of arrival: LRU moves a page to a new slot at each use, FIFO
never, and CLOCK (FIFO with a second chance) when it is about to be evicted and was used since it took its
slot. A page is resident exactly if its slot is not before the tail, so a hit is one look-up and an
eviction moves the tail on. Nothing is allocated, hashed or linked per reference.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cache
from typing import Any, Final, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tracekit.errors import UsageError
from tracekit.replay.jit import compiled, hot, prefetch
from tracekit.replay.missratio.references import FORGET, as_references

__all__ = ["FILLED", "HIT", "Clock", "Fifo", "Lru", "Policy"]

HIT: Final = -1
"""Outcome: the page was resident (or was given back)."""
FILLED: Final = -2
"""Outcome: a miss that filled a free frame; 0 and up: a miss that evicted this page."""

ONE: Final = np.int64(1)  # shifted by 63 it wraps as the words do
NEVER: Final = -1
GONE: Final = -2  # was evicted before the slots were last renumbered
CHUNK: Final = 1 << 13
LEAST_SLOTS: Final = 1 << 20
AHEAD: Final = 48
"""References whose look-ups are called into the cache ahead of time."""
NEAR: Final = 12

# Cells of Queue.cells.
NEXT: Final = 0  # next free slot
TAIL: Final = 1  # slots before this one are free again
RESIDENT: Final = 2
REFERENCES: Final = 3
MISSES: Final = 4
COLD: Final = 5


class Queue(NamedTuple):
    """`last[page]`: its slot; `page_at[slot]`: its page; a bit per slot: `taken` (resident), `used` again."""

    last: NDArray[Any]
    page_at: NDArray[Any]
    taken: NDArray[np.int64]
    used: NDArray[np.int64]
    cells: NDArray[np.int64]


@hot
def evict(q: Queue, tail: int) -> int:
    """Return the first slot from `tail` on that holds a page."""
    while not (q.taken[tail >> 6] >> (tail & 63)) & 1:
        tail += 1
    return tail


@hot
def enqueue(q: Queue, slot: int, page: int) -> None:
    """Give a page the next slot."""
    q.page_at[slot] = page
    q.last[page] = slot
    q.taken[slot >> 6] |= ONE << (slot & 63)


def run_lru(
    pages: NDArray[np.int64],
    ops: NDArray[np.uint8],
    capacity: int,
    q: Queue,
    scratch: NDArray[np.int64],
    outcome: NDArray[np.int64],
) -> int:
    """Take references in time order until slots run out; return how many were taken."""
    done: int = min(len(pages), len(q.page_at) - q.cells[NEXT])
    tail = q.cells[TAIL]
    resident = q.cells[RESIDENT]
    misses = 0
    cold = 0
    given_back = 0
    for begin in range(0, done, len(scratch)):
        m = min(len(scratch), done - begin)
        first = q.cells[NEXT]
        # The look-ups at random stand in a loop of their own, so that many of them are under way at once.
        if len(ops) == 0:
            for i in range(m):
                prefetch(q.last, pages[begin + min(i + AHEAD, m - 1)])
                page = pages[begin + i]
                scratch[i] = q.last[page]
                q.last[page] = first + i
        else:
            for i in range(m):
                page = pages[begin + i]
                scratch[i] = q.last[page]
                q.last[page] = NEVER if ops[begin + i] == FORGET else first + i
        for i in range(m):
            prefetch(q.taken, max(scratch[min(i + NEAR, m - 1)], 0) >> 6)
            slot = scratch[i]
            now = first + i
            hit = slot >= tail
            result = HIT
            if hit:
                q.taken[slot >> 6] &= ~(ONE << (slot & 63))
            if len(ops) > 0 and ops[begin + i] == FORGET:
                resident -= hit
                given_back += 1
            else:
                if not hit:
                    misses += 1
                    cold += slot == NEVER
                    if resident < capacity:
                        resident += 1
                        result = FILLED
                    else:
                        tail = evict(q, tail)
                        result = q.page_at[tail]
                        tail += 1
                q.taken[now >> 6] |= ONE << (now & 63)
                q.page_at[now] = pages[begin + i]
            if len(outcome) > 0:
                outcome[begin + i] = result
        q.cells[NEXT] = first + m
    q.cells[TAIL] = tail
    q.cells[RESIDENT] = resident
    q.cells[REFERENCES] += done - given_back
    q.cells[MISSES] += misses
    q.cells[COLD] += cold
    return done


def run_fifo(
    pages: NDArray[np.int64],
    ops: NDArray[np.uint8],
    capacity: int,
    second_chance: bool,
    q: Queue,
    outcome: NDArray[np.int64],
) -> int:
    """Take references in time order until slots run out; return how many were taken."""
    free = q.cells[NEXT]
    tail = q.cells[TAIL]
    resident = q.cells[RESIDENT]
    need = capacity + 1 if second_chance else 1
    misses = 0
    cold = 0
    given_back = 0
    done = len(pages)
    for i in range(len(pages)):
        prefetch(q.last, pages[min(i + AHEAD, len(pages) - 1)])
        if free + need > len(q.page_at):
            done = i
            break
        page = pages[i]
        slot = q.last[page]
        result = HIT
        if len(ops) > 0 and ops[i] == FORGET:
            given_back += 1
            q.last[page] = NEVER
            if slot >= tail:
                q.taken[slot >> 6] &= ~(ONE << (slot & 63))
                resident -= 1
        elif slot >= tail:
            if second_chance:
                q.used[slot >> 6] |= ONE << (slot & 63)
        else:
            misses += 1
            cold += slot == NEVER
            if resident < capacity:
                resident += 1
                result = FILLED
            else:
                tail = evict(q, tail)
                while second_chance and (q.used[tail >> 6] >> (tail & 63)) & 1:
                    enqueue(q, free, q.page_at[tail])
                    free += 1
                    tail = evict(q, tail + 1)
                result = q.page_at[tail]
                tail += 1
            enqueue(q, free, page)
            free += 1
        if len(outcome) > 0:
            outcome[i] = result
    q.cells[NEXT] = free
    q.cells[TAIL] = tail
    q.cells[RESIDENT] = resident
    q.cells[REFERENCES] += done - given_back
    q.cells[MISSES] += misses
    q.cells[COLD] += cold
    return done


def renumber(q: Queue) -> None:
    """Move the slots in use to the start, in order."""
    tail = q.cells[TAIL]
    for page in range(len(q.last)):
        if 0 <= q.last[page] < tail:
            q.last[page] = GONE
    free = 0
    for slot in range(tail, q.cells[NEXT]):
        if (q.taken[slot >> 6] >> (slot & 63)) & 1:
            used = (q.used[slot >> 6] >> (slot & 63)) & 1
            page = q.page_at[slot]
            q.page_at[free] = page
            q.last[page] = free
            q.used[free >> 6] = (q.used[free >> 6] & ~(ONE << (free & 63))) | (used << (free & 63))
            free += 1
    for word in range(len(q.taken)):
        bits = min(max(free - (word << 6), 0), 64)
        mask = -1 if bits == 64 else (1 << bits) - 1
        q.taken[word] = mask
        q.used[word] &= mask
    q.cells[TAIL] = 0
    q.cells[NEXT] = free


@cache
def _kernels() -> tuple[Callable[..., int], Callable[..., int], Callable[..., None]]:
    return compiled(run_lru), compiled(run_fifo), compiled(renumber)


NO_OUTCOME: Final = np.empty(0, np.int64)


class Policy(ABC):
    """An eviction policy at one memory size, fed batch by batch; memory is bounded by the guest's size."""

    def __init__(self, capacity_pages: int, pages: int = 0) -> None:
        """Start with an empty memory of 1 page or more; `pages`: room for so many pages, grows."""
        if capacity_pages < 1:
            raise UsageError(f"a memory of {capacity_pages} pages", hint="give 1 page or more")
        self.capacity_pages = capacity_pages
        wide = np.int64 if max(pages, 4 * capacity_pages) >= 1 << 31 else np.int32
        slots = -(-max(LEAST_SLOTS, 4 * capacity_pages, pages) // 64) * 64
        self._queue = Queue(
            np.full(pages, NEVER, wide),
            np.empty(slots, wide),
            np.zeros(slots >> 6, np.int64),
            np.zeros(slots >> 6, np.int64),
            np.zeros(8, np.int64),
        )

    def feed(self, pages: ArrayLike, ops: ArrayLike | None = None) -> Self:
        """Take the next references (touches and forgets)."""
        self._feed(pages, ops, NO_OUTCOME)
        return self

    def outcomes(self, pages: ArrayLike, ops: ArrayLike | None = None) -> NDArray[np.int64]:
        """Take the next references and return for each HIT, FILLED or the page that it evicted.

        >>> from tracekit.replay.missratio import Lru
        >>> Lru(2).outcomes([5, 6, 5, 7])  # two fill the memory, 5 hits, 7 evicts 6
        array([-2, -2, -1,  6])
        """
        outcome = np.empty(np.size(pages), np.int64)
        self._feed(pages, ops, outcome)
        return outcome

    def _feed(self, pages: ArrayLike, ops: ArrayLike | None, outcome: NDArray[np.int64]) -> None:
        page, op, top = as_references(pages, ops, allowed=FORGET)
        if top > len(self._queue.last):
            self._grow(max(top, min(2 * len(self._queue.last), top + (1 << 20))))
        begin = 0
        while begin < len(page):
            begin += self._run(page[begin:], op[begin:], outcome[begin:])
            if begin < len(page):
                _kernels()[2](self._queue)

    def _grow(self, pages: int) -> None:
        q = self._queue
        wide = np.int64 if pages >= 1 << 31 else q.last.dtype
        last = np.full(pages, NEVER, wide)
        last[: len(q.last)] = q.last
        self._queue = q._replace(last=last, page_at=q.page_at.astype(wide, copy=False))

    @abstractmethod
    def _run(self, pages: NDArray[np.int64], ops: NDArray[np.uint8], outcome: NDArray[np.int64]) -> int: ...

    @property
    def references(self) -> int:
        """Touches so far."""
        return int(self._queue.cells[REFERENCES])

    @property
    def misses(self) -> int:
        """Touches of pages that were not resident."""
        return int(self._queue.cells[MISSES])

    @property
    def cold(self) -> int:
        """Misses that no memory could have avoided: first uses, and uses after the page was given back."""
        return int(self._queue.cells[COLD])

    @property
    def refaults(self) -> int:
        """Misses of pages that had been evicted: with swapping, the swap-ins."""
        return self.misses - self.cold

    @property
    def resident(self) -> int:
        """Pages resident now."""
        return int(self._queue.cells[RESIDENT])


class Lru(Policy):
    """Evicts the page used least recently.

    >>> from tracekit.replay.missratio import Lru
    >>> memory = Lru(2).feed([1, 2, 1, 3, 2])  # 3 evicts 2, 2 evicts 1
    >>> memory.misses, memory.cold, memory.refaults
    (4, 3, 1)
    """

    def __init__(self, capacity_pages: int, pages: int = 0) -> None:
        """Start empty."""
        super().__init__(capacity_pages, pages)
        self._scratch = np.empty(CHUNK, np.int64)

    def _run(self, pages: NDArray[np.int64], ops: NDArray[np.uint8], outcome: NDArray[np.int64]) -> int:
        return _kernels()[0](pages, ops, self.capacity_pages, self._queue, self._scratch, outcome)


class Fifo(Policy):
    """Evicts the page that came in first: nothing that it knows of use helps it.

    Not a proven worst case (no policy that may look at use is bounded by it), but what a limit costs
    when recency is worth nothing.

    >>> from tracekit.replay.missratio import Fifo
    >>> Fifo(2).feed([1, 2, 1, 3, 1]).misses  # 3 evicts 1 although it was just used
    4
    """

    def _run(self, pages: NDArray[np.int64], ops: NDArray[np.uint8], outcome: NDArray[np.int64]) -> int:
        return _kernels()[1](pages, ops, self.capacity_pages, False, self._queue, outcome)


class Clock(Policy):
    """Evicts the page that came in first and was not used since; those used get a second chance.

    The fault itself does not count as a use (as in libCacheSim's one-bit Clock).

    >>> from tracekit.replay.missratio import Clock
    >>> Clock(2).feed([1, 2, 1, 3, 1]).misses  # 1 was used: 3 evicts 2
    3
    """

    def _run(self, pages: NDArray[np.int64], ops: NDArray[np.uint8], outcome: NDArray[np.int64]) -> int:
        return _kernels()[1](pages, ops, self.capacity_pages, True, self._queue, outcome)
