"""swap: the host holds at most `limit_mib` of guest memory; the rest goes to a device and is waited for.

When a page is to be backed and the host is at the limit, a page goes first: the one least recently seen in
use (value), the one that came first (low: FIFO), or the one whose next seen use is furthest (high: Belady's
MIN). Swap-ins are faults on the vCPU's path at the price of `device`. Who evicts: with `reclaim=direct`, the
task that faults, before its fault is done (a limit of its own: Linux's try_charge() of the memory cgroup);
with `background`, the host beside the guest (kswapd, as long as it keeps up).

Uses of mapped pages that nothing sampled are not in a trace. Any eviction has at least as many swap-ins as
MIN has on the uses that are seen, so *high* is a bound; the other end is not: a page in constant, invisible
use looks idle. Without access samples (DAMON) there is no bound at that end. Every page is written
out, changed or not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tracekit.replay import events as ev
from tracekit.replay.accounts import (
    REFAULT,
    SKIPPED,
    TALLIES,
    UNMAPS,
    UNMAPS_ON_PATH,
    add_fault,
    advance,
    count,
    wait,
)
from tracekit.replay.events import Event
from tracekit.replay.jit import hot, prefetch
from tracekit.replay.mechanisms import Context, Mechanism, Own, Param, Setup, Stage
from tracekit.replay.pages import (
    B_BACKED,
    C_BACKED,
    C_READ_AT_ONCE,
    C_TAKEN,
    World,
    back,
    drop,
    owner_of,
)
from tracekit.replay.swapping import DEVICES, mark_of, swap_in_cost, swap_out_cost
from tracekit.replay.timeline import Timeline
from tracekit.trace.schema import PAGE_BYTES

__all__ = ["MECHANISM"]

LRU, FIFO, MIN = range(3)
# m.par
ORDER, LIMIT, SWAP_IN, SWAP_OUT, MARKS = range(5)
# m.ints: ends of the list (+ 1), uses so far, whether the last fault was spared, pages in the heap; then
# (MIN only) for each use the number of the page's next one.
HEAD, TAIL, USES, SPARED, HEAP_SIZE, NEXT_USE = range(6)
# Words of a page. LRU, FIFO: its neighbours in the list, + 1, and whether it is in it. MIN: its next use, its
# place in the heap + 1, and, as cell k of a heap as long as there are pages, the page in place k.
BEFORE, AFTER, LISTED, WORDS = range(4)
KEY, PLACE, HEAP = range(3)
NO_MORE: Final = np.iinfo(np.int64).max


@hot
def link(m: Own, page: int) -> None:
    """Put a page at the end of the list: it goes last."""
    last = m.ints[TAIL]
    m.page[page * WORDS + BEFORE] = last
    m.page[page * WORDS + AFTER] = 0
    m.page[page * WORDS + LISTED] = 1
    if last > 0:
        m.page[(last - 1) * WORDS + AFTER] = page + 1
    else:
        m.ints[HEAD] = page + 1
    m.ints[TAIL] = page + 1


@hot
def unlink(m: Own, page: int) -> None:
    """Take a page out of the list, if it is in it."""
    if m.page[page * WORDS + LISTED] == 0:
        return
    m.page[page * WORDS + LISTED] = 0
    earlier, later = m.page[page * WORDS + BEFORE], m.page[page * WORDS + AFTER]
    if earlier > 0:
        m.page[(earlier - 1) * WORDS + AFTER] = later
    else:
        m.ints[HEAD] = later
    if later > 0:
        m.page[(later - 1) * WORDS + BEFORE] = earlier
    else:
        m.ints[TAIL] = earlier


@hot
def put_in(m: Own, place: int, page: int) -> None:
    """Write a page into a place of the heap."""
    m.page[place * WORDS + HEAP] = page
    m.page[page * WORDS + PLACE] = place + 1


@hot
def settle(m: Own, place: int, page: int) -> None:
    """Move a page up or down from a place of the heap until the furthest next use is on top."""
    key = m.page[page * WORDS + KEY]
    while place > 0:
        above = m.page[(place - 1) // 2 * WORDS + HEAP]
        if m.page[above * WORDS + KEY] >= key:
            break
        put_in(m, place, above)
        place = (place - 1) // 2
    size = m.ints[HEAP_SIZE]
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        below = m.page[child * WORDS + HEAP]
        if child + 1 < size:
            other = m.page[(child + 1) * WORDS + HEAP]
            if m.page[other * WORDS + KEY] > m.page[below * WORDS + KEY]:
                child, below = child + 1, other
        if m.page[below * WORDS + KEY] <= key:
            break
        put_in(m, place, below)
        place = child
    put_in(m, place, page)


@hot
def out_of_heap(m: Own, page: int) -> None:
    """Take a page out of the heap, if it is in it."""
    place = m.page[page * WORDS + PLACE] - 1
    if place < 0:
        return
    m.page[page * WORDS + PLACE] = 0
    m.ints[HEAP_SIZE] -= 1
    last = m.page[m.ints[HEAP_SIZE] * WORDS + HEAP]
    if last != page:
        settle(m, place, last)


@hot
def forget(m: Own, page: int) -> None:
    """A page is not the host's to evict any more."""
    if m.par[ORDER] == MIN:
        out_of_heap(m, page)
    else:
        unlink(m, page)


@hot
def victim(m: Own) -> int:
    """Return the page that goes next, taken out of its order; -1 = none."""
    page = m.ints[HEAD] - 1
    if m.par[ORDER] == MIN and m.ints[HEAP_SIZE] > 0:
        page = m.page[HEAP]
    if page >= 0:
        forget(m, page)
    return int(page)


@hot
def note_use(m: Own, page: int) -> None:
    """A page that the host holds was seen in use."""
    order = int(m.par[ORDER])
    if order == MIN:
        m.page[page * WORDS + KEY] = m.ints[NEXT_USE + m.ints[USES] - 1]
        place = m.page[page * WORDS + PLACE] - 1
        if place < 0:
            place = m.ints[HEAP_SIZE]
            m.ints[HEAP_SIZE] += 1
        settle(m, place, page)
    elif order == LRU or m.page[page * WORDS + LISTED] == 0:
        unlink(m, page)
        link(m, page)


@hot
def make_room(s: World, page: int, at: int, m: Own, me: int) -> None:
    """Evict until this page fits under the limit with the others."""
    forget(m, page)
    while s.resident[0] >= m.par[LIMIT]:
        out = victim(m)
        if out < 0:
            return
        w = s.words[out]
        if w & C_BACKED:  # another mechanism may have taken it since
            s.words[out] = drop(s, w, at, me) | int(m.par[MARKS])
            count(s, me, UNMAPS, 1)


@hot
def make_room_on_path(s: World, e: Event, m: Own, me: int) -> None:
    """Evict for a fault: whoever faults does it, where the reclaim is direct."""
    before = s.tally[me * TALLIES + UNMAPS]
    make_room(s, e.page, e.start, m, me)
    evicted = s.tally[me * TALLIES + UNMAPS] - before
    if m.par[SWAP_OUT] > 0 and evicted > 0:
        count(s, me, UNMAPS_ON_PATH, evicted)
        wait(
            s,
            e.lane,
            me,
            (ev.HOST_MINOR if e.bits & ev.ON_HOST else ev.EPT) * ev.LEVELS + 1,
            evicted * int(m.par[SWAP_OUT]),
        )


@hot
def look(s: World, e: Event, w: int, m: Own, me: int) -> int:
    """Swap in what is used again; note uses, and make room for what an event backs."""
    if e.op not in (ev.FAULT, ev.ACCESSED, ev.ALLOC, ev.POPULATE, ev.SWAP_IN):
        return w
    m.ints[USES] += 1
    if w & C_BACKED:
        note_use(m, e.page)
    elif w & B_BACKED and w & C_TAKEN and owner_of(w) == me:
        ns = int(m.par[SWAP_IN])
        make_room_on_path(s, e, m, me)
        add_fault(s, e.lane, me, REFAULT, ev.EPT_MAJOR * ev.LEVELS + 1, ns)
        advance(s, e.lane, -ns)
        w = back(s, w, e.start + ns, 0)
        note_use(m, e.page)
    elif e.op == ev.FAULT and not e.bits & ev.CONTINUED and not w & B_BACKED:
        return w  # a first touch: `fault` sees whether it happens at all
    elif w & B_BACKED or (e.op == ev.FAULT and m.ints[SPARED] == 0) or e.op in (ev.POPULATE, ev.SWAP_IN):
        if e.op == ev.FAULT:
            make_room_on_path(s, e, m, me)
        else:
            make_room(s, e.page, e.start, m, me)
        note_use(m, e.page)
    return w


@hot
def fetch(page: int, m: Own) -> None:
    """Call what is known of the page into the cache."""
    prefetch(m.page, page * WORDS)


@hot
def fault(s: World, e: Event, w: int, verdict: int, service: int, m: Own, me: int) -> tuple[int, int, int]:
    """A recorded fault backs its page, unless it is spared altogether."""
    m.ints[SPARED] = 1 if verdict == SKIPPED else 0
    if verdict != SKIPPED:
        if not w & C_BACKED:
            make_room_on_path(s, e, m, me)
        note_use(m, e.page)
    return w & ~C_READ_AT_ONCE, verdict, service


@hot
def event(s: World, e: Event, w: int, m: Own, me: int) -> int:
    """A recorded discard or swap-out ends what this mechanism knows of the page."""
    if e.op in (ev.DROP, ev.SWAP_OUT):
        forget(m, e.page)
        w &= ~C_READ_AT_ONCE
    return w


def next_uses(timeline: Timeline) -> NDArray[np.int64]:
    """Return for each use, in the order in which a replay sees them, the number of the same page's next use.

    NO_MORE where the page is not used again, or is discarded first. Vectorised, batch by batch.
    """
    pairs: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    total = 0
    # By page: 1 + the number of its last use so far; 0 = none since the last discard.
    last = np.zeros(max(timeline.index.pages, ev.BLOCK_PAGES), np.int64)
    for c in timeline:
        use = np.isin(c.op, (ev.FAULT, ev.ACCESSED, ev.ALLOC, ev.POPULATE, ev.SWAP_IN))
        rows = np.flatnonzero((use | np.isin(c.op, (ev.DROP, ev.SWAP_OUT))) & (c.page >= 0))
        if not len(rows):
            continue
        n = c.pages[rows].astype(np.int64)
        steps = np.arange(int(n.sum()), dtype=np.int64) - np.repeat(np.cumsum(n) - n, n)
        page, uses = np.repeat(c.page[rows], n) + steps, np.repeat(use[rows], n)
        number = np.where(uses, np.cumsum(uses) + total, 0)  # 1 + its number; 0 = a discard
        total += int(uses.sum())
        order = np.argsort(page, kind="stable")
        page, number = page[order], number[order]
        opens = np.r_[True, page[1:] != page[:-1]]
        earlier = np.where(opens, last[page], np.r_[0, number[:-1]])
        last[page[np.r_[opens[1:], True]]] = number[np.r_[opens[1:], True]]
        linked = (earlier > 0) & (number > 0)
        pairs.append((earlier[linked] - 1, number[linked] - 1))
    answer = np.full(total, NO_MORE, np.int64)
    for one, following in pairs:
        answer[one] = following
    return answer


def setup(context: Context) -> Setup:
    """Take the limit and the device; look ahead where the hypothesis may."""
    order = {"low": FIFO, "high": MIN}.get(context.hypothesis, LRU)
    device = context.text("device")
    ints = np.zeros(NEXT_USE, np.int64)
    if order == MIN:
        ints = np.concatenate([ints, next_uses(context.timeline)])
    into, out = (context.profile.costs[name] for name in (swap_in_cost(device), swap_out_cost(device)))
    unmap = context.profile.costs["unmap_4k"]
    end = {"low": "high", "high": "low"}.get(context.hypothesis, "ns")
    direct = context.text("reclaim") == "direct"
    # The least that guest memory may have of the limit is the low end: more of it goes.
    limit_mib = context.number("limit_mib") - context.number("other_mib")
    if context.hypothesis == "low":
        limit_mib -= context.number("slack_mib")
    return Setup(
        par=[
            order,
            max(1.0, limit_mib * (1 << 20) / PAGE_BYTES // 1),
            round(getattr(into, end)),
            round(getattr(out, end) + getattr(unmap, end)) if direct else 0,
            mark_of(device),
        ],
        ints=ints,
    )


def costs(tally: NDArray[np.int64], context: Context) -> Mapping[str, Mapping[str, float]]:
    """Price the swap-outs that the host makes beside the guest."""
    pages = float(tally[UNMAPS] - tally[UNMAPS_ON_PATH])
    out = swap_out_cost(context.text("device"))
    return {"host_cpu_background": {"unmap_4k": pages, out: pages}}


def bounded(context: Context) -> bool:
    """Which pages a host evicts depends on uses that the trace may not hold."""
    return True


def open_below(context: Context) -> bool:
    """Without access samples the evicted pages may all be in constant, invisible use."""
    return not context.survey.counts[ev.ACCESSED]


def label(context: Context) -> str:
    """Uses that nothing sampled can only make it worse than any order of the seen ones."""
    return "assumed"


def calm(context: Context) -> Mapping[int, int]:
    """Every use counts; that a page is free does not."""
    return {ev.CALM_FREE: 0}


MECHANISM = Mechanism(
    name="swap",
    summary="the host limits the VM's memory and swaps to a device",
    stage=Stage.TAKE,
    params=(
        Param("limit_mib", 1024.0, "most guest memory that the host holds (all VMs of a trace)", "MiB", 0),
        Param("device", "nvme", "where swapped pages are", choices=DEVICES),
        Param(
            "reclaim",
            "direct",
            "who evicts: the task that faults, or the host beside it",
            choices=("direct", "background"),
        ),
        Param("other_mib", 0.0, "what else is charged to the limit: page tables, the VMM's own", "MiB", 0),
        Param(
            "slack_mib", 0.0, "of the limit, at most so much is charged ahead or reclaimed early", "MiB", 0
        ),
    ),
    page_words=WORDS,
    fetch=fetch,
    look=look,
    fault=fault,
    event=event,
    setup=setup,
    calm=calm,
    costs=costs,
    prices_refaults=True,
    bounded=bounded,
    open_below=open_below,
    label=label,
)
