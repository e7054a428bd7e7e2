"""prealloc: all guest memory is backed before the guest starts (QEMU -mem-prealloc, hugetlb reservation).

Every fault on a page that was never backed before disappears; memory is full from the start, and the start
waits for the population. A page that the host takes away later (balloon, reporting) faults as recorded.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from tracekit.replay.events import BLOCK_PAGES
from tracekit.replay.mechanisms import Context, Mechanism, Own, Param, Setup, Stage
from tracekit.replay.pages import C_BACKED, CURVE_BINS, World
from tracekit.trace.schema import PAGE_BYTES

__all__ = ["MECHANISM"]


def guest_pages(context: Context) -> int:
    """Return the pages of guest memory: by the memslots, else the blocks that the trace names."""
    memory = context.timeline.memory_bytes
    return context.timeline.index.pages if memory is None else memory // PAGE_BYTES


def setup(context: Context) -> Setup:
    """Let every page start backed."""
    return Setup(initial=C_BACKED)


def begin(context: Context, world: World, own: Own, me: int) -> None:
    """Account all of guest memory as resident from time 0 on."""
    pages = guest_pages(context)
    world.resident[1] += pages
    world.curve[CURVE_BINS] += pages


def costs(tally: NDArray[np.int64], context: Context) -> Mapping[str, Mapping[str, float]]:
    """Population with `threads` threads delays the start; its CPU is the same for any number of them."""
    pages = guest_pages(context)
    per = {"4k": 1, "2m": BLOCK_PAGES, "1g": BLOCK_PAGES * 512}[context.text("size")]
    units = -(-pages // per)
    name = f"prefault_{context.text('size')}"
    return {"startup": {name: units / context.number("threads")}, "host_cpu_background": {name: units}}


def label(context: Context) -> str:
    """Without memslots, guest memory is only known to be at least what was touched."""
    return "measured" if context.timeline.memory_bytes is not None else "bounded"


MECHANISM = Mechanism(
    name="prealloc",
    summary="all guest memory is backed before the guest starts",
    stage=Stage.BACK,
    params=(
        Param("threads", 1, "threads that populate", low=1),
        Param("size", "4k", "page size of the population", choices=("4k", "2m", "1g")),
    ),
    page_local=True,
    setup=setup,
    begin=begin,
    costs=costs,
    label=label,
)
