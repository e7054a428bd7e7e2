"""Free memory in aligned groups of pages: once a whole group has been free for a delay, it may be taken.

This is what the buddy allocator shows to page reporting: a group of 2^order pages is free when each of
its pages is. A mechanism that uses it has `FREE_WORDS` words per page (its `page_words`) and
`FREE_BLOCK_WORDS` per block.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tracekit.replay import events as ev
from tracekit.replay.accounts import HYPERCALLS, RANGES, TALLIES, UNMAPS, count
from tracekit.replay.events import BLOCK_PAGES
from tracekit.replay.jit import hot, int64, prefetch, rare
from tracekit.replay.mechanisms import Own
from tracekit.replay.pages import (
    C_BACKED,
    C_TAKEN,
    C_UNMAPPED,
    CLOCK_BIN_SHIFT,
    CLOCK_END,
    CURVE_BINS,
    GUEST_FREE,
    HOLD_BITS,
    OWNER_MASK,
    OWNER_SHIFT,
    World,
    drop,
    drop_pages,
)

__all__ = [
    "CALM_UNLESS_FREE",
    "COUNT_BITS",
    "FREE_BLOCK_WORDS",
    "FREE_WORDS",
    "LAST_TIME",
    "costs_of_taking",
    "fetch_group",
    "note_free",
    "note_used",
    "take_all_due",
    "take_at",
    "take_due",
    "take_unused",
]

FREE_WORDS: Final = 1
"""Words of a page: word g is that of group g, so that large groups need few of them."""
FREE_BLOCK_WORDS: Final = BLOCK_PAGES // 32
"""Words of a block: a bit for each page says that it is free."""
CALM_UNLESS_FREE: Final[Mapping[int, int]] = {
    **dict.fromkeys((*ev.CALM_FAULTS, ev.CALM_ACCESSED), GUEST_FREE),
    ev.CALM_ALLOC: 0,
}
"""What `Mechanism.calm` gives: a page that is not free in the guest is in no group that may be taken. One
that is freed again counts: a fault may have said since that it is used."""
COUNT_BITS: Final = 10
COUNT: Final = (1 << COUNT_BITS) - 1  # of a group's word: how many of its pages are free
# Above: 1 + the time at which it may be taken; 0 = not at all. Beyond the last time: never.
LAST_TIME: Final = 1 << 52


@hot
def fetch_group(m: Own, page: int, order: int) -> None:
    """Call into the cache what the functions here read of a page."""
    prefetch(m.page, page >> order)
    prefetch(m.block, page >> 5)


@hot
def note_free(m: Own, page: int, order: int, due: int) -> None:
    """A page was freed; if its whole group is free with it, the group may be taken at `due`."""
    bit = 1 << (page & 31)
    if m.block[page >> 5] & bit == 0:
        m.block[page >> 5] |= bit
        m.page[page >> order] += 1
        if m.page[page >> order] & COUNT == 1 << order:
            m.page[page >> order] = (max(min(due + 1, LAST_TIME), 0) << COUNT_BITS) | (1 << order)


@hot
def note_used(m: Own, page: int, order: int) -> None:
    """A page was allocated: its group is not free any more."""
    bit = 1 << (page & 31)
    if m.block[page >> 5] & bit != 0:
        m.block[page >> 5] &= ~bit
        m.page[page >> order] = (m.page[page >> order] & COUNT) - 1


@hot
def take_due(s: World, page: int, w: int, now: int, m: Own, me: int, order: int) -> int:
    """Take the group of a page if it was due before `now`, at its due time; return the page's new word."""
    due = (m.page[page >> order] >> COUNT_BITS) - 1
    if due < 0 or due > now:
        return w
    s.words[page] = w
    _take_group(s, page >> order, due, m, me, order)
    return int64(s.words[page])  # type: ignore[no-any-return]


@rare
def _take_group(s: World, group: int, due: int, m: Own, me: int, order: int) -> None:
    m.page[group] &= COUNT
    taken = drop_pages(s, group << order, (group + 1) << order, due, me)
    count(s, me, RANGES, 1)
    count(s, me, UNMAPS, taken)


def take_all_due(s: World, m: Own, me: int, order: int) -> None:
    """Take the groups that were due by the end and that nothing came back to."""
    heads = m.page[: len(s.words) >> order]
    due = (heads >> COUNT_BITS) - 1
    end = int(s.clock[CLOCK_END]) - int(s.shift.max(initial=0))
    words = s.words.reshape(-1, 1 << order)
    groups = np.flatnonzero((due >= 0) & (due <= end))
    group_of, page = np.nonzero(words[groups] & C_BACKED)
    ranges = int(s.tally[me * TALLIES + RANGES]) + len(groups)
    take_at(s, (groups[group_of] << order) + page, due[groups][group_of], me)
    s.tally[me * TALLIES + RANGES] = ranges
    heads[groups] &= COUNT


def costs_of_taking(tally: NDArray[np.int64], *, whole_blocks: bool) -> Mapping[str, Mapping[str, float]]:
    """Price hypercalls and discards: of whole blocks as large pages, or page by page."""
    unmapped = {"unmap_2m": float(tally[RANGES])} if whole_blocks else {"unmap_4k": float(tally[UNMAPS])}
    return {"host_cpu_background": unmapped, "hypercall_time": {"hypercall": float(tally[HYPERCALLS])}}


def take_unused(s: World, m: Own, me: int, delay: int, end: int) -> None:
    """Take the pages whose last use, at m.page - 1, is `delay` before the end: one range each."""
    for page in range(len(s.words)):
        due = m.page[page] - 1 + delay
        if m.page[page] > 0 and due <= end and s.words[page] & C_BACKED:
            s.words[page] = drop(s, int64(s.words[page]), due, me)
            count(s, me, RANGES, 1)
            count(s, me, UNMAPS, 1)


def take_at(s: World, pages: NDArray[np.int64], times: NDArray[np.int64], me: int) -> None:
    """Take many backed pages at their times, all at once: `drop` for arrays; one range each."""
    times = np.maximum(times, 0)
    s.resident[0] -= len(pages)
    s.hold[0] -= (times >> HOLD_BITS).sum()
    s.hold[1] -= (times & ((1 << HOLD_BITS) - 1)).sum()
    bins = np.minimum(times >> s.clock[CLOCK_BIN_SHIFT], CURVE_BINS - 1)
    s.curve[:] -= np.bincount(bins, minlength=CURVE_BINS).astype(np.int64)
    s.words[pages] = (s.words[pages] & ~(C_BACKED | C_UNMAPPED | OWNER_MASK)) | C_TAKEN | (me << OWNER_SHIFT)
    count(s, me, RANGES, len(pages))
    count(s, me, UNMAPS, len(pages))
