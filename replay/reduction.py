"""The kernel that reduces raw rows of a trace to operations on dense pages."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tracekit.replay import events as ev
from tracekit.replay.index import NEED_LEAF, Directory, block_of
from tracekit.replay.jit import compiled, hot
from tracekit.trace import schema

__all__ = [
    "DONE",
    "FULL",
    "NEED_BLOCKS",
    "NEED_LANES",
    "Lanes",
    "Raw",
    "Stalls",
    "kernel",
    "new_lanes",
    "reduce_rows",
]

DONE: Final = 0
NEED_BLOCKS: Final = 1
NEED_LANES: Final = 2
FULL: Final = 3

MAX_TID: Final = 1 << 22  # Linux: PID_MAX_LIMIT
MAX_VCPU: Final = 1 << 15
OUTSIDE_ROWS: Final = 32
OWN_FAULTS: Final = 33
COUNTS: Final = 34
"""Length of the counts: rows by operation, rows outside guest memory, faults of the VMM on its own memory."""

WIDE: Final = 1 << 18
"""A discard of more pages than this (1 GiB) does not give numbers to blocks that nothing ever touched."""


class Raw(NamedTuple):
    """The columns of one batch of a trace; -1 = null (level: 0)."""

    ts: NDArray[np.int64]
    kind: NDArray[np.uint8]
    vm: NDArray[np.uint16]
    tid: NDArray[np.uint32]
    vcpu: NDArray[np.int16]
    gfn: NDArray[np.int64]
    pages: NDArray[np.uint32]
    level: NDArray[np.uint8]
    access: NDArray[np.uint8]
    flags: NDArray[np.uint32]
    latency: NDArray[np.int64]
    arg: NDArray[np.int64]


class Lanes(NamedTuple):
    """Numbers for the sequences of events that wait for each other: vCPUs, or threads where no vCPU is known.

    Lane v < number of VMs is the clock of VM v itself, for events of no vCPU (a discard by the VMM).
    `name[lane]`: vCPU number, or -1 - tid of a thread, or -(1 << 40) for a VM's own clock.
    """

    of_vcpu: NDArray[np.int32]
    of_tid: NDArray[np.int32]
    vm: NDArray[np.int64]
    name: NDArray[np.int64]
    used: NDArray[np.int64]

    def grown(self) -> Lanes:
        """Return the same with room for twice as many lanes."""
        return self._replace(
            vm=np.concatenate([self.vm, self.vm]), name=np.concatenate([self.name, self.name])
        )


class Stalls:
    """When the last fault of each lane was complete, so far in one pass over the events, ns."""

    def __init__(self, lanes: int) -> None:
        """Begin a pass: no lane has faulted."""
        self.ends = np.full(lanes, NO_FAULT, np.int64)

    def grow(self, lanes: int) -> None:
        """Make room for so many lanes."""
        self.ends = np.concatenate([self.ends, np.full(lanes - len(self.ends), NO_FAULT, np.int64)])


NO_FAULT: Final = -(1 << 62)
OWN_CLOCK: Final = -(1 << 40)


def new_lanes(vms: int) -> Lanes:
    """Return lanes that only hold the clock of each VM."""
    room = max(64, 2 * vms)
    name = np.full(room, OWN_CLOCK, np.int64)
    vm = np.arange(room, dtype=np.int64)
    return Lanes(
        of_vcpu=np.full(vms * MAX_VCPU, -1, np.int32),
        of_tid=np.full(MAX_TID, -1, np.int32),
        vm=vm,
        name=name,
        used=np.array([vms], np.int64),
    )


def _op_table() -> NDArray[np.uint8]:
    ops = {
        "ept_violation": ev.FAULT,
        "host_fault": ev.FAULT,
        "unmap": ev.UNMAP,
        "balloon_inflate": ev.DROP,
        "free_page_report": ev.DROP,
        "ksm_merge": ev.KSM_MERGE,
        "ksm_break": ev.KSM_BREAK,
        "swap_in": ev.SWAP_IN,
        "swap_out": ev.SWAP_OUT,
        "page_alloc": ev.ALLOC,
        "page_free": ev.FREE,
        "access": ev.ACCESSED,
        "mark": ev.MARK,
        "hypercall": ev.HYPERCALL,
    }
    table = np.full(256, ev.IGNORE, np.uint8)
    for name, op in ops.items():
        table[schema.KIND_CODE[name]] = op
    return table


OPS: Final = _op_table()
HOST_FAULT: Final = schema.KIND_CODE["host_fault"]
MADVISE: Final = schema.KIND_CODE["madvise"]
PROCESS_MADVISE: Final = schema.KIND_CODE["process_madvise"]
FALLOCATE: Final = schema.KIND_CODE["fallocate"]
HV_HYPERCALL: Final = schema.KIND_CODE["hv_hypercall"]
DEFLATE: Final = schema.KIND_CODE["balloon_deflate"]
ACCESS: Final = schema.KIND_CODE["access"]


@hot
def operation(kind: int, arg: int) -> int:
    """Return what an event of this kind does to its pages (madvise(2), fallocate(2), FACTS of each kind)."""
    if kind in (MADVISE, PROCESS_MADVISE):
        if arg in (4, 8, 9):  # MADV_DONTNEED, MADV_FREE, MADV_REMOVE
            return ev.DROP
        if arg == 21:  # MADV_PAGEOUT
            return ev.SWAP_OUT
        if arg in (22, 23):  # MADV_POPULATE_READ, MADV_POPULATE_WRITE
            return ev.POPULATE
        return ev.IGNORE
    if kind == FALLOCATE:
        return ev.DROP if arg & 2 else ev.IGNORE  # FALLOC_FL_PUNCH_HOLE
    if kind == ACCESS and arg == 0:
        return ev.IGNORE  # a region that was sampled and found untouched
    if kind == HV_HYPERCALL:
        # A range of a memory heat hint is a row with 1 + heat type above the code; the call itself is plain.
        return ev.HINT if arg >> 16 > 0 else ev.HYPERCALL
    return int(OPS[kind])


@hot
def flag_bits(kind: int, arg: int, access: int, flags: int, latency: int) -> int:
    """Return the bits of an event from the trace's access and flags columns."""
    bits = access & 7
    if latency >= 0:
        bits |= ev.MEASURED
    if kind == HOST_FAULT:
        bits |= ev.ON_HOST
    if flags & schema.FLAG_MAJOR:
        bits |= ev.MAJOR
    if flags & schema.FLAG_ZEROED:
        bits |= ev.ZEROED
    if flags & schema.FLAG_UNWRITTEN:
        bits |= ev.UNWRITTEN
    if flags & schema.FLAG_KERNEL:
        bits |= ev.IN_KERNEL
    if flags & schema.FLAG_PRESENT:
        bits |= ev.PRESENT
    if flags & schema.FLAG_GUEST_WALK:
        bits |= ev.GUEST_WALK
    if kind == HV_HYPERCALL and arg >> 16 == 2:
        bits |= ev.HINT_HOT
    if kind == HV_HYPERCALL and arg >> 16 == 3:
        bits |= ev.HINT_DISCARD
    if kind in (MADVISE, PROCESS_MADVISE) and arg == 8:
        bits |= ev.LAZY
    return bits


@hot
def lane_of(raw: Raw, row: int, op: int, lanes: Lanes) -> int:
    """Return the lane of a row, giving out a new one on first sight; -1 = no room."""
    vm = int(raw.vm[row])
    vcpu = int(raw.vcpu[row])
    if vcpu < 0 and op != ev.FAULT:
        return vm
    if vcpu >= 0:
        lane = int(lanes.of_vcpu[vm * MAX_VCPU + vcpu])
    else:
        lane = int(lanes.of_tid[int(raw.tid[row]) % MAX_TID])
    if lane >= 0:
        return lane
    lane = int(lanes.used[0])
    if lane >= len(lanes.vm):
        return -1
    lanes.used[0] += 1
    lanes.vm[lane] = vm
    if vcpu >= 0:
        lanes.of_vcpu[vm * MAX_VCPU + vcpu] = lane
        lanes.name[lane] = vcpu
    else:
        lanes.of_tid[int(raw.tid[row]) % MAX_TID] = lane
        lanes.name[lane] = -1 - int(raw.tid[row])
    return lane


@hot
def fault_class(bits: int, level: int) -> int:
    """Return the class of a fault: who takes it (guest exit or VMM thread, minor or major) and its level."""
    if bits & ev.ON_HOST:
        taker = ev.HOST_MAJOR if bits & ev.MAJOR else ev.HOST_MINOR
    else:
        taker = ev.EPT_MAJOR if bits & ev.MAJOR else ev.EPT
    return taker * ev.LEVELS + min(level, ev.LEVELS - 1)


@hot
def calm_kind(op: int, bits: int) -> int:
    """Return the CALM_ kind of an event of one page."""
    if op == ev.FAULT:
        if not bits & ev.MAPPED:
            return ev.CALM_NEVER
        if bits & ev.ON_HOST:
            return ev.CALM_HOST_FAULT
        return ev.CALM_MAJOR if bits & ev.MAJOR else ev.CALM_FAULT
    if op == ev.ALLOC:
        return ev.CALM_ALLOC
    if op == ev.FREE:
        return ev.CALM_FREE
    return ev.CALM_ACCESSED if op == ev.ACCESSED else ev.CALM_NEVER


@hot
def put(out: ev.Columns, o: int, page: int, part: int, latency: int, bits: int) -> None:
    """Write what belongs to one block of an event."""
    out.latency[o] = max(latency, 0)
    out.page[o] = page
    out.pages[o] = min(part, ev.BLOCK_PAGES)
    out.bits[o] = bits


def reduce_rows(
    raw: Raw,
    limits: NDArray[np.int64],
    row: int,
    o: int,
    out: ev.Columns,
    d: Directory,
    lanes: Lanes,
    ends: NDArray[np.int64],
    t0: int,
    counts: NDArray[np.int64],
) -> tuple[int, int, int]:
    """Translate rows from `row` on into `out[o:]`; return (next row, next o, why it stopped).

    `limits` has the end of each VM's memory (a gfn), where events are cut off. See `COUNTS` for what `counts`
    counts, `Stalls` for `ends`.
    """
    while row < len(raw.ts):
        kind = int(raw.kind[row])
        arg = int(raw.arg[row])
        op = operation(kind, arg)
        if op == ev.IGNORE:
            counts[ev.IGNORE] += 1
            row += 1
            continue
        lane = lane_of(raw, row, op, lanes)
        if lane < 0:
            return row, o, NEED_LANES
        vm = int(raw.vm[row])
        gfn = int(raw.gfn[row])
        n = min(max(int(raw.pages[row]), 1), max(int(limits[vm]) - max(gfn, 0), 1))
        latency = int(raw.latency[row])
        bits = flag_bits(kind, arg, int(raw.access[row]), int(raw.flags[row]), latency)
        if int(raw.vcpu[row]) < 0 and op != ev.FAULT:
            bits |= ev.OFF_CLOCK
        if raw.level[row] > 0 or bits & ev.ON_HOST:
            bits |= ev.MAPPED
        cls = fault_class(bits, int(raw.level[row]))
        give = n <= WIDE or op in (ev.FAULT, ev.POPULATE)
        begin = o
        outside = gfn < 0
        done = 0
        while done < n:
            part = n - done
            page = -1
            if gfn >= 0:
                at = gfn + done
                part = min(part, ev.BLOCK_PAGES - (at & (ev.BLOCK_PAGES - 1)))
                block = block_of(d, vm, at, give)
                if block == NEED_LEAF:
                    return row, begin, NEED_BLOCKS
                if block >= 0:
                    page = block * ev.BLOCK_PAGES + (at & (ev.BLOCK_PAGES - 1))
                else:
                    outside = outside or give
            if page >= 0 or done == 0:
                if o >= len(out.t):
                    return row, begin, FULL
                out.t[o] = raw.ts[row] - t0
                out.lane[o] = lane
                out.gap[o] = raw.ts[row] - t0 - ends[lane]
                out.op[o] = op
                out.cls[o] = cls
                out.calm[o] = calm_kind(op, bits) if n == 1 and page >= 0 else ev.CALM_NEVER
                put(
                    out,
                    o,
                    page,
                    part,
                    latency if done == 0 else -1,
                    bits if done == 0 else bits | ev.CONTINUED,
                )
                o += 1
            done += part
        if outside and kind == HOST_FAULT and int(raw.vcpu[row]) < 0 and len(d.slots) > 0:
            # A thread of the VMM faulted on memory of its own: no vCPU waits for it.
            counts[OWN_FAULTS] += 1
            o = begin
        else:
            counts[op] += 1
            counts[OUTSIDE_ROWS] += 1 if outside else 0
            if op == ev.FAULT:
                ends[lane] = raw.ts[row] - t0
        row += 1
    return row, o, DONE


PLAIN_ROWS: Final = 4096
"""Batches up to this long are reduced uncompiled: quicker than loading the compiled twin."""


def kernel(rows: int) -> Callable[..., Any]:
    """Return `reduce_rows`, compiled if there are enough rows to pay for that."""
    return _compiled() if rows > PLAIN_ROWS else reduce_rows


@cache
def _compiled() -> Callable[..., Any]:
    return compiled(reduce_rows)
