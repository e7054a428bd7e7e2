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
    UNMAPS,
    UNMAPS_ON_PATH,
    add_fault,
    advance,
    count,
    wait,
)
from tracekit.replay.events import Event
from tracekit.replay.jit import hot, int64, prefetch, rare
from tracekit.replay.mechanisms import Context, Mechanism, Own, Param, Setup, Stage
from tracekit.replay.pages import (
    B_BACKED,
    C_BACKED,
    C_DEFERRED,
    C_READ_AT_ONCE,
    C_TAKEN,
    CLOCK_LEVELS,
    World,
    back,
    drop,
    maps,
    owner_of,
)
from tracekit.replay.swapping import DEVICES, mark_of, swap_in_cost, swap_out_cost
from tracekit.replay.timeline import Timeline
from tracekit.trace.schema import PAGE_BYTES

__all__ = ["MECHANISM"]

LRU, FIFO, MIN = range(3)
# m.ints: what is in force; whether the last fault was spared, uses so far, and how many pages have a place.
ORDER, LIMIT, SWAP_IN, SWAP_OUT, MARKS, SPARED, USES, HELD = range(8)
# LRU and FIFO, the queue: where it begins in m.page, how long it may be, the slot looked at first, the next
# free one, and slots between the two. MIN: for each use the number of the page's next one.
QUEUE, WINDOW, HEAD, TAIL, FILLED, INTS = range(8, 14)
NEXT_USE: Final = INTS
NO_MORE: Final = np.iinfo(np.int64).max
# Words of a page: 1 + its place (0 = it has none). After those of all pages there is twice as much room for
# the order itself: slots of the queue (who took it) or places of a heap (a page's next use, and the page).
WORDS: Final = 3
USE: Final = 1 << ev.FAULT | 1 << ev.ACCESSED | 1 << ev.ALLOC | 1 << ev.POPULATE | 1 << ev.SWAP_IN
MOST_PAGES: Final = 1 << 52
NEAR: Final = 12
"""Slots ahead of the next victim whose pages are called into the cache."""


@hot
def enqueue(m: Own, page: int) -> None:
    """Give a page the next slot: it goes last. The slot that it had before is stale from now on."""
    if m.ints[FILLED] == m.ints[WINDOW]:
        make_slots(m)
    slot = m.ints[TAIL]
    m.page[m.ints[QUEUE] + slot] = page
    m.page[page] = slot + 1
    m.ints[TAIL] = slot + 1 if slot + 1 < m.ints[WINDOW] else 0
    m.ints[FILLED] += 1


@rare
def make_slots(m: Own) -> None:
    """Leave out the slots that are stale; if there are few, let the queue be twice as long instead.

    So at least a quarter of the window is free again: a slot is moved as often as one is given, at most.
    """
    queue, window, head = m.ints[QUEUE], m.ints[WINDOW], m.ints[HEAD]
    if 2 * m.ints[HELD] > window and 2 * window <= (WORDS - 1) * queue:
        for slot in range(head):  # the queue goes on there after its end
            page = m.page[queue + slot]
            m.page[queue + window + slot] = page
            if m.page[page] == slot + 1:
                m.page[page] = window + slot + 1
        m.ints[TAIL] = window + head
        m.ints[WINDOW] = 2 * window
        return
    free = head
    slot = head
    for _ in range(window):
        page = m.page[queue + slot]
        if m.page[page] == slot + 1:
            m.page[queue + free] = page
            m.page[page] = free + 1
            free = free + 1 if free + 1 < window else 0
        slot = slot + 1 if slot + 1 < window else 0
    m.ints[TAIL] = free
    m.ints[FILLED] = m.ints[HELD]


@hot
def dequeue(s: World, m: Own) -> int:
    """Return the page whose turn it is, taken out of the queue; there must be one."""
    while True:
        slot = m.ints[HEAD]
        ahead = slot + NEAR if slot + NEAR < m.ints[WINDOW] else slot
        prefetch(m.page, m.page[m.ints[QUEUE] + ahead])
        prefetch(s.words, m.page[m.ints[QUEUE] + ahead])
        page = m.page[m.ints[QUEUE] + slot]
        m.ints[HEAD] = slot + 1 if slot + 1 < m.ints[WINDOW] else 0
        m.ints[FILLED] -= 1
        if m.page[page] == slot + 1:
            return int(page)


@hot
def put_in(m: Own, place: int, key: int, page: int) -> None:
    """Write a page and its next use into a place of the heap."""
    m.page[m.ints[QUEUE] + 2 * place] = key
    m.page[m.ints[QUEUE] + 2 * place + 1] = page
    m.page[page] = place + 1


@hot
def settle(m: Own, place: int, key: int, page: int) -> None:
    """Move a page up or down from a place of the heap until the furthest next use is on top."""
    heap, size = m.ints[QUEUE], m.ints[HELD]
    while place > 0:
        above = (place - 1) >> 1
        if m.page[heap + 2 * above] >= key:
            break
        put_in(m, place, m.page[heap + 2 * above], m.page[heap + 2 * above + 1])
        place = above
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        if child + 1 < size and m.page[heap + 2 * child + 2] > m.page[heap + 2 * child]:
            child += 1
        if m.page[heap + 2 * child] <= key:
            break
        put_in(m, place, m.page[heap + 2 * child], m.page[heap + 2 * child + 1])
        place = child
    put_in(m, place, key, page)


@hot
def forget(m: Own, page: int) -> None:
    """A page is not the host's to evict any more."""
    place = m.page[page] - 1
    if place < 0:
        return
    m.page[page] = 0
    m.ints[HELD] -= 1
    if m.ints[ORDER] == MIN and place != m.ints[HELD]:
        last = m.ints[QUEUE] + 2 * m.ints[HELD]
        settle(m, place, m.page[last], m.page[last + 1])


@hot
def victim(s: World, m: Own) -> int:
    """Return the page that goes next, taken out of its order; -1 = none."""
    if m.ints[HELD] == 0:
        return -1
    page = int(m.page[m.ints[QUEUE] + 1]) if m.ints[ORDER] == MIN else dequeue(s, m)
    forget(m, page)
    return page


@hot
def note_use(m: Own, page: int) -> None:
    """A page that the host holds was seen in use."""
    place = m.page[page] - 1
    new = place < 0
    if m.ints[ORDER] == MIN:
        place = m.ints[HELD] if new else place
        m.ints[HELD] += new
        settle(m, place, m.ints[NEXT_USE + m.ints[USES] - 1], page)
    elif new:
        m.ints[HELD] += 1
        enqueue(m, page)
    elif m.ints[ORDER] == LRU and place + 1 != m.ints[TAIL]:  # else it goes last already
        enqueue(m, page)


@hot
def make_room(s: World, e: Event, on_path: bool, m: Own, me: int) -> None:
    """Evict until the event's page fits under the limit with the others.

    `on_path`: whoever faults does it, where the reclaim is direct.
    """
    forget(m, e.page)
    gone = 0
    while s.resident[0] >= m.ints[LIMIT]:
        out = victim(s, m)
        if out < 0:
            break
        w = int64(s.words[out])
        if w & C_BACKED:  # another mechanism may have taken it since
            s.words[out] = drop(s, w, e.start, me) | m.ints[MARKS]
            gone += 1
    if gone == 0:
        return
    count(s, me, UNMAPS, gone)
    if on_path and m.ints[SWAP_OUT] > 0:
        count(s, me, UNMAPS_ON_PATH, gone)
        taker = ev.HOST_MINOR if e.bits & ev.ON_HOST else ev.EPT
        wait(s, e.lane, me, taker * ev.LEVELS + 1, gone * int64(m.ints[SWAP_OUT]))


@hot
def look(s: World, e: Event, w: int, m: Own, me: int) -> int:
    """Swap in what is used again; note uses, and make room for what an event backs."""
    if not USE >> e.op & 1:
        return w
    m.ints[USES] += 1
    if not w & C_BACKED:
        fault = e.op == ev.FAULT
        ours = w & (B_BACKED | C_TAKEN) == B_BACKED | C_TAKEN and owner_of(w) == me
        if fault and not e.bits & ev.CONTINUED and not w & B_BACKED:
            return w  # a first touch: `fault` sees whether it happens at all
        comes = fault and m.ints[SPARED] == 0 and maps(e.bits, s.clock[CLOCK_LEVELS])
        if not (w & B_BACKED or comes or e.op in (ev.POPULATE, ev.SWAP_IN)):
            return w
        make_room(s, e, fault or ours, m, me)
        if ours:
            ns = int64(m.ints[SWAP_IN])
            add_fault(s, e.lane, me, REFAULT, ev.EPT_MAJOR * ev.LEVELS + 1, ns)
            advance(s, e.lane, -ns)
            w = back(s, w, e.start + ns, 0)
    note_use(m, e.page)
    return w


@hot
def fetch(page: int, m: Own) -> None:
    """Call the page's place into the cache."""
    prefetch(m.page, page)


@hot
def fault(s: World, e: Event, w: int, verdict: int, service: int, m: Own, me: int) -> tuple[int, int, int]:
    """A recorded fault backs its page, unless it is spared altogether.

    One that maps nothing and found an entry shows a page that had been there: Linux charged it when it came,
    and reclaimed for it then. Room is made for it, but not in this fault.
    """
    m.ints[SPARED] = 1 if verdict == SKIPPED else 0
    if verdict != SKIPPED:
        brings = w & C_DEFERRED != 0 or maps(e.bits, s.clock[CLOCK_LEVELS])
        if not w & C_BACKED:
            make_room(s, e, brings, m, me)
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


def limit_pages(context: Context) -> int:
    """Return the limit; the least that guest memory may have of it is the low end: more of it goes."""
    limit_mib = context.number("limit_mib") - context.number("other_mib")
    if context.hypothesis == "low":
        limit_mib -= context.number("slack_mib")
    return int(min(max(1.0, limit_mib * (1 << 20) / PAGE_BYTES), MOST_PAGES))


def setup(context: Context) -> Setup:
    """Take the limit and the device; look ahead where the hypothesis may."""
    order = {"low": FIFO, "high": MIN}.get(context.hypothesis, LRU)
    device = context.text("device")
    into, out = (context.profile.costs[name] for name in (swap_in_cost(device), swap_out_cost(device)))
    unmap = context.profile.costs["unmap_4k"]
    end = {"low": "high", "high": "low"}.get(context.hypothesis, "ns")
    direct = context.text("reclaim") == "direct"
    ints = np.zeros(INTS, np.int64)
    ints[ORDER] = order
    ints[LIMIT] = limit_pages(context)
    ints[SWAP_IN] = round(getattr(into, end))
    ints[SWAP_OUT] = round(getattr(out, end) + getattr(unmap, end)) if direct else 0
    ints[MARKS] = mark_of(device)
    return Setup(ints=np.concatenate([ints, next_uses(context.timeline)]) if order == MIN else ints)


def begin(context: Context, world: World, own: Own, me: int) -> None:
    """Put the queue after the pages' places, at first no longer than the limit seems to need."""
    own.ints[QUEUE] = len(world.words)
    window = (WORDS - 1) * len(world.words)
    while window % 2 == 0 and window > 4 * own.ints[LIMIT]:
        window //= 2
    own.ints[WINDOW] = window


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
    begin=begin,
    costs=costs,
    prices_refaults=True,
    limit_pages=limit_pages,
    bounded=bounded,
    open_below=open_below,
    label=label,
)
