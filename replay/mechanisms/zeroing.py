"""zeroing: the guest does not zero a page that the host handed over zeroed (boot, hot-add; Hyper-V 0x8002).

Saved is the guest's zeroing, and, if zeroing was the page's first touch, the fault with the host's allocation
and zeroing too: for ever, or until the guest really uses the page (deferred, not removed).

A host-only trace cannot tell a zeroing write from any other: there the saving lies between nothing and all
first touches by writes, and the value shown is that upper end. With guest events it is exact for
pages whose allocation the trace holds: a fault on a page that is free was made by zeroing it, and the page is
used from its page_alloc on.

Of what it is told: all of memory, that of boot, or what was hot-added (by the memslots), and of these only
`ranges` (`tracekit.replay.told`). A guest without a shared page of zeros (`zero_page=none`: Windows) gives
out pages that may only ever be read: the high end is that none of what was put off is ever written.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from tracekit.replay import delays
from tracekit.replay import events as ev
from tracekit.replay.accounts import (
    CANDIDATES,
    DEFERRED,
    HIT,
    KEPT,
    SKIPPED,
    ZEROING_SPARED,
    add_fault,
    advance,
    count,
)
from tracekit.replay.events import Event
from tracekit.replay.index import VM_SHIFT, block_of
from tracekit.replay.jit import hot, prefetch, rare
from tracekit.replay.mechanisms import Context, Mechanism, Own, Param, Setup, Stage
from tracekit.replay.pages import (
    B_BACKED,
    C_BACKED,
    C_DEFERRED,
    C_UNMAPPED,
    GUEST_FREE,
    GUEST_USED,
    SEEN,
    ZERO_KNOWN,
    World,
    back,
    gfn_of,
)
from tracekit.replay.told import MEMORY, told_ranges

__all__ = ["MECHANISM"]

# m.ints: whether the last fault was spared, and that fault (as each page's word: ns * LEVELS + its level);
# whether a write of unknown purpose counts as zeroing; first touches until when (ns: boot); whether what was
# put off never happens; the bit of a fault that the guest did not make; how many ranges there are (0 = all of
# memory), then each: VM, first gfn, its end.
SPARED, PUT_OFF, UNKNOWN_IS_ZEROING, UNTIL, NEVER_WRITTEN, NOT_BY_GUEST, RANGES = range(7)
RANGE_WORDS = 3


@hot
def in_scope(s: World, e: Event, m: Own) -> bool:
    """Say whether the event is in the time and the range that the guest was told about."""
    if e.start > m.ints[UNTIL]:
        return False
    if m.ints[RANGES] == 0:
        return True
    where = gfn_of(s, e.page)
    vm, gfn = where >> VM_SHIFT, where & ((1 << VM_SHIFT) - 1)
    for k in range(m.ints[RANGES]):
        at = RANGES + 1 + k * RANGE_WORDS
        if m.ints[at] == vm and m.ints[at + 1] <= gfn < m.ints[at + 2]:
            return True
    return False


@hot
def fetch(page: int, m: Own) -> None:
    """Call what is known of the page into the cache."""
    prefetch(m.page, page)


@hot
def fault(s: World, e: Event, w: int, verdict: int, service: int, m: Own, me: int) -> tuple[int, int, int]:
    """Spare a first touch that was only there to zero the page."""
    m.ints[SPARED] = 0
    # A page read back from a device has content; one that a VMM thread or the kernel fills (DMA) the guest
    # did not zero.
    if e.bits & (ev.WRITE | ev.MAJOR | m.ints[NOT_BY_GUEST]) != ev.WRITE:
        return w, verdict, service
    if w & (B_BACKED | SEEN) or not in_scope(s, e, m):
        return w, verdict, service
    zeroing = bool(w & GUEST_FREE) or (w & GUEST_USED == 0 and m.ints[UNKNOWN_IS_ZEROING] != 0)
    count(s, me, CANDIDATES, e.pages)
    w |= ZERO_KNOWN
    if not zeroing:
        return w, verdict, service
    count(s, me, ZEROING_SPARED, e.pages)
    w &= ~ZERO_KNOWN
    if verdict == HIT:  # mapped anyway: only the guest's own work is spared
        return w, verdict, service
    if verdict != KEPT and not w & C_UNMAPPED:
        return w, verdict, service
    # A page that was backed ahead has a shorter fault to put off.
    m.ints[PUT_OFF] = service * ev.LEVELS + min(e.level, ev.LEVELS - 1)
    m.page[e.page] = m.ints[PUT_OFF]
    m.ints[SPARED] = 1
    return w | C_DEFERRED, SKIPPED, 0


@hot
def look(s: World, e: Event, w: int, m: Own, me: int) -> int:
    """The rest of a large page is put off with the fault that would have mapped all of it."""
    if m.ints[SPARED] != 0 and e.op == ev.FAULT and e.bits & ev.CONTINUED and not w & B_BACKED:
        m.page[e.page] = m.ints[PUT_OFF]
        return w | C_DEFERRED
    return w


@rare
def map_all(s: World, e: Event, at: int, m: Own) -> None:
    """Let the first use of a large page that was put off back all that its one fault would have."""
    fault = m.page[e.page]
    blocks = 1 if fault % ev.LEVELS < 3 else ev.BLOCK_PAGES
    gfn = gfn_of(s, e.page) & ((1 << VM_SHIFT) - 1)
    vm = gfn_of(s, e.page) >> VM_SHIFT
    gfn -= gfn % (blocks * ev.BLOCK_PAGES)
    for k in range(blocks):
        block = block_of(s.directory, vm, gfn + k * ev.BLOCK_PAGES, False)
        for p in range(max(block, 0) * ev.BLOCK_PAGES, (block + 1) * ev.BLOCK_PAGES):
            if s.words[p] & C_DEFERRED and s.words[p] & B_BACKED and m.page[p] == fault:
                s.words[p] = back(s, s.words[p], at, 0) & ~(C_DEFERRED | C_UNMAPPED)


@hot
def event(s: World, e: Event, w: int, m: Own, me: int) -> int:
    """The first real use of a spared page is at its allocation: there the fault happens after all."""
    if e.op != ev.ALLOC:
        return w
    if w & ZERO_KNOWN and e.bits & ev.ZEROED:
        # The guest zeroed a page that came zeroed from the host and that nothing had used in between.
        count(s, me, ZEROING_SPARED, 1)
        w &= ~ZERO_KNOWN
    if w & C_DEFERRED and m.ints[NEVER_WRITTEN] != 0:
        return w & ~(C_DEFERRED | B_BACKED)  # as if nothing had ever touched it
    if w & C_DEFERRED and w & B_BACKED and (not w & C_BACKED or w & C_UNMAPPED):
        ns, level = int(m.page[e.page] // ev.LEVELS), int(m.page[e.page] % ev.LEVELS)
        add_fault(s, e.lane, me, DEFERRED, ev.EPT * ev.LEVELS + level, ns)
        advance(s, e.lane, -ns)
        if level > 1:
            s.words[e.page] = w
            map_all(s, e, e.end + ns, m)
            w = s.words[e.page]
        w = back(s, w, e.end + ns, 0) & ~(C_DEFERRED | C_UNMAPPED)
    return w


def block_local(context: Context) -> bool:
    """A fault of 1 GiB that was put off goes over many blocks."""
    return not context.survey.faults[3 :: ev.LEVELS].any()


def bounded(context: Context) -> bool:
    """Only page_alloc events tell zeroing from use; without them both ends of the interval are run."""
    return True


def setup(context: Context) -> Setup:
    """Take the time and range from the parameters; unknown writes count by hypothesis."""
    guest = context.survey.guest_events
    unknown = context.hypothesis == "high" or (context.hypothesis == "point" and not guest)
    until = context.number("until_ms") * 1e6
    never = context.text("zero_page") == "none" and context.hypothesis == "high"
    told = told_ranges(context.timeline, context.text("memory"), context.text("ranges"))
    ints = np.zeros(RANGES + 1, np.int64)
    ints[UNKNOWN_IS_ZEROING] = unknown
    ints[UNTIL] = delays.whole(until) if until > 0 else delays.NEVER
    ints[NEVER_WRITTEN] = never
    ints[NOT_BY_GUEST] = context.timeline.not_by_the_guest
    ints[RANGES] = len(told)
    return Setup(ints=np.concatenate([ints, told.ravel()]))


def costs(tally: NDArray[np.int64], context: Context) -> Mapping[str, Mapping[str, float]]:
    """Price the guest's zeroing that is not done any more."""
    return {
        "guest_cpu": {"guest_zero_4k": -float(tally[ZEROING_SPARED])},
        "baseline:guest_cpu": {"guest_zero_4k": float(tally[CANDIDATES])},
    }


def label(context: Context) -> str:
    """Host-only traces bound it; where swiotlb is, is a guess."""
    return "assumed" if "swiotlb" in context.text("ranges") else "bounded"


def calm(context: Context) -> Mapping[int, int]:
    """Only first touches count, and allocations of pages that nothing has written since."""
    return dict.fromkeys(ev.CALM_ALL, 0)


MECHANISM = Mechanism(
    name="zeroing",
    summary="the guest skips zeroing pages that came zeroed from the host",
    stage=Stage.SPARE,
    params=(
        Param("until_ms", 0.0, "only first touches before this time (0 = the whole trace)", unit="ms", low=0),
        Param("memory", "all", "which memory the guest is told is zero, by the memslots", choices=MEMORY),
        Param("ranges", "", "only these gfns of it, FIRST-END/…; or swiotlb (Linux at boot)"),
        Param(
            "zero_page",
            "shared",
            "what the guest maps where memory is only read: one page of zeros (Linux), or none (Windows)",
            choices=("shared", "none"),
        ),
    ),
    page_words=1,
    fetch=fetch,
    look=look,
    fault=fault,
    event=event,
    setup=setup,
    calm=calm,
    costs=costs,
    block_local=block_local,
    bounded=bounded,
    label=label,
)
