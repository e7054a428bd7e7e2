"""The tables of a trace, column by column: names, types, units, and what null means.

One event is one row. Units stand in the names; nothing is encoded as -1. The Arrow schemas here are
the only definition: the recorder, importers, generators and the reader all use them.
"""

from __future__ import annotations

from typing import Final

import pyarrow as pa

__all__ = [
    "ACCESS_EXECUTE",
    "ACCESS_READ",
    "ACCESS_WRITE",
    "EVENTS",
    "FLAG_ATTACH",
    "FLAG_GUEST_WALK",
    "FLAG_KERNEL",
    "FLAG_MAJOR",
    "FLAG_PRESENT",
    "FLAG_UNWRITTEN",
    "FLAG_ZEROED",
    "KINDS",
    "KIND_CODE",
    "LEVEL_BYTES",
    "LOSSES",
    "MEMSLOTS",
    "PAGE_BYTES",
    "SAMPLES",
    "SCHEMA_VERSION",
]

SCHEMA_VERSION: Final = 1
"""Raised when a reader of the previous version could misread a trace; readers accept all older ones."""

PAGE_BYTES: Final = 4096
LEVEL_BYTES: Final[dict[int, int]] = {1: 1 << 12, 2: 1 << 21, 3: 1 << 30}
"""Mapping level -> bytes, as KVM counts levels: 1 = 4 KiB, 2 = 2 MiB, 3 = 1 GiB."""

ACCESS_READ: Final = 1
ACCESS_WRITE: Final = 2
ACCESS_EXECUTE: Final = 4

KINDS: Final[tuple[str, ...]] = (
    # host side
    "ept_violation",  # an MMU fault of the VM (EPT, NPT or shadow): latency = exit .. mapping installed
    "host_fault",  # a fault of a VMM thread on its own memory; FLAG_MAJOR in flags
    "map",  # a leaf entry was installed, with its level
    "unmap",  # an MMU notifier invalidated hva .. hva + pages
    "age",  # the accessed bits of hva .. hva + pages were read and cleared
    "madvise",  # arg = advice
    "process_madvise",
    "fallocate",  # arg = mode
    "balloon_inflate",
    "balloon_deflate",
    "free_page_report",
    "memslot",  # KVM_SET_USER_MEMORY_REGION: gfn, hva, pages (0 = deleted), arg = slot
    "hypercall",  # arg = nr
    "hv_hypercall",  # arg = code
    "apf_not_present",
    "apf_ready",
    "apf_completed",
    "ksm_merge",
    "ksm_break",
    "swap_in",
    "swap_out",
    "vcpu_block",
    "vcpu_wake",
    # guest side
    "page_alloc",  # FLAG_ZEROED in flags
    "page_free",
    "guest_fault",
    "access",  # a DAMON region: arg = number of accesses seen
    # either side
    "mark",  # a point the user named (start of a phase); arg = index into meta.marks
)
"""Event kinds; the position is the code on the wire, so new kinds are appended, never inserted."""

KIND_CODE: Final[dict[str, int]] = {name: code for code, name in enumerate(KINDS)}

FLAG_MAJOR: Final = 1 << 0  # host_fault, swap_in: the fault waited for I/O
FLAG_ZEROED: Final = 1 << 1  # page_alloc: the kernel zeroed the page for the caller
FLAG_PRESENT: Final = 1 << 2  # ept_violation: an entry was there (write protection, A/D, spurious)
FLAG_GUEST_WALK: Final = 1 << 3  # ept_violation: the guest's own page-table walk faulted, not its data access
FLAG_KERNEL: Final = 1 << 4  # the guest was in kernel mode (CPL 0), where known
FLAG_ATTACH: Final = 1 << 5  # state found at attach (a snapshot), not something that happened
FLAG_UNWRITTEN: Final = 1 << 6  # swap_out, swap_in: on no device: a page of zeros, or kept by zswap


def _event_schema() -> pa.Schema:
    kind = pa.dictionary(pa.uint8(), pa.string())
    # polars reads a dictionary column with this key as its Enum type, so comparisons with an unknown
    # kind are errors instead of silently empty results.
    enum_values = "".join(f"{len(k.encode())};{k}" for k in KINDS)
    return pa.schema(
        [
            pa.field("ts_ns", pa.uint64(), nullable=False),
            pa.field("kind", kind, nullable=False, metadata={"_PL_ENUM_VALUES2": enum_values}),
            pa.field("vm", pa.uint16(), nullable=False),
            pa.field("tid", pa.uint32(), nullable=False),
            pa.field("vcpu", pa.int16()),
            pa.field("gfn", pa.uint64()),
            pa.field("hva", pa.uint64()),
            pa.field("gva", pa.uint64()),
            pa.field("pages", pa.uint32(), nullable=False),
            pa.field("level", pa.uint8()),
            pa.field("access", pa.uint8(), nullable=False),
            pa.field("flags", pa.uint32(), nullable=False),
            pa.field("latency_ns", pa.uint64()),
            pa.field("rip", pa.uint64()),
            pa.field("arg", pa.uint64()),
        ]
    )


EVENTS: Final[pa.Schema] = _event_schema()
"""Events: `ts_ns` is when the event was complete (CLOCK_MONOTONIC), so it began at ts_ns - latency_ns.

Completion time is what a ring buffer delivers in order: a part can be strictly time-ordered without
holding back rows for as long as the slowest fault. `pages` counts 4 KiB pages; `gfn` is their first;
`vm` indexes meta.vms; `access` is a set of ACCESS_* bits (0 = not known); null = not known.
"""

MEMSLOTS: Final[pa.Schema] = pa.schema(
    [
        pa.field("vm", pa.uint16(), nullable=False),
        pa.field("slot", pa.uint32(), nullable=False),
        pa.field("gpa", pa.uint64(), nullable=False),
        pa.field("size_bytes", pa.uint64(), nullable=False),
        pa.field("hva", pa.uint64(), nullable=False),
        pa.field("flags", pa.uint32(), nullable=False),
        pa.field("from_ns", pa.uint64(), nullable=False),
        pa.field("to_ns", pa.uint64()),
        pa.field("known_by", pa.string(), nullable=False),
    ]
)
"""Memslots: null `to_ns` = there at the end; `known_by`: ioctl, btf, monitor, assumed or synthetic."""

SAMPLES: Final[pa.Schema] = pa.schema(
    [
        pa.field("ts_ns", pa.uint64(), nullable=False),
        pa.field("vm", pa.uint16(), nullable=False),
        pa.field("metric", pa.string(), nullable=False),
        pa.field("value", pa.float64(), nullable=False),
    ]
)
"""Samples, 1 Hz and long: `metric` such as rss_bytes, pss_bytes, swap_bytes, minor_faults, kvm_pf_fixed."""

LOSSES: Final[pa.Schema] = pa.schema(
    [
        pa.field("cpu", pa.int32()),
        pa.field("t0_ns", pa.uint64(), nullable=False),
        pa.field("t1_ns", pa.uint64(), nullable=False),
        pa.field("lost", pa.uint64()),
        pa.field("reason", pa.string(), nullable=False),
    ]
)
"""The loss ledger: null `lost` = an unknown number, never zero; null `cpu` = any; bounds are inclusive."""
