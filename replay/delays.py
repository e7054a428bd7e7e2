"""Many delays of one mechanism in one walk: what it would have taken by now under each of them.

A mechanism that takes a page some delay after its last use, alone in an open loop, changes nothing but
which pages are there. So the pages of all settings are in the state of a replay that takes nothing, except
that those with the shortest delays have taken some: a page needs one number more, how many (its *rank*). A
page that is used again comes back for all of them at once; only taking it has a time for each.

`m.ints` holds the settings by rising delay: their number, the length of a row, the class of the faults on
what was taken, the delays, then a row for
each of what it took, then a row for each rank of what came back for all settings below.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tracekit.replay import accounts as ac
from tracekit.replay import events as ev
from tracekit.replay import pages as pg
from tracekit.replay.events import Event
from tracekit.replay.jit import compiled_for, hot, int64, prefetch
from tracekit.replay.mechanisms import Own, Setup
from tracekit.replay.pages import CURVE_BINS, World

__all__ = [
    "LAST_TIME",
    "MOST",
    "delay_of",
    "fetch",
    "finish_idle",
    "give_back",
    "look_idle",
    "one_of",
    "setup_idle",
    "table_of",
    "take",
    "uses_again",
    "whole",
]

RANK_BITS: Final = 8
RANK: Final = (1 << RANK_BITS) - 1
MOST: Final = RANK
"""Settings in a walk at most: a rank has 8 bits."""
LAST_TIME: Final = 1 << 54
"""A time has the others."""
NEVER: Final = 1 << 60
HOLD_LOW: Final = (1 << pg.HOLD_BITS) - 1

USES: Final = (ev.FAULT, ev.ACCESSED, ev.ALLOC, ev.POPULATE, ev.SWAP_IN)

SETTINGS, ROW, CLASS, DELAYS = range(4)
# A row: ranges and pages, the two limbs of World.hold; of a rank, pages taken by idle time and the limbs of
# their last uses; the curve, and what of it came back only to be taken away in the recording; then refaults
# by lane.
RANGES, PAGES, HOLD, IDLE, LAST_USE, CURVE = 0, 1, 2, 4, 5, 7
GONE: Final = CURVE + CURVE_BINS
LANES: Final = GONE + CURVE_BINS


def whole(delay: float) -> int:
    """Return a delay in whole ns; a very long one never passes."""
    return int(min(delay, NEVER))


def table_of(delays: Sequence[float], lanes: int, cls: int) -> NDArray[np.int64]:
    """Return `m.ints` for these delays (ns, rising), and for the class of the faults on what was taken.

    After the last delay stands one that never passes.
    """
    row = LANES + lanes
    head = [len(delays), row, cls, *map(whole, delays), NEVER]
    return np.concatenate([np.array(head, np.int64), np.zeros(2 * len(delays) * row, np.int64)])


@hot
def delay_of(m: Own, rank: int) -> int:
    """Return the delay of the setting above so many others."""
    return int64(m.ints[DELAYS + rank])  # type: ignore[no-any-return]


@hot
def row_of(m: Own, number: int) -> int:
    """Return where a row begins: of the settings, then of the ranks from 1 on."""
    return int64(DELAYS + m.ints[SETTINGS] + 1 + number * m.ints[ROW])  # type: ignore[no-any-return]


@hot
def bin_of(s: World, t: int) -> int:
    """Return the place in a row of the curve's bin at a time."""
    return int64(CURVE + min(max(t, 0) >> s.clock[pg.CLOCK_BIN_SHIFT], CURVE_BINS - 1))  # type: ignore[no-any-return]


@hot
def _change(s: World, m: Own, at: int, t: int, n: int) -> None:
    late = t > s.clock[pg.CLOCK_LATEST]
    t = min(t, s.clock[pg.CLOCK_LATEST])
    m.ints[at + PAGES] += n
    m.ints[at + HOLD] += n * (t >> pg.HOLD_BITS)
    m.ints[at + HOLD + 1] += n * (t & HOLD_LOW)
    if not late:
        m.ints[at + bin_of(s, t)] += n


@hot
def take(s: World, m: Own, setting: int, t: int, n: int) -> None:
    """Let a setting take `n` pages, one range, at time `t`."""
    at = row_of(m, setting)
    m.ints[at + RANGES] += 1
    _change(s, m, at, t, n)


@hot
def uses_again(e: Event) -> bool:
    """Say whether the event ends that a page is taken."""
    return e.op in (ev.FAULT, ev.ALLOC, ev.ACCESSED, ev.DROP, ev.SWAP_OUT, ev.POPULATE, ev.SWAP_IN)


@hot
def give_back(s: World, m: Own, e: Event, rank: int, n: int) -> None:
    """Book for all settings below the rank that the event ended that `n` pages are taken.

    A use is a fault that was not recorded. Where the recording shows that the host backed a page or took it
    away, the settings that took it have it, or have it no more, as the others do.
    """
    fault = e.op in (ev.ALLOC, ev.ACCESSED) or (e.op == ev.FAULT and not e.bits & ev.CONTINUED)
    at = row_of(m, m.ints[SETTINGS] + rank - 1)
    _change(s, m, at, e.end + s.cost[m.ints[CLASS]] if fault else e.end, n)
    if fault:
        m.ints[at + LANES + e.lane] += n
    elif e.op in (ev.DROP, ev.SWAP_OUT):
        m.ints[at + GONE + bin_of(s, e.end) - CURVE] += n


@hot
def _note_idle(m: Own, rank: int, last: int, n: int) -> None:
    """Book that all settings below the rank take `n` pages whose last use was at `last`."""
    at = row_of(m, m.ints[SETTINGS] + rank - 1)
    m.ints[at + IDLE] += n
    m.ints[at + LAST_USE] += n * (last >> pg.HOLD_BITS)
    m.ints[at + LAST_USE + 1] += n * (last & HOLD_LOW)


@hot
def take_passed(s: World, m: Own, last: int, rank: int, until: int) -> int:
    """Take a page for all settings whose delay since `last` has passed; return its new rank.

    All that a setting needs for itself is in which bin of the curve: the rest follows from its delay.
    """
    begin = rank
    due = last + delay_of(m, rank)
    while due <= until:
        m.ints[row_of(m, rank) + bin_of(s, due)] += 1
        rank += 1
        due = last + delay_of(m, rank)
    if rank > begin:
        _note_idle(m, rank, last, 1)
        if begin > 0:
            _note_idle(m, begin, last, -1)
    return rank


@hot
def fetch(page: int, m: Own) -> None:
    """Call what is known of the page into the cache."""
    prefetch(m.page, page)


@hot
def look_idle(s: World, e: Event, w: int, m: Own, me: int) -> int:
    """Take the page for all settings whose delay has passed, and note this use.

    m.page holds 1 + the time of the last use, above the rank.
    """
    last, rank = m.page[e.page] >> RANK_BITS, m.page[e.page] & RANK
    if last > 0 and w & pg.C_BACKED:
        rank = take_passed(s, m, last - 1, rank, e.start)
    if rank > 0 and uses_again(e):
        give_back(s, m, e, rank, 1)
        rank = 0
    if e.op in USES:
        last = max(e.end, 0) + 1
    m.page[e.page] = last << RANK_BITS | rank
    return w


def _rest_idle(s: World, m: Own, end: int) -> None:
    """Take what nothing came back to by the end."""
    for page in range(len(s.words)):
        last = m.page[page] >> RANK_BITS
        if last > 0 and s.words[page] & pg.C_BACKED:
            take_passed(s, m, last - 1, m.page[page] & RANK, end)


def setup_idle(delays: Sequence[float], lanes: int) -> Setup:
    """Return the arrays for these idle times (ns, rising)."""
    return Setup(ints=table_of(delays, lanes, ev.SWAPPED))


def finish_idle(s: World, m: Own, me: int) -> None:
    """Take what nothing came back to by the end of the trace."""
    compiled_for(len(s.words), _rest_idle)(s, m, int(s.clock[pg.CLOCK_END]))


def one_of(s: World, m: Own, me: int, setting: int) -> World:
    """Return the world of one setting; its words are those of a replay that takes nothing.

    The limbs of `hold` may carry differently from those of that replay alone: their sum is the same.
    """
    cls = int(m.ints[CLASS])
    settings = int(m.ints[SETTINGS])
    rows = m.ints[row_of(m, 0) :].reshape(2, settings, -1)
    taken, back = rows[0, setting].copy(), rows[1, setting:].sum(axis=0)
    idle, delay = int(back[IDLE]), int(delay_of(m, setting))
    taken[RANGES : PAGES + 1] += idle
    taken[HOLD : HOLD + 2] += back[LAST_USE : LAST_USE + 2]
    taken[HOLD : HOLD + 2] += np.array([idle * (delay >> pg.HOLD_BITS), idle * (delay & HOLD_LOW)])
    refaults, ns = back[LANES:], int(s.cost[cls])
    tally, added, histogram, by_lane = (a.copy() for a in (s.tally, s.added, s.histogram, s.by_lane))
    tally[me * ac.TALLIES + ac.RANGES] += taken[RANGES]
    tally[me * ac.TALLIES + ac.UNMAPS] += taken[PAGES]
    at = ((me * ac.REASONS + ac.REFAULT) * ev.CLASSES + cls) * 2
    added[at : at + 2] += int(refaults.sum()) * np.array([1, ns])
    histogram[ac.histogram_cell(ns)] += refaults.sum()
    by_lane[ac.LANE_FAULTS_SAVED :: ac.LANE_CELLS] -= refaults
    by_lane[ac.LANE_STALL_SAVED :: ac.LANE_CELLS] -= refaults * ns
    clock = s.clock.copy()
    clock[pg.CLOCK_ADDED] += refaults.sum()
    change = back - taken
    return s._replace(
        shift=s.shift.copy(),
        resident=s.resident + change[PAGES],
        hold=s.hold + change[HOLD : HOLD + 2],
        curve=s.curve + change[CURVE:GONE],
        gains=s.gains + back[CURVE:GONE] - back[GONE:LANES],
        faults=s.faults.copy(),
        added=added,
        tally=tally,
        histogram=histogram,
        by_lane=by_lane,
        spans=s.spans.copy(),
        clock=clock,
    )
