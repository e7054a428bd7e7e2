"""hugepages: the first fault in a huge region maps all of it; the other faults of the region disappear.

Where a VMM thread touches a region first (a kernel that it loads), the guest's first exit there maps all of
it, and the exits that its other pages took on memory that the host has disappear as well.
The one fault that stays is dearer (it zeroes the whole region), and the untouched rest of the region is
resident too. A region in which the host took single pages away is split and faults by 4K there until it was
taken away as a whole. KVM maps a region so only where guest and host address are alike modulo its size and
one memslot holds all of it; that the host then always has such a page to give is assumed. Where the host
addresses are not known, the low end is that nothing fits. Fewer TLB misses and shorter page walks are a gain
that no fault trace can show.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tracekit.replay import events as ev
from tracekit.replay.accounts import HIT, INSTEAD, KEPT, REPRICED, SHORTENED, add_fault
from tracekit.replay.events import BLOCK_PAGES, Event
from tracekit.replay.index import MAX_GFN, VM_SHIFT, block_of, in_slots
from tracekit.replay.jit import hot
from tracekit.replay.mechanisms import Context, Mechanism, Own, Param, Setup, Stage
from tracekit.replay.pages import (
    B_BACKED,
    C_BACKED,
    C_SWAPPED,
    World,
    back_pages,
    owner_of,
    resident_change,
)
from tracekit.trace.schema import PAGE_BYTES

__all__ = ["MECHANISM", "fits", "regions"]

REGIONS = 1 << 17  # slots of the table of 1 GiB regions: 64 TiB half full
HUGE, SMALL, HUGE_ON_HOST = 1, 2, 3  # m.block: mapped huge; has 4K pages of its own; not yet in the guest
HOST_FIRST = 1 << 24  # of a page: a VMM thread touched it first, and the guest has not since
SLOT_WORDS = 3
BLOCK_SHIFT = BLOCK_PAGES.bit_length() - 1


@hot
def region_slot(m: Own, key: int) -> int:
    """Return the slot of a 1 GiB region in `m.ints` (key, state pairs), by open addressing."""
    slot = (key * 0x9E3779B1 >> 7) & (REGIONS - 1)
    while m.ints[2 * slot] != key + 1 and m.ints[2 * slot] != 0:
        slot = (slot + 1) & (REGIONS - 1)
    m.ints[2 * slot] = key + 1
    return slot


@hot
def state_of(s: World, m: Own, page: int) -> int:
    """Return the state of the page's region: 0 = nothing mapped yet, HUGE or SMALL."""
    block = page >> BLOCK_SHIFT
    if m.par[0] == 2:
        return int(m.block[block])
    return int(m.ints[2 * region_slot(m, s.directory.block_gfn[block] >> 18) + 1])


@hot
def set_state(s: World, m: Own, page: int, state: int) -> None:
    """Set the state of the page's region."""
    block = page >> BLOCK_SHIFT
    if m.par[0] == 2:
        m.block[block] = state
    else:
        m.ints[2 * region_slot(m, s.directory.block_gfn[block] >> 18) + 1] = state


@hot
def fits(s: World, m: Own, page: int) -> bool:
    """Say whether KVM can map the page's region by one entry: a memslot of `regions` holds it."""
    first = s.directory.block_gfn[page >> BLOCK_SHIFT]
    pages = BLOCK_PAGES if m.par[0] == 2 else BLOCK_PAGES * BLOCK_PAGES
    vm, gfn = first >> VM_SHIFT, first & ((1 << VM_SHIFT) - 1)
    gfn -= gfn % pages
    table = 0 if m.par[0] == 2 else 2 * REGIONS
    for k in range(m.ints[len(m.ints) - 1]):
        at = table + k * SLOT_WORDS
        if m.ints[at] == vm and m.ints[at + 1] <= gfn and gfn + pages <= m.ints[at + 2]:
            return True
    return False


@hot
def clear(s: World, vm: int, gfn: int, pages: int) -> bool:
    """Say whether the host has none of these pages yet, in memory or on a device."""
    for first in range(gfn, gfn + pages, BLOCK_PAGES):
        block = block_of(s.directory, vm, first, False)
        if block >= 0:
            there = 0
            for p in range(block * BLOCK_PAGES, (block + 1) * BLOCK_PAGES):
                there |= s.words[p]
            if there & (C_BACKED | C_SWAPPED):
                return False
    return True


@hot
def back_all(s: World, vm: int, gfn: int, pages: int, at: int, me: int) -> None:
    """Back these pages at once; those of blocks that no event names have no word and are only counted."""
    unnamed = in_slots(s.directory, vm, gfn, gfn + pages)
    for first in range(gfn, gfn + pages, BLOCK_PAGES):
        block = block_of(s.directory, vm, first, False)
        if block < 0:
            continue
        inside = in_slots(s.directory, vm, first, first + BLOCK_PAGES)
        unnamed -= inside
        page = block * BLOCK_PAGES
        if inside == BLOCK_PAGES:
            back_pages(s, page, page + BLOCK_PAGES, at, me)
            continue
        for k in range(BLOCK_PAGES):
            if in_slots(s.directory, vm, first + k, first + k + 1) > 0:
                back_pages(s, page + k, page + k + 1, at, me)
    if unnamed > 0:
        resident_change(s, at, unnamed)


@hot
def fault(s: World, e: Event, w: int, verdict: int, service: int, m: Own, me: int) -> tuple[int, int, int]:
    """Let the first fault of a region map the whole region; the host's own leaves the guest one exit."""
    level = int(m.par[0])
    if e.bits & ev.ON_HOST:
        w = w if w & B_BACKED else w | HOST_FIRST
    elif w & HOST_FIRST or verdict == HIT:
        host_first, w = w & HOST_FIRST != 0 and w & B_BACKED != 0, w & ~HOST_FIRST
        state = state_of(s, m, e.page) if verdict in (KEPT, HIT) else 0
        if state == HUGE_ON_HOST and (host_first or owner_of(w) == me):
            set_state(s, m, e.page, HUGE)
            backed = int(s.cost[ev.BACKED_AHEAD])
            return (w, SHORTENED, backed) if verdict == HIT and backed < e.latency else (w, KEPT, e.latency)
        if host_first and state == HUGE and verdict == KEPT:
            return w, HIT, 0
    if verdict != KEPT or w & (B_BACKED | C_BACKED) or state_of(s, m, e.page) != 0:
        return w, verdict, service
    first = s.directory.block_gfn[e.page // BLOCK_PAGES]
    vm, gfn = first >> VM_SHIFT, first & ((1 << VM_SHIFT) - 1)
    pages = BLOCK_PAGES if level == 2 else BLOCK_PAGES * BLOCK_PAGES
    gfn -= gfn % pages
    if e.level >= level or not fits(s, m, e.page) or not clear(s, vm, gfn, pages):
        set_state(s, m, e.page, SMALL)
        return w, verdict, service
    set_state(s, m, e.page, HUGE_ON_HOST if e.bits & ev.ON_HOST else HUGE)
    taker = ev.HOST_MINOR if e.bits & ev.ON_HOST else ev.EPT
    cls = taker * ev.LEVELS + level
    cost = int(s.cost[cls])
    add_fault(s, e.lane, me, INSTEAD, cls, cost)
    s.words[e.page] = w
    back_all(s, vm, gfn, pages, e.start + cost, me)
    return s.words[e.page], REPRICED, cost


@hot
def event(s: World, e: Event, w: int, m: Own, me: int) -> int:
    """A 2 MiB region that is taken away as a whole can be mapped huge again."""
    if e.op in (ev.DROP, ev.SWAP_OUT) and e.pages == BLOCK_PAGES and m.par[0] == 2:
        m.block[e.page // BLOCK_PAGES] = 0
    return w


def regions(context: Context, level: int) -> NDArray[np.int64]:
    """Return `m.ints` for regions of a level: the hash table of 1 GiB regions, the memslots that allow it.

    Memslots are rows of VM, first gfn, past-the-end gfn; their number is the last word. Host addresses that
    are not known (no memslots, or assumed ones) fit, except under the hypothesis `low`.
    """
    table = np.zeros(2 * REGIONS if level == 3 else 0, np.int64)
    slots = context.timeline.trace.memslots
    if len(slots):
        size = PAGE_BYTES * BLOCK_PAGES ** (level - 1)
        unknown = (slots["known_by"] == "assumed") & (context.hypothesis != "low")
        known = (slots["known_by"] != "assumed") & (slots["gpa"] % size == slots["hva"] % size)
        # Firmware has QEMU lay out its low memory anew: what was there for a moment only says little.
        start = context.timeline.start_ns
        since = slots["from_ns"].cast(pl.Int64).clip(start)
        life = slots["to_ns"].cast(pl.Int64).fill_null(start + context.timeline.span_ns) - since
        lasting = (slots["to_ns"].is_null() | (2 * life >= life.max())).fill_null(True)
        rows = context.timeline.slots[((unknown | known) & lasting).fill_null(False).to_numpy()]
    else:
        every = [[vm, 0, MAX_GFN] for vm in range(context.timeline.vms)]
        rows = np.array(every if context.hypothesis != "low" else [], np.int64).reshape(-1, SLOT_WORDS)
    return np.concatenate([table, rows.ravel(), [len(rows)]])


def setup(context: Context) -> Setup:
    """Choose the region size; 1 GiB regions are kept in a hash table of their own."""
    level = 2 if context.text("size") == "2m" else 3
    return Setup(par=[level], ints=regions(context, level))


def block_local(context: Context) -> bool:
    """A region of 1 GiB goes over many blocks."""
    return context.text("size") == "2m"


def bounded(context: Context) -> bool:
    """Without the host addresses of guest memory, KVM may be able to map none of it huge."""
    slots = context.timeline.trace.memslots
    return not len(slots) or bool((slots["known_by"] == "assumed").any())


def label(context: Context) -> str:
    """That the host always has a huge page to give is an assumption."""
    return "assumed"


def calm(context: Context) -> Mapping[int, int]:
    """Only first touches count, and the guest's first exit on what a VMM thread touched."""
    return {**dict.fromkeys(ev.CALM_ALL, 0), ev.CALM_FAULT: HOST_FIRST, ev.CALM_MAJOR: HOST_FIRST}


MECHANISM = Mechanism(
    name="hugepages",
    summary="guest memory is mapped in huge pages at the first fault",
    stage=Stage.BACK,
    params=(Param("size", "2m", "huge page size", choices=("2m", "1g")),),
    block_words=1,
    fault=fault,
    event=event,
    setup=setup,
    calm=calm,
    block_local=block_local,
    bounded=bounded,
    label=label,
)
