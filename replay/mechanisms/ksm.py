"""ksm: ksmd merges pages of equal content while it scans, and a write to a merged page copies it again.

Policies:

- `recorded`: the ksm_merge and ksm_break events of the trace: exact. Pages that share one physical page (the
  `pfn` of the events) need one of them still: n of them save n - 1. Where the events do not name it, it is
  taken for another VM's. A write fault breaks, too: ksmd tells of no break that it finds or makes (where the
  second of two pages can't be merged, it gives the first its own memory back: try_to_merge_two_pages). So a
  page that merges again, with another physical page, had its own in between. The faults of the breaks are in
  the recording already. A fault whose access is not known is taken for a read here.
- `zero`: a trace holds no contents. Known to be zero are pages that came zeroed from the host and that
  nothing was seen to write: first touched by a read, or the untouched rest of a huge page, and not allocated
  since. ksmd goes round all of memory, `pages_to_scan` every `sleep_ms`, and merges such a page when it finds
  it on its second look; each 256 of them keep one page (max_page_sharing). That lies between nothing (they
  were written unseen) and all of them (value). Pages that are alike in other content can't be seen, so the
  true saving may also be higher.

With `zero`, a write that needs its own copy again is a fault, where the recording has none (an allocation of
the guest).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tracekit.errors import UsageError
from tracekit.replay import events as ev
from tracekit.replay.accounts import MERGED, REFAULT, SCANNED, SKIPPED, TALLIES, add_fault, advance, count
from tracekit.replay.events import Event
from tracekit.replay.jit import hot, prefetch
from tracekit.replay.mechanisms import Context, Mechanism, Own, Param, Setup, Stage
from tracekit.replay.pages import B_BACKED, C_BACKED, CLOCK_END, GUEST_USED, World, resident_change
from tracekit.replay.timeline import Timeline
from tracekit.trace.schema import KIND_CODE

__all__ = ["MECHANISM"]

# m.par
RECORDED, MERGES, PER_SLEEP, SLEEP = range(4)
# m.ints: the time up to which ksmd has scanned, the page where it stands, whether the last fault was spared,
# how many pages could still merge, how many physical pages are shared, how many merges and breaks came and
# how many there are in all; then for each of them the number of the physical page that it shares, and by that
# number how many share it.
SCANNED_TO, CURSOR, SPARED, WAITING, SHARED, SEEN, ALL_EVENTS, CELLS = range(8)
# The one word of a page: bits, and from NUMBER on that of the physical page which it shares (0: unknown).
ZERO, LOOKED_AT, IS_MERGED, NUMBER = 1, 2, 4, 3
ZEROS: Final = 1
"""The number of the physical page that zero pages share (policy `zero`)."""
MOST_SHARING: Final = 256
"""Zero pages that share a physical page (max_page_sharing); of recorded merges the kernel saw to that."""
KSM_KINDS: Final = (KIND_CODE["ksm_merge"], KIND_CODE["ksm_break"])


@hot
def mark_zero(m: Own, page: int) -> None:
    """A page came zeroed, and this event did not write it."""
    if not m.page[page] & ZERO:
        m.page[page] |= ZERO
        m.ints[WAITING] += 1


@hot
def keeps(m: Own, number: int, more: int) -> bool:
    """Let one page more (or less: -1) share a physical page; say whether that one is there for it alone."""
    if number == 0:
        return False
    cell = CELLS + m.ints[ALL_EVENTS] + number
    least = min(m.ints[cell], m.ints[cell] + more)
    m.ints[cell] += more
    alone = least == 0 or (m.par[RECORDED] == 0 and least % MOST_SHARING == 0)
    if alone:
        m.ints[SHARED] += more
    return bool(alone)


@hot
def next_number(m: Own) -> int:
    """Return the number of the physical page that the next recorded merge or break is about."""
    m.ints[SEEN] += 1
    return int(m.ints[CELLS + m.ints[SEEN] - 1])


@hot
def merge(s: World, page: int, number: int, at: int, m: Own, me: int) -> None:
    """Let a page share a physical page with others; the first of them gives its own."""
    if m.page[page] & ZERO:
        m.ints[WAITING] -= 1
    m.page[page] |= IS_MERGED | number << NUMBER
    if not keeps(m, number, 1):
        resident_change(s, at, -1)
    count(s, me, MERGED, 1)


@hot
def split(s: World, page: int, at: int, m: Own) -> bool:
    """Give a page its own memory again; say whether it shared."""
    shared = bool(m.page[page] & IS_MERGED)
    if shared:
        if not keeps(m, m.page[page] >> NUMBER, -1):
            resident_change(s, at, 1)
    elif m.page[page] & ZERO:
        m.ints[WAITING] -= 1
    m.page[page] = 0
    return shared


@hot
def scan_page(s: World, page: int, at: int, m: Own, me: int) -> None:
    """Look at one page: remember it, or merge it if it was known before."""
    state = m.page[page]
    if state & ZERO and not state & IS_MERGED:
        if state & LOOKED_AT:
            merge(s, page, ZEROS, at, m, me)
        else:
            m.page[page] = state | LOOKED_AT


@hot
def tick(s: World, now: int, m: Own, me: int) -> None:
    """Scan what ksmd has scanned by now: only pages that are there count against `pages_to_scan`."""
    if m.par[RECORDED] != 0 or m.par[MERGES] == 0:
        return
    sleep, per_sleep = int(m.par[SLEEP]), int(m.par[PER_SLEEP])
    while m.ints[SCANNED_TO] + sleep <= now:
        if m.ints[WAITING] == 0:  # nothing to find: however long, one step
            rounds = (now - m.ints[SCANNED_TO]) // sleep
            m.ints[SCANNED_TO] += rounds * sleep
            count(s, me, SCANNED, rounds * min(per_sleep, s.resident[0] - m.ints[SHARED]))
            return
        m.ints[SCANNED_TO] += sleep
        left = per_sleep
        page = m.ints[CURSOR]
        for _ in range(len(s.words)):
            if left == 0:
                break
            if page >= len(s.words):
                page = 0
            if s.words[page] & C_BACKED and not m.page[page] & IS_MERGED:
                scan_page(s, page, m.ints[SCANNED_TO], m, me)
                left -= 1
            page += 1
        m.ints[CURSOR] = page
        count(s, me, SCANNED, per_sleep - left)


@hot
def look(s: World, e: Event, w: int, m: Own, me: int) -> int:
    """Undo what another mechanism made of a merged page; mark the untouched rest of a huge page as zero."""
    if not w & C_BACKED and m.page[e.page] != 0:
        split(s, e.page, e.start, m)
    rest = e.op == ev.FAULT and e.bits & ev.CONTINUED != 0 and m.ints[SPARED] == 0
    if (rest or e.op == ev.POPULATE) and not w & (B_BACKED | C_BACKED | GUEST_USED):
        mark_zero(m, e.page)
    return w


@hot
def fetch(page: int, m: Own) -> None:
    """Call what is known of the page into the cache."""
    prefetch(m.page, page)


@hot
def fault(s: World, e: Event, w: int, verdict: int, service: int, m: Own, me: int) -> tuple[int, int, int]:
    """A first touch by a read leaves zeros; a write needs memory of its own."""
    m.ints[SPARED] = 1 if verdict == SKIPPED else 0
    if e.bits & ev.WRITE or (m.par[RECORDED] == 0 and e.bits & (ev.READ | ev.EXECUTE) == 0):
        split(s, e.page, e.end, m)
    elif not w & B_BACKED and verdict != SKIPPED:
        mark_zero(m, e.page)
    return w, verdict, service


@hot
def event(s: World, e: Event, w: int, m: Own, me: int) -> int:
    """Follow merges and breaks; what the guest allocates is written, what is discarded is not shared."""
    if e.op in (ev.DROP, ev.SWAP_OUT):
        split(s, e.page, e.end, m)
    elif m.par[RECORDED] != 0 and e.op in (ev.KSM_MERGE, ev.KSM_BREAK):
        number = next_number(m)
        if e.op == ev.KSM_BREAK:
            split(s, e.page, e.end, m)
        elif w & C_BACKED and not (m.page[e.page] & IS_MERGED and number in (0, m.page[e.page] >> NUMBER)):
            split(s, e.page, e.end, m)
            merge(s, e.page, number, e.end, m, me)
    elif m.par[RECORDED] == 0 and e.op == ev.ALLOC and split(s, e.page, e.end, m):
        cls = ev.EPT * ev.LEVELS + 1
        add_fault(s, e.lane, me, REFAULT, cls, s.cost[cls])
        advance(s, e.lane, -s.cost[cls])
    return w


def numbers(timeline: Timeline) -> NDArray[np.int64]:
    """Return for each page of each merge and break, in their order, which physical page it shares: 1, 2, …

    0 where the trace does not tell.
    """
    known: dict[int, int] = {}
    found: list[int] = []
    for raw in timeline.raw():
        for row in np.flatnonzero(np.isin(raw.kind, KSM_KINDS)).tolist():
            pfn, vm, gfn = int(raw.arg[row]), int(raw.vm[row]), int(raw.gfn[row])
            if gfn < 0:  # not known: the event names no page, however many it is about
                continue
            number = known.setdefault(pfn, len(known) + 1) if pfn > 0 else 0
            for one in range(gfn, gfn + max(int(raw.pages[row]), 1)):
                if timeline.index.known_page(vm, one) >= 0:
                    found.append(number)
    return np.array(found, np.int64)


def setup(context: Context) -> Setup:
    """Check that the trace holds what the policy needs."""
    recorded = context.text("policy") == "recorded"
    if recorded and not context.survey.counts[ev.KSM_MERGE]:
        raise UsageError(
            "ksm policy recorded needs ksm_merge events, and this trace has none",
            hint="record where KSM runs, or policy=zero for the pages that are known to be zero",
        )
    ints = np.zeros(CELLS, np.int64)
    events = numbers(context.timeline) if recorded else ints[:0]
    ints[ALL_EVENTS] = len(events)
    sharers = np.zeros(1 + max(ZEROS, int(events.max(initial=0))), np.int64)
    return Setup(
        par=[
            float(recorded),
            float(recorded or context.hypothesis != "low"),
            context.number("pages_to_scan"),
            context.number("sleep_ms") * 1e6,
        ],
        ints=np.concatenate([ints, events, sharers]),
    )


def finish(context: Context, world: World, own: Own, me: int) -> None:
    """Scan to the end; undo merges of pages that another mechanism took and nothing came back to."""
    end = int(world.clock[CLOCK_END]) - int(world.shift.max(initial=0))
    tick(world, end, own, me)
    gone = (own.page[: len(world.words)] & IS_MERGED != 0) & (world.words & C_BACKED == 0)
    for page in np.flatnonzero(gone).tolist():
        split(world, page, end, own)
    if not own.par[MERGES] or own.par[RECORDED]:
        # Whatever it finds, ksmd looks at this many pages (recorded: at most, if memory is smaller).
        rounds = end // int(own.par[SLEEP])
        per_round = min(int(own.par[PER_SLEEP]), int(world.resident[0] - own.ints[SHARED]))
        world.tally.reshape(-1, TALLIES)[me][SCANNED] = rounds * per_round


def costs(tally: NDArray[np.int64], context: Context) -> Mapping[str, Mapping[str, float]]:
    """Price ksmd's scanning, which runs beside the guest."""
    return {"host_cpu_background": {"ksm_scan_4k": float(tally[SCANNED])}}


def bounded(context: Context) -> bool:
    """Without recorded merges the pages may all have been written unseen."""
    return context.text("policy") != "recorded"


def label(context: Context) -> str:
    """Recorded merges are measured; contents that the trace does not hold are assumed."""
    return "measured" if context.text("policy") == "recorded" else "assumed"


MECHANISM = Mechanism(
    name="ksm",
    summary="the host merges pages of equal content while it scans",
    stage=Stage.TAKE,
    params=(
        Param("policy", "recorded", "which pages merge", choices=("recorded", "zero")),
        Param("pages_to_scan", 100, "pages that ksmd looks at before it sleeps", low=1),
        Param("sleep_ms", 20.0, "how long ksmd sleeps", unit="ms", low=0.1),
    ),
    page_words=1,
    fetch=fetch,
    look=look,
    fault=fault,
    event=event,
    tick=tick,
    setup=setup,
    finish=finish,
    costs=costs,
    bounded=bounded,
    label=label,
)
