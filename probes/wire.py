"""The record as the BPF programs write it: its bytes, its validity bits, and why a record can be lost.

The C side gets these numbers generated (source.py), so that each is written down once.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from tracekit.trace.loss_reasons import SWAP_OUT_UNPLACED
from tracekit.trace.schema import KINDS

__all__ = [
    "HEADER_BYTES",
    "LOST",
    "NULLABLE",
    "RECORD",
    "RECORD_BYTES",
    "VALID",
    "VM_UNKNOWN",
]

HEADER_BYTES: Final = 8
"""The ring's header before each record: u32 length with the busy and discard bits, u32 page offset."""

RECORD: Final = np.dtype(
    [
        ("length", "<u4"),
        ("page", "<u4"),
        *((name, "<u8") for name in ("ts_ns", "gfn", "hva", "gva", "latency_ns", "rip", "arg")),
        *((name, "<u4") for name in ("tid", "pages")),
        ("vm", "<u2"),
        ("vcpu", "<i2"),
        *((name, "u1") for name in ("kind", "level", "flags", "valid")),
    ]
)
"""One record with its ring header (struct record of bpf/common.h): 80 bytes.

Few kinds have something to say beyond the columns, and no address of an instruction: it stands in `rip`, or
`gva`, not valid as such (the size of a `memslot`, whose flags are the high half of `arg` and whose VM's
descriptor is in `pages`; the descriptor of a `fallocate`, the device above it and the inode's number; the
process that a `process_madvise` advised, or 0, and its caller's with the pidfd above it; the process, or 0,
whose memory an event of a notifier, KSM or reclaim is of; that a `swap_out` without an address may be a
guest's).
"""

RECORD_BYTES: Final = RECORD.itemsize - HEADER_BYTES

NULLABLE: Final = ("vcpu", "gfn", "hva", "gva", "level", "latency_ns", "rip", "arg")
"""The columns that can be null; bit n of `valid` says that column n of these is there."""

VALID: Final[dict[str, int]] = {name: 1 << bit for bit, name in enumerate(NULLABLE)}

VM_UNKNOWN: Final = 0xFFFF
"""`vm` of a record whose VM only user space can tell (another process acted on the VM's memory)."""

LOST: Final[tuple[str, ...]] = (
    "table_full",  # no room to remember the start of an operation: its record is lost
    "untraced_process",  # more processes than MAX_PROCESSES: the events of the next ones are lost
    "untraced_thread",  # more threads than MAX_THREADS: the events of the next ones are lost
    "unreadable_argument",  # a system call's argument was not in memory when the program read it
    "ranges_cut",  # a process_madvise call named more ranges than a program can walk
    SWAP_OUT_UNPLACED,  # at most: a page went out, and no unmapping tells where, or whether, a guest had it
    *(f"ring_full: {kind}" for kind in KINDS),  # no room for a record of that kind: the reader was too slow
)
"""Why the BPF programs lose records: the position is the index of their counter."""
