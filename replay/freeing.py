"""Free memory in aligned groups of pages: once a whole group has been free for a delay, it may be taken.

This is what the buddy allocator shows to page reporting: a group of 2^order pages is free when each of
its pages is. A mechanism that uses it has `FREE_WORDS` words per page (its `page_words`).
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from tracekit.replay.accounts import RANGES, TALLIES, UNMAPS, count
from tracekit.replay.jit import hot
from tracekit.replay.mechanisms import Own
from tracekit.replay.pages import (
    C_BACKED,
    C_TAKEN,
    C_UNMAPPED,
    CLOCK_BIN_SHIFT,
    CLOCK_END,
    CURVE_BINS,
    OWNER_MASK,
    OWNER_SHIFT,
    World,
    drop,
)

__all__ = ["FREE_WORDS", "note_free", "note_used", "take_all_due", "take_at", "take_due"]

FREE_WORDS: Final = 3
FREE: Final = 0  # of a page: 1 = free
FREE_PAGES: Final = 1  # of a group's first page: how many of its pages are free
DUE: Final = 2  # of a group's first page: 1 + the time at which it may be taken; 0 = not at all


@hot
def note_free(m: Own, page: int, group: int, due: int) -> None:
    """A page was freed; if its whole group is free with it, the group may be taken at `due`."""
    head = (page - page % group) * FREE_WORDS
    if m.page[page * FREE_WORDS + FREE] == 0:
        m.page[page * FREE_WORDS + FREE] = 1
        m.page[head + FREE_PAGES] += 1
        if m.page[head + FREE_PAGES] == group:
            m.page[head + DUE] = due + 1


@hot
def note_used(m: Own, page: int, group: int) -> None:
    """A page was allocated: its group is not free any more."""
    head = (page - page % group) * FREE_WORDS
    if m.page[page * FREE_WORDS + FREE] != 0:
        m.page[page * FREE_WORDS + FREE] = 0
        m.page[head + FREE_PAGES] -= 1
        m.page[head + DUE] = 0


@hot
def take_due(s: World, page: int, w: int, now: int, m: Own, me: int, group: int) -> int:
    """Take the group of a page if it was due before `now`, at its due time; return the page's new word."""
    head = page - page % group
    due = m.page[head * FREE_WORDS + DUE] - 1
    if due < 0 or due > now:
        return w
    m.page[head * FREE_WORDS + DUE] = 0
    taken = 0
    for p in range(head, head + group):
        word = w if p == page else s.words[p]
        if word & C_BACKED:
            word = drop(s, word, due, me)
            taken += 1
        if p == page:
            w = word
        else:
            s.words[p] = word
    count(s, me, RANGES, 1)
    count(s, me, UNMAPS, taken)
    return w


def take_all_due(s: World, m: Own, me: int, group: int) -> None:
    """Take the groups that were due by the end and that nothing came back to."""
    pages = len(s.words)
    heads = m.page[: pages * FREE_WORDS].reshape(-1, group, FREE_WORDS)[:, 0, DUE]
    end = int(s.clock[CLOCK_END]) - int(s.shift.max(initial=0))
    words = s.words.reshape(-1, group)
    groups = np.flatnonzero((heads > 0) & (heads - 1 <= end))
    group_of, page = np.nonzero(words[groups] & C_BACKED)
    ranges = int(s.tally[me * TALLIES + RANGES]) + len(groups)
    take_at(s, groups[group_of] * group + page, heads[groups][group_of] - 1, me)
    s.tally[me * TALLIES + RANGES] = ranges
    heads[groups] = 0


def take_at(s: World, pages: NDArray[np.int64], times: NDArray[np.int64], me: int) -> None:
    """Take many backed pages at their times, all at once: `drop` for arrays; one range each."""
    times = np.maximum(times, 0)
    s.resident[1] -= len(pages)
    s.hold[1] -= float(times.astype(np.float64).sum())
    bins = np.minimum(times >> s.clock[CLOCK_BIN_SHIFT], CURVE_BINS - 1)
    s.curve[CURVE_BINS:] -= np.bincount(bins, minlength=CURVE_BINS).astype(np.int64)
    s.words[pages] = (s.words[pages] & ~(C_BACKED | C_UNMAPPED | OWNER_MASK)) | C_TAKEN | (me << OWNER_SHIFT)
    count(s, me, RANGES, len(pages))
    count(s, me, UNMAPS, len(pages))
