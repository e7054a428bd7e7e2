"""prealloc: all guest memory is backed before the guest starts (QEMU -mem-prealloc, hugetlb reservation).

Memory is full from the start, and the start waits for the population. What becomes of a first touch depends
on what the population fills:

- `populate` (MADV_POPULATE_WRITE, touching): the host's page table. The guest's own table (EPT, NPT, shadow)
  stays empty, so its first touch still exits; the exit is shorter (`ept_backed_4k`), for nothing is allocated
  and zeroed. One exit maps a page of the size that the population used. Faults of VMM threads go.
- `pre_fault` (KVM_PRE_FAULT_MEMORY): the guest's table too. First touches do not fault at all.

A page that the host takes away later (balloon, reporting) faults as recorded.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from tracekit.replay import events as ev
from tracekit.replay.accounts import SKIPPED
from tracekit.replay.events import BLOCK_PAGES, Event
from tracekit.replay.jit import hot
from tracekit.replay.mechanisms import Context, Mechanism, Own, Param, Setup, Stage
from tracekit.replay.mechanisms.hugepages import HUGE, fits, regions, set_state, state_of
from tracekit.replay.pages import B_BACKED, C_BACKED, C_UNMAPPED, World, owner_of, resident_change
from tracekit.trace.schema import PAGE_BYTES

__all__ = ["MECHANISM"]

LEVELS = {"4k": 1, "2m": 2, "1g": 3}


def guest_pages(context: Context) -> int:
    """Return the pages of guest memory: by the memslots, else the blocks that the trace names."""
    memory = context.timeline.memory_bytes
    return context.timeline.index.pages if memory is None else memory // PAGE_BYTES


@hot
def look(s: World, e: Event, w: int, m: Own, me: int) -> int:
    """A page of a region whose one large entry was installed is mapped."""
    if w & C_UNMAPPED and owner_of(w) == me and m.par[0] > 1 and state_of(s, m, e.page) == HUGE:
        return w & ~C_UNMAPPED
    return w


@hot
def fault(s: World, e: Event, w: int, verdict: int, service: int, m: Own, me: int) -> tuple[int, int, int]:
    """Let the guest's first touch of a large host page map all of it."""
    first_touch = w & C_UNMAPPED != 0 and not w & B_BACKED and not e.bits & ev.ON_HOST
    if first_touch and verdict != SKIPPED and m.par[0] > 1 and fits(s, m, e.page):
        set_state(s, m, e.page, HUGE)
    return w, verdict, service


def setup(context: Context) -> Setup:
    """Let every page start backed; what population leaves unmapped is mapped by its first touch."""
    unmapped = 0 if context.text("via") == "pre_fault" else C_UNMAPPED
    level = LEVELS[context.text("size")]
    return Setup(par=[level], ints=regions(context, level), initial=C_BACKED | unmapped)


def begin(context: Context, world: World, own: Own, me: int) -> None:
    """Account guest memory as resident from when there was a memslot for it (before any: from time 0 on)."""
    left = guest_pages(context)
    slots = context.timeline.trace.memslots.sort("from_ns")
    for size, since in slots.select("size_bytes", "from_ns").iter_rows():
        pages = min(size // PAGE_BYTES, left)
        resident_change(world, max((since or 0) - context.timeline.start_ns, 0), pages)
        left -= pages
    resident_change(world, 0, left)


def costs(tally: NDArray[np.int64], context: Context) -> Mapping[str, Mapping[str, float]]:
    """Population with `threads` threads delays the start; its CPU is the same for any number of them."""
    pages = guest_pages(context)
    per = {"4k": 1, "2m": BLOCK_PAGES, "1g": BLOCK_PAGES * 512}[context.text("size")]
    units = -(-pages // per)
    prices = [f"prefault_{context.text('size')}"]
    if context.text("via") == "pre_fault":
        prices.append("map_ahead")
    return {
        "startup": dict.fromkeys(prices, units / context.number("threads")),
        "host_cpu_background": dict.fromkeys(prices, float(units)),
    }


def block_local(context: Context) -> bool:
    """An entry of 1 GiB goes over many blocks."""
    return context.text("size") != "1g"


def bounded(context: Context) -> bool:
    """What a fault on a backed page costs has a range, and the size of its entry may be open."""
    return context.text("via") == "populate"


def small_pages(context: Context) -> bool:
    """Say whether the population uses 4 KiB pages."""
    return context.text("size") == "4k"


def label(context: Context) -> str:
    """That every entry stays empty (populate) or is there in time (pre_fault) is the scenario's word."""
    return "assumed"


def calm(context: Context) -> Mapping[int, int]:
    """Only the first touch of a page counts."""
    return dict.fromkeys(ev.CALM_ALL, 0)


MECHANISM = Mechanism(
    name="prealloc",
    summary="all guest memory is backed before the guest starts",
    stage=Stage.BACK,
    params=(
        Param("threads", 1, "threads that populate", low=1),
        Param("size", "4k", "page size of the population", choices=("4k", "2m", "1g")),
        Param(
            "via",
            "populate",
            "fills the host's page table, or the guest's",
            choices=("populate", "pre_fault"),
        ),
    ),
    block_words=1,
    look=look,
    fault=fault,
    setup=setup,
    calm=calm,
    begin=begin,
    costs=costs,
    block_local=block_local,
    bounded=bounded,
    label=label,
    small_pages=small_pages,
)
