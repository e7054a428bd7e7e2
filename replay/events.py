"""What a kernel sees: event codes, bits, the columns of one batch, and one event as a hook receives it."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ACCESSED",
    "ALLOC",
    "BACKED_AHEAD",
    "BLOCK_PAGES",
    "CALM_ACCESSED",
    "CALM_ALL",
    "CALM_ALLOC",
    "CALM_FAULT",
    "CALM_FAULTS",
    "CALM_FREE",
    "CALM_HOST_FAULT",
    "CALM_KINDS",
    "CALM_MAJOR",
    "CALM_NEVER",
    "CALM_OTHERS",
    "CLASSES",
    "CONTINUED",
    "DROP",
    "EPT",
    "EXECUTE",
    "FAULT",
    "FREE",
    "HINT",
    "HINT_DISCARD",
    "HINT_HOT",
    "HOST_MAJOR",
    "HOST_MINOR",
    "HYPERCALL",
    "IGNORE",
    "IN_KERNEL",
    "KSM_BREAK",
    "KSM_MERGE",
    "LAZY",
    "MAJOR",
    "MARK",
    "MEASURED",
    "ON_HOST",
    "POPULATE",
    "READ",
    "SWAPPED",
    "SWAP_IN",
    "SWAP_OUT",
    "UNMAP",
    "UNWRITTEN",
    "WRITE",
    "ZEROED",
    "Columns",
    "Event",
]

# Operations: the kinds of the trace, reduced to what they do to a page.
IGNORE: Final = 0
FAULT: Final = 1  # an access that faulted
DROP: Final = 2  # the host took the page away: discarded, punched out, ballooned, reported free
UNMAP: Final = 3  # the mapping went, the page may still be there
ALLOC: Final = 4  # guest: page_alloc
FREE: Final = 5  # guest: page_free
ACCESSED: Final = 6  # an access sample (DAMON region, accessed bits)
HINT: Final = 7  # a memory heat hint that the guest really gave
SWAP_OUT: Final = 8
SWAP_IN: Final = 9
KSM_MERGE: Final = 10
KSM_BREAK: Final = 11
POPULATE: Final = 12  # the host backed the page by itself (MADV_POPULATE_*, prefault)
MARK: Final = 13
HYPERCALL: Final = 14

# Bits of an event.
READ: Final = 1
WRITE: Final = 2
EXECUTE: Final = 4
MEASURED: Final = 1 << 3  # the trace holds its latency
ON_HOST: Final = 1 << 4  # host_fault (a VMM thread's own fault), not an exit of the guest
MAJOR: Final = 1 << 5  # waited for I/O
ZEROED: Final = 1 << 6  # ALLOC: the guest zeroed the page
UNWRITTEN: Final = ZEROED  # SWAP_OUT: no device has it, so nothing will wait for one
IN_KERNEL: Final = 1 << 7  # the guest was in kernel mode
PRESENT: Final = 1 << 8  # an entry was there: write protection, accessed/dirty, spurious
GUEST_WALK: Final = 1 << 9
CONTINUED: Final = 1 << 10  # a further block of the event before it
HINT_HOT: Final = 1 << 11
HINT_DISCARD: Final = 1 << 12
LAZY: Final = 1 << 13  # DROP by MADV_FREE: taken only under pressure
OFF_CLOCK: Final = 1 << 14  # not on a vCPU: has no closed-loop clock of its own
MAPPED: Final = (
    1 << 15
)  # a fault whose page was certainly mapped by it: the guest's has a level, or it is the host's

# Fault classes: what a fault costs depends on who took it and how much it mapped.
EPT: Final = 0
HOST_MINOR: Final = 1
HOST_MAJOR: Final = 2
EPT_MAJOR: Final = 3
LEVELS: Final = 4  # level 0 = not known, 1 = 4 KiB, 2 = 2 MiB, 3 = 1 GiB
CLASSES: Final = 4 * LEVELS
"""Number of fault classes; a class is `taker * LEVELS + level`."""
SWAPPED: Final = EPT_MAJOR * LEVELS + 1
"""The class of a guest's fault on a page whose contents went to swap."""
BACKED_AHEAD: Final = CLASSES
"""After the classes in World.cost: a guest's fault on a page that the host backed ahead, of any size."""

# What an event must find its one page to be so that nothing changes, by the kind of event (`Columns.calm`).
CALM_NEVER: Final = 0
CALM_FAULT: Final = 1  # of the guest, that mapped its page without I/O
CALM_MAJOR: Final = 2  # of the guest, after I/O
CALM_HOST_FAULT: Final = 3
CALM_ALLOC: Final = 4
CALM_FREE: Final = 5
CALM_ACCESSED: Final = 6
CALM_KINDS: Final = 7
CALM_FAULTS: Final = (CALM_FAULT, CALM_MAJOR, CALM_HOST_FAULT)
CALM_OTHERS: Final = (CALM_ALLOC, CALM_FREE, CALM_ACCESSED)
CALM_ALL: Final = (*CALM_FAULTS, *CALM_OTHERS)

BLOCK_PAGES: Final = 512
"""Pages of one block, the unit of the dense page index: 2 MiB of 4 KiB pages."""


class Columns(NamedTuple):
    """One batch of events as arrays of equal length, in time order.

    `t` and `latency` are ns (`t` since the start of the trace, completion), `gap` is how long before `t` the
    last fault of the same lane was complete; `page` is the dense page (-1 = not guest memory that we know);
    `pages` never crosses a block. `cls` is the fault class (and so its level). `calm`: CALM_ kind of an event
    of one page; else CALM_NEVER.
    """

    t: NDArray[np.int64]
    latency: NDArray[np.int64]
    gap: NDArray[np.int64]
    page: NDArray[np.int64]
    pages: NDArray[np.uint16]
    lane: NDArray[np.int32]
    bits: NDArray[np.uint16]
    op: NDArray[np.uint8]
    cls: NDArray[np.uint8]
    calm: NDArray[np.uint8]


class Event(NamedTuple):
    """One event as a hook receives it; times are counterfactual ns since the start of the trace.

    `end - latency = start`; `latency` is the recorded (or, where missing, modelled) service time.
    """

    op: int
    page: int
    pages: int
    level: int
    bits: int
    lane: int
    start: int
    end: int
    latency: int
