"""Many delays in one walk, for what is taken by groups of pages that were free (`freeing`, `delays`).

Of a group taken whole single pages come back at other times than the rest, so a page needs to know which
settings have taken it, not only how many: a bit for each. m.page holds as many words of groups as there are
pages, then the bits of each page. Where `freeing` keeps when a group is due there stands since when it is
free, above its rank: how many settings have taken it since then.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tracekit.replay import events as ev
from tracekit.replay.delays import delay_of, give_back, table_of, take, uses_again
from tracekit.replay.events import Event
from tracekit.replay.freeing import COUNT_BITS, LAST_TIME, fetch_group, note_free, note_used
from tracekit.replay.index import VM_SHIFT
from tracekit.replay.jit import compiled_for, hot, int64, prefetch
from tracekit.replay.mechanisms import Own, Setup
from tracekit.replay.pages import C_BACKED, CLOCK_END, World, gfn_of

__all__ = ["LAST", "MOST", "WORDS", "event", "fault", "fetch", "finish", "look", "setup"]

WORDS: Final = 2
"""Words of a page."""
RANK_BITS: Final = 6
RANK: Final = (1 << RANK_BITS) - 1
MOST: Final = 60
"""Settings in a walk at most: a rank has 6 bits, and the bits of a page are one word."""
LAST: Final = LAST_TIME >> RANK_BITS + 1
"""A trace must end before this time (ns)."""

REFAULT: Final = ev.EPT * ev.LEVELS + 1
"""The class of a fault on a page that was dropped."""
GFN_OF_VM: Final = (1 << VM_SHIFT) - 1

# m.par
ORDER, FIRST_GFN = range(2)


@hot
def fetch(page: int, m: Own) -> None:
    """Call into the cache what is known of the page and its group."""
    fetch_group(m, page, int(m.par[ORDER]))
    prefetch(m.page, (len(m.page) >> 1) + page)


@hot
def fault(s: World, e: Event, w: int, verdict: int, service: int, m: Own, me: int) -> tuple[int, int, int]:
    """A page that faults is in use."""
    note_used(m, e.page, int(m.par[ORDER]))
    return w, verdict, service


@hot
def event(s: World, e: Event, w: int, m: Own, me: int) -> int:
    """Follow what is free, and since when."""
    if e.op == ev.FREE and gfn_of(s, e.page) & GFN_OF_VM >= m.par[FIRST_GFN]:
        note_free(m, e.page, int(m.par[ORDER]), (e.end + 1 << RANK_BITS) - 1)
    elif e.op == ev.ALLOC:
        note_used(m, e.page, int(m.par[ORDER]))
    return w


@hot
def take_group(s: World, group: int, page: int, w: int, until: int, m: Own) -> None:
    """Take a group for all settings whose delay has passed since it is free; `w` is the word of `page`."""
    known = m.page[group] >> COUNT_BITS
    since, rank = (known >> RANK_BITS) - 1, known & RANK
    if known == 0 or since + delay_of(m, rank) > until:
        return
    order = int(m.par[ORDER])
    bits = (len(m.page) >> 1) + (group << order)
    first = rank
    while since + delay_of(m, rank) <= until:
        taken = 0
        for k in range(1 << order):
            p = (group << order) + k
            word = w if p == page else int64(s.words[p])
            if word & C_BACKED and not m.page[bits + k] >> rank & 1:
                taken += 1
        take(s, m, rank, since + delay_of(m, rank), taken)
        rank += 1
    for k in range(1 << order):
        p = (group << order) + k
        word = w if p == page else int64(s.words[p])
        if word & C_BACKED:
            m.page[bits + k] |= (1 << rank) - (1 << first)
    m.page[group] += rank - first << COUNT_BITS


@hot
def look(s: World, e: Event, w: int, m: Own, me: int) -> int:
    """Take the group for all settings whose delay has passed; give the page back to all if it is used."""
    take_group(s, e.page >> int(m.par[ORDER]), e.page, w, e.start, m)
    bits = (len(m.page) >> 1) + e.page
    taken = m.page[bits]
    if taken != 0 and uses_again(e):
        m.page[bits] = 0
        begin = 0
        while taken != 0:  # one run of settings after another
            while not taken & 1:
                taken >>= 1
                begin += 1
            end = begin
            while taken & 1:
                taken >>= 1
                end += 1
            give_back(s, m, e, end, 1)
            if begin > 0:
                give_back(s, m, e, begin, -1)
            begin = end
    return w


def _take_all(s: World, m: Own, end: int) -> None:
    for group in range(len(s.words) >> int(m.par[ORDER])):
        if m.page[group] >> COUNT_BITS:
            take_group(s, group, -1, 0, end, m)


def setup(order: int, first_gfn: float, delays: Sequence[float], lanes: int) -> Setup:
    """Return the arrays for groups of 2^order pages from a gfn on, and these delays (ns, rising)."""
    return Setup(par=[order, first_gfn], ints=table_of(delays, lanes, REFAULT))


def finish(s: World, m: Own, me: int) -> None:
    """Take the groups that were due by the end of the trace."""
    compiled_for(len(s.words) >> int(m.par[ORDER]), _take_all)(s, m, int(s.clock[CLOCK_END]))
