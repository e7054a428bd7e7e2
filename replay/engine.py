"""The event loop: one recorded event after another, in two worlds at once.

`make_drive` closes over the four functions of a chain; the loop it returns runs as plain Python (the
oracle) or compiled. The closed loop keeps each lane's think time and replaces its service times: when a
fault gets shorter, everything later on that lane happens earlier by the same amount.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tracekit.replay import events as ev
from tracekit.replay import pages as pg
from tracekit.replay.accounts import (
    DEFERRED,
    HIT,
    KEPT,
    PREFAULTS_UNUSED,
    REFAULT,
    SHORTENED,
    SKIPPED,
    add_fault,
    advance,
    book_fault,
    count,
    saved_span,
)
from tracekit.replay.events import Columns, Event
from tracekit.replay.jit import hot, int64, prefetch
from tracekit.replay.pages import World

__all__ = ["make_drive"]

AHEAD: Final = 24
"""Events ahead whose page words are called into the cache: a miss costs as much as several events."""


@hot
def found_there(w: int) -> int:
    """Return the word of a page that the recording shows to be backed."""
    return (w | pg.B_BACKED | pg.SEEN) & ~(pg.B_SWAPPED | pg.DROPPED)


@hot
def touch(s: World, w: int, end: int, spared: bool) -> int:
    """Apply a recorded fault to one page: backed in the baseline, and in the counterfactual from `end` on."""
    w = found_there(w) & ~pg.B_UNMAPPED
    if spared:
        return w
    if not w & pg.C_BACKED:
        return pg.back(s, w, end, 0)
    return w & ~pg.C_UNMAPPED


@hot
def at_first_touch(s: World, w: int, bits: int, latency: int) -> tuple[int, int, int]:
    """Return verdict, who gets the credit, and service time of a fault on a page new to the baseline.

    A page that is only in the host's page table still makes the guest exit, for as long as that takes.
    """
    if not w & pg.C_BACKED:
        return KEPT, 0, latency
    if not w & pg.C_UNMAPPED or bits & ev.ON_HOST:
        return HIT, pg.owner_of(w), 0
    service = int64(s.cost[ev.BACKED_AHEAD])
    if service < latency:
        return SHORTENED, pg.owner_of(w), service
    return KEPT, 0, latency


@hot
def use_anew(s: World, w: int, e: Event) -> int:
    """Use a page that the baseline has and the counterfactual has not: a fault that was not recorded."""
    level = 1
    taker = ev.EPT_MAJOR if w & pg.C_SWAPPED else ev.EPT
    cls = taker * ev.LEVELS + level
    ns = s.cost[cls]
    reason = DEFERRED if w & pg.C_DEFERRED else REFAULT
    who = pg.owner_of(w)
    add_fault(s, e.lane, who, reason, cls, ns)
    advance(s, e.lane, -ns)
    return pg.back(s, w, e.end + ns, 0)


@hot
def run_ahead(s: World, lane: int, t: int, gap: int, gain: int) -> None:
    """Move the lane by what a fault got shorter (or longer: less than 0).

    Stalls of one lane that overlap in the recording are removed only once: not what lies before the `gap` (of
    `Columns`).
    """
    if gain > 0:
        gain = min(gain, gap)
        saved_span(s, t - gain, t)
    advance(s, lane, gain)


@hot
def take_away(s: World, w: int, e: Event) -> int:
    """Apply a recorded discard to one page in both worlds."""
    if w & pg.C_UNUSED:
        count(s, pg.owner_of(w), PREFAULTS_UNUSED, 1)
    w = pg.drop(s, w, e.end, 0)
    w &= ~(
        pg.B_BACKED | pg.B_SWAPPED | pg.B_UNMAPPED | pg.C_SWAPPED | pg.C_DEFERRED | pg.C_UNUSED | pg.C_TAKEN
    )
    return w | pg.DROPPED


@hot
def recorded(s: World, w: int, e: Event) -> int:
    """Apply the recorded effect of an event other than a fault to one page; return its new word."""
    op = e.op
    if op == ev.DROP:
        return take_away(s, w, e)
    if op == ev.ALLOC:
        w = (w | pg.GUEST_USED) & ~(pg.GUEST_FREE | pg.ZERO_KNOWN)
        if w & pg.B_BACKED and not w & pg.C_BACKED:
            w = use_anew(s, w, e)
        return w
    if op == ev.FREE:
        return (w | pg.GUEST_FREE) & ~(pg.GUEST_USED | pg.ZERO_KNOWN)
    if op == ev.ACCESSED:
        if w & pg.B_BACKED and not w & pg.C_BACKED and w & pg.C_TAKEN:
            w = use_anew(s, w, e)
        return w
    if op == ev.UNMAP:
        return w | pg.B_UNMAPPED if w & pg.B_BACKED else w
    if op == ev.SWAP_OUT:
        if w & pg.B_BACKED:
            w = take_away(s, w, e)
            w = (w | pg.B_SWAPPED | pg.C_SWAPPED) & ~(pg.DROPPED | pg.C_READ_AT_ONCE)
            if e.bits & ev.UNWRITTEN:
                w |= pg.C_READ_AT_ONCE
        return w
    if op in (ev.POPULATE, ev.SWAP_IN):
        return pg.back(s, found_there(w), e.end, 0)
    return w


def make_drive(
    fetch: Callable[..., None],
    look: Callable[..., int],
    fault: Callable[..., Any],
    event: Callable[..., int],
    tick: Callable[..., None],
    *,
    in_order: bool = True,
) -> Callable[..., None]:
    """Return the event loop over one batch, with these hooks.

    In time order `gains` is not used. Otherwise the batch is sorted by block, the loop is open, and what each
    fault got shorter is left in `gains[row]` for `blocks.settle`.
    """

    def drive(
        c: Columns, s: World, on: int, own: Any, row: NDArray[np.int32], gains: NDArray[np.int64]
    ) -> None:
        for i in range(len(c.t)):
            ahead = int64(c.page[min(i + AHEAD, len(c.t) - 1)])
            prefetch(s.words, ahead)
            fetch(ahead, on, own)
            calm = int64(c.calm[i])
            if calm != ev.CALM_NEVER and s.words[c.page[i]] & s.calm[2 * calm] == s.calm[2 * calm + 1]:
                continue
            t, lane, op = int64(c.t[i]), int64(c.lane[i]), int64(c.op[i])
            page, n = int64(c.page[i]), int64(c.pages[i])
            bits, cls = int64(c.bits[i]), int64(c.cls[i])
            level = cls % ev.LEVELS
            mapped = pg.maps(bits, s.clock[pg.CLOCK_LEVELS])
            end = t
            if in_order:
                tick(s, t - int64(s.shift[lane]), on, own)
                end = t - int64(s.shift[lane])
            if op == ev.FAULT and not bits & ev.CONTINUED:
                measured = bits & ev.MEASURED != 0
                latency = int64(c.latency[i]) if measured else int64(s.cost[cls])
                verdict, who, service = KEPT, 0, latency
                if page >= 0:
                    e = Event(op, page, n, level, bits, lane, end - latency, end, latency)
                    w = look(s, e, int64(s.words[page]), on, own)
                    if bits & ev.PRESENT:
                        w = found_there(w)
                    if w & pg.B_BACKED:
                        if w & pg.C_TAKEN:
                            w = use_anew(s, w, e)
                    elif mapped:
                        verdict, who, service = at_first_touch(s, w, bits, latency)
                    s.words[page] = w
                    if mapped or w & pg.B_BACKED:
                        w, verdict, who, service = fault(s, e, w, verdict, who, service, on, own)
                        spared, done = verdict == SKIPPED, end - latency + service
                        s.words[page] = touch(s, w & ~pg.C_UNUSED, done, spared)
                        for p in range(page + 1, page + n):
                            e = Event(op, p, page + n - p, level, bits | ev.CONTINUED, lane, done, done, 0)
                            s.words[p] = touch(s, look(s, e, int64(s.words[p]), on, own), done, spared)
                        if verdict not in (SKIPPED, HIT) and not bits & ev.ON_HOST:
                            pg.map_around(s, page)
                        s.clock[pg.CLOCK_SPARED] = 1 if spared else 0
                book_fault(s, lane, who, verdict, cls, latency, measured, service)
                if latency != service:
                    if in_order:
                        run_ahead(s, lane, t, int64(c.gap[i]), latency - service)
                    else:
                        gains[row[i]] = latency - service
            elif page >= 0:
                spared = op == ev.FAULT and s.clock[pg.CLOCK_SPARED] != 0
                for p in range(page, page + n):
                    e = Event(op, p, page + n - p, level, bits, lane, end, end, 0)
                    w = look(s, e, int64(s.words[p]), on, own)
                    if op == ev.FAULT:
                        s.words[p] = touch(s, w, end, spared) if mapped or w & pg.B_BACKED else w
                    else:
                        s.words[p] = recorded(s, event(s, e, w, on, own), e)
                    bits |= ev.CONTINUED

    return drive
