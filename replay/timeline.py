"""From a trace to the columns that the kernels read: batch by batch, so any trace fits.

Kinds become operations on pages, gfns become dense pages, vCPUs (or threads) become lanes, and an event
that spans several blocks becomes one row per block. Hooks see every number as int64.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from typing import Any, Final, Protocol

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from tracekit.errors import DamagedError, FailedError
from tracekit.replay import events as ev
from tracekit.replay.events import Columns
from tracekit.replay.index import MAX_GFN, TOPS, PageIndex
from tracekit.replay.own_time import own_time, without_own_time
from tracekit.replay.reduction import (
    COUNTS,
    DONE,
    FULL,
    MAX_VCPU,
    NEED_BLOCKS,
    NEED_LANES,
    OUTSIDE_ROWS,
    OWN_FAULTS,
    PLAIN_ROWS,
    Lanes,
    Raw,
    Stalls,
    kernel,
    new_lanes,
)
from tracekit.trace import Trace
from tracekit.trace.ahead import ahead
from tracekit.trace.room import require_memory
from tracekit.trace.sampling import scale_of
from tracekit.trace.schema import KIND_CODE, PAGE_BYTES

__all__ = ["Timeline", "TraceLike"]

MADVISES: Final = (KIND_CODE["madvise"], KIND_CODE["process_madvise"])
COLUMNS: Final = ["ts_ns", "kind", "vm", "tid", "vcpu", "gfn", "hva", "pages", "level", "access", "flags",
                  "latency_ns", "arg"]  # fmt: skip

BATCH_ROWS: Final = 1 << 20
"""Rows of a batch of columns: enough for sorting by block to pay. A trace may have another `batch_rows`."""
READ_AHEAD: Final = 16
"""Batches that another thread reads ahead: of 64 Ki rows in the file, together a batch of columns."""
READ_ALONE: Final = 1 << 16
"""Up to so many rows a thread costs more than it saves."""
_ROW_BYTES: Final = 43
_VM_BYTES: Final = 4 * (TOPS + MAX_VCPU)  # of the tables that every VM has
_MOST_ROWS: Final = 1 << 28
_MOST_ROWS_PER_EVENT: Final = 64
_LONGEST_NS: Final = 1 << 61  # 73 years; sums and differences of such times fit into 64 bits


class TraceLike(Protocol):
    """What a replay needs of a trace; `tracekit.trace.Trace` has it."""

    @property
    def meta(self) -> Any:
        """What the trace says of itself: start_ns, stop_ns, vms, source, marks."""

    @property
    def memslots(self) -> pl.DataFrame:
        """Rows in the MEMSLOTS schema."""

    @property
    def losses(self) -> pl.DataFrame:
        """Rows in the LOSSES schema."""

    @property
    def lost(self) -> int | None:
        """Events lost; None = an unknown number."""

    def batches(
        self, columns: list[str] | None = None, batch_rows: int = 1 << 20
    ) -> Iterator[pa.RecordBatch]:
        """Yield the events in time order."""


class Timeline:
    """A trace as batches of `Columns`, with the tables that give its pages and lanes their numbers.

    Iterate it once per pass; pages and lanes keep their numbers over passes. A trace of up to `keep_rows`
    rows stays in memory (43 bytes a row) after the first pass; a larger one is read again each time.
    `share` is the share of guest memory that the trace is a sample of (1 = all of it).
    `start_ns` is the trace's zero, `span_ns` its length; `seen` counts the events of each operation, `rows`
    those of the columns: one for each block that an event spans.
    `levels_known` says whether any fault of the guest has a level. `outside_rows` counts rows whose gfn is
    missing or in no memslot (they count as faults and stall, but no mechanism can save them), `own_faults`
    faults of the VMM on memory that is not the guest's (left out). `own_ns` is what own_time.py takes off.
    """

    def __init__(self, trace: TraceLike, *, keep_rows: int = 1 << 24) -> None:
        """Read the memslots and the time bounds; the events are only read on iteration."""
        self.trace = trace
        self.batch_rows = int(getattr(trace, "batch_rows", BATCH_ROWS))
        self.slots = _slots(trace.memslots)
        vms = max(len(trace.meta.vms), 1)
        if len(trace.memslots):
            vms = max(vms, int(np.asarray(trace.memslots["vm"]).max()) + 1)
        self.vms = vms
        self._sampling = getattr(trace.meta, "sampling", None) or {}
        self.share = float(self._sampling.get("gfn_hash", 1.0))
        require_memory(vms * _VM_BYTES, f"a replay of {vms:,} VMs")
        self._ends = np.full(vms, MAX_GFN, np.int64)
        if len(self.slots):
            self._ends[:] = 0
            np.maximum.at(self._ends, self.slots[:, 0], np.minimum(self.slots[:, 2], MAX_GFN))
        self.rows = self._events = 0
        self._waited_ns = 0.0
        self.index = PageIndex(vms, self.slots)
        self.lanes: Lanes = new_lanes(vms)
        self.seen = np.zeros(32, np.int64)
        self.outside_rows = 0
        self.own_faults = 0
        self.own_ns = own_time(trace.meta)
        self.levels_known = False
        self._kept: list[Columns] | None = []
        self._room = keep_rows
        self.start_ns = int(trace.meta.start_ns or 0)
        self.last_ns = self.start_ns
        self._passes = 0

    @property
    def span_ns(self) -> int:
        """Length of the trace: to its recorded stop, or to its last event if that is later or alone."""
        return max(int(self.trace.meta.stop_ns or 0), self.last_ns) - self.start_ns

    @property
    def kept(self) -> bool:
        """Whether the columns are in memory: then a further pass costs nothing."""
        return self._passes > 0 and self._kept is not None

    @property
    def memory_bytes(self) -> int | None:
        """Guest memory by the memslots (bytes, overlaps counted once); None if the trace has none.

        Of a sample, what comes to this when it is scaled up like the pages that faulted.
        """
        if not len(self.slots):
            return None
        total = 0
        for vm in np.unique(self.slots[:, 0]):
            rows = self.slots[self.slots[:, 0] == vm]
            rows = rows[np.argsort(rows[:, 1], kind="stable")]
            reach = 0
            for _, first, end in rows:
                total += max(0, int(end) - max(int(first), reach))
                reach = max(reach, int(end))
        return round(total / scale_of(self._sampling, "pages")) * PAGE_BYTES

    @property
    def mapped_around(self) -> int:
        """Most pages that one 4 KiB fault of the guest maps where the host has them already.

        KVM's shadow paging fills the aligned group of 8 entries (PTE_PREFETCH_NUM of arch/x86/kvm/mmu/mmu.c),
        nested paging the one that faulted.
        """
        host = getattr(self.trace.meta, "host", None) or {}
        return 8 if host.get("mmu_mode") == "shadow" else 1

    @property
    def not_by_the_guest(self) -> int:
        """The bit of a fault that says that the guest's own code did not make it.

        That a VMM thread took it; where the guest is emulated (TCG) its code runs in such threads, and only
        what the kernel did on their behalf is known not to be its.
        """
        host = getattr(self.trace.meta, "host", None) or {}
        return ev.IN_KERNEL if host.get("mmu_mode") == "tcg" else ev.ON_HOST

    def __iter__(self) -> Iterator[Columns]:
        """Yield the columns of one batch after another, in time order."""
        first_pass = self._passes == 0
        self._passes += 1
        if not first_pass and self._kept is not None:
            yield from self._kept
            return
        for columns in self._columns(count=first_pass):
            if first_pass and self._kept is not None:
                self._room -= len(columns.t)
                self._kept = [*self._kept, columns] if self._room >= 0 else None
            yield columns

    def raw(self) -> Iterator[Raw]:
        """Yield the rows as they stand in the trace, for what the columns do not hold."""
        return map(self._within_memory, self._rows(first_pass=False))

    def _rows(self, first_pass: bool) -> Generator[Raw]:
        previous = -1
        for batch in self.trace.batches(COLUMNS, 0):
            if batch.num_rows == 0:
                continue
            raw = without_own_time(_raw(batch, self.trace.memslots, self.vms), self.own_ns)
            if raw.ts[0] < previous or np.any(raw.ts[1:] < raw.ts[:-1]):
                raise DamagedError(
                    "the events of the trace are not in time order", hint="tracekit recover TRACE"
                )
            previous = int(raw.ts[-1])
            if first_pass:
                if not self.start_ns or int(raw.ts[0]) < self.start_ns:
                    self.start_ns = int(raw.ts[0])
                self.last_ns = max(self.last_ns, previous)
                self._events += len(raw.ts)
                self._waited_ns += float(np.maximum(raw.latency, 0).sum(dtype=np.float64))
                if max(self.last_ns - self.start_ns, self._waited_ns) > _LONGEST_NS:
                    raise DamagedError(
                        "the events of the trace span more than 73 years, or wait so long in all",
                        hint="tracekit info TRACE   shows its clock and where it is from",
                    )
            yield raw

    def _within_memory(self, raw: Raw) -> Raw:
        """Cut events off at the end of their VM's last memslot, or of what x86-64 can address."""
        ends = self._ends[raw.vm]
        room = np.maximum(ends - np.maximum(raw.gfn, 0), 1)
        if not np.any(raw.pages > room):
            return raw
        return raw._replace(pages=np.minimum(raw.pages, room).astype(np.uint32))

    def _columns(self, *, count: bool) -> Iterator[Columns]:
        """Yield the events as columns, `batch_rows` rows at a time."""
        long = isinstance(self.trace, Trace) and self.trace.rows > READ_ALONE
        columns = self._reduced(long=long, count=count)
        # A first pass gives out numbers to pages and lanes: nobody may see more of them than of the events.
        with closing(ahead(columns) if long and not count else columns) as one_after_another:
            yield from one_after_another

    def _reduced(self, *, long: bool, count: bool) -> Generator[Columns]:
        rows = self._rows(count)
        with closing(ahead(rows, READ_AHEAD) if long else rows) as read:
            yield from self._reduce(read, count=count)

    def _reduce(self, rows: Iterable[Raw], *, count: bool) -> Iterator[Columns]:
        stalls = Stalls(len(self.lanes.vm))
        counts = np.zeros(COUNTS, np.int64)
        out, filled, needed = _new_columns(self.batch_rows), 0, 0
        for raw in rows:
            if needed <= PLAIN_ROWS:
                needed += _rows_needed(self._within_memory(raw))
            reduce, at, why = kernel(needed), 0, FULL
            while why != DONE:
                at, filled, why = reduce(
                    raw,
                    self._ends,
                    at,
                    filled,
                    out,
                    self.index.directory,
                    self.lanes,
                    stalls.ends,
                    self.start_ns,
                    counts,
                )
                if why == NEED_BLOCKS:
                    self.index.grow()
                elif why == NEED_LANES:
                    self.lanes = self.lanes.grown()
                    stalls.grow(len(self.lanes.vm))
                elif why == FULL and not filled:  # one event spans more blocks than a batch has rows
                    out = _larger(out, self._within_memory(raw))
                elif why == FULL:
                    yield self._whole(out, filled, counts, count=count)
                    out, filled = _new_columns(self.batch_rows), 0
        last = self._whole(out, filled, counts, count=count)
        if filled:
            yield last

    def _whole(self, out: Columns, filled: int, counts: NDArray[np.int64], *, count: bool) -> Columns:
        if count:
            self._note(out, filled)
            self.seen += counts[:OUTSIDE_ROWS]
            self.outside_rows += int(counts[OUTSIDE_ROWS])
            self.own_faults += int(counts[OWN_FAULTS])
        counts[:] = 0
        whole: Any = [column[:filled] for column in out]
        return Columns(*whole)

    def _note(self, out: Columns, filled: int) -> None:
        if not self.levels_known:
            self.levels_known = bool(np.any((out.cls[:filled] % ev.LEVELS > 0) & _guest_faults(out, filled)))
        self.rows += filled
        if self.rows > _MOST_ROWS_PER_EVENT * self._events + _MOST_ROWS:
            raise DamagedError(
                f"the trace's {self._events:,} events name {self.rows:,} blocks of 2 MiB and more: no guest "
                "does that",
                hint="tracekit info TRACE   shows its memslots and where it is from",
            )


def _new_columns(rows: int) -> Columns:
    return Columns(
        t=np.empty(rows, np.int64),
        latency=np.empty(rows, np.int64),
        gap=np.empty(rows, np.int64),
        page=np.empty(rows, np.int64),
        pages=np.empty(rows, np.uint16),
        lane=np.empty(rows, np.int32),
        bits=np.empty(rows, np.uint16),
        op=np.empty(rows, np.uint8),
        cls=np.empty(rows, np.uint8),
        calm=np.empty(rows, np.uint8),
    )


def _larger(out: Columns, raw: Raw) -> Columns:
    rows, needed = len(out.t), _rows_needed(raw)
    if rows >= needed:
        raise FailedError("a batch of events did not fit its own count: a bug in tracekit")
    rows = min(needed, rows * 4)
    require_memory(rows * _ROW_BYTES, "one event of the trace")
    return _new_columns(rows)


def _guest_faults(c: Columns, rows: int) -> NDArray[np.bool_]:
    """Say which rows are faults that the guest took, not a thread of the VMM."""
    return np.asarray((c.op[:rows] == ev.FAULT) & (c.bits[:rows] & ev.ON_HOST == 0), np.bool_)


def _slots(memslots: pl.DataFrame) -> NDArray[np.int64]:
    if not len(memslots):
        return np.zeros((0, 3), np.int64)
    first = memslots["gpa"].to_numpy().astype(np.int64) // PAGE_BYTES
    pages = -(-memslots["size_bytes"].to_numpy().astype(np.int64) // PAGE_BYTES)
    return np.stack([memslots["vm"].to_numpy().astype(np.int64), first, first + pages], axis=1)


def _rows_needed(raw: Raw) -> int:
    pages = np.maximum(raw.pages.astype(np.int64), 1)
    if not len(pages) or pages.max() == 1:
        return len(pages)
    return int((((raw.gfn & 511) + pages + 511) >> 9).sum())


def _raw(batch: pa.RecordBatch, memslots: pl.DataFrame, vms: int) -> Raw:
    """View the columns of a batch as numpy arrays; nulls become -1 only here, inside the engine."""
    kind = batch.column("kind")
    values: dict[str, NDArray[Any]] = {
        "kind": _kinds(kind),
        "vm": _values(batch, "vm"),
        "tid": _values(batch, "tid"),
        "pages": _values(batch, "pages"),
        "access": _values(batch, "access"),
        "flags": _values(batch, "flags"),
        "level": _or(_values(batch, "level"), _valid(batch, "level"), 0),
        "vcpu": _or(_values(batch, "vcpu"), _valid(batch, "vcpu"), -1),
        "gfn": _or(_values(batch, "gfn").view(np.int64), _valid(batch, "gfn"), -1),
        "latency": _or(_values(batch, "latency_ns").view(np.int64), _valid(batch, "latency_ns"), -1),
        "arg": _or(_values(batch, "arg").view(np.int64), _valid(batch, "arg"), -1),
    }
    if values["vm"].size and int(values["vm"].max()) >= vms:
        raise DamagedError(f"an event names VM {int(values['vm'].max())}, but meta.json lists {vms}")
    without = values["gfn"] < 0
    if without.any() and len(memslots):
        populates = np.isin(values["kind"], MADVISES) & np.isin(values["arg"], (22, 23))  # MADV_POPULATE_*
        values["gfn"] = _place(batch, values["gfn"], values["vm"], without, populates, memslots)
    return Raw(ts=_values(batch, "ts_ns").view(np.int64), **values)


def _place(
    batch: pa.RecordBatch,
    gfn: NDArray[np.int64],
    vm: NDArray[Any],
    without: NDArray[np.bool_],
    early: NDArray[np.bool_],
    memslots: pl.DataFrame,
) -> NDArray[np.int64]:
    """Fill in the gfn of rows that hold only a host address, through the memslot that was there then.

    `early` rows may come before it: QEMU populates memory and then gives it to KVM.
    """
    valid = _valid(batch, "hva")
    rows = np.flatnonzero(without if valid is None else without & valid)
    if not len(rows):
        return gfn
    hva = _values(batch, "hva")[rows].astype(np.int64)
    ts = _values(batch, "ts_ns")[rows].astype(np.int64)
    gfn = gfn.copy()
    for slot in memslots.sort("from_ns", descending=True).iter_rows(named=True):  # the next one wins
        offset = hva - slot["hva"]
        hit = (offset >= 0) & (offset < slot["size_bytes"]) & (vm[rows] == slot["vm"])
        hit &= (ts >= slot["from_ns"]) | early[rows]
        if slot["to_ns"] is not None:
            hit &= ts <= slot["to_ns"]
        gfn[rows[hit]] = (slot["gpa"] + offset[hit]) // PAGE_BYTES
    return gfn


def _kinds(kind: pa.Array) -> NDArray[np.uint8]:
    codes = np.asarray(kind.indices.to_numpy(zero_copy_only=False), np.uint8)
    names = kind.dictionary.to_pylist()
    table = np.array([KIND_CODE.get(name, 255) for name in names] or [255], np.uint8)
    if np.array_equal(table, np.arange(len(table))):
        return codes
    return np.asarray(table[codes], np.uint8)


def _values(batch: pa.RecordBatch, name: str) -> NDArray[Any]:
    column = batch.column(name)
    data = column.buffers()[1]
    dtype = np.dtype(column.type.to_pandas_dtype())
    if data is None:
        return np.zeros(len(column), dtype)
    return np.frombuffer(data, dtype, count=column.offset + len(column))[column.offset :]


def _valid(batch: pa.RecordBatch, name: str) -> NDArray[np.bool_] | None:
    column = batch.column(name)
    if not column.null_count:
        return None
    bitmap = np.frombuffer(column.buffers()[0], np.uint8)
    bits = np.unpackbits(bitmap, bitorder="little", count=column.offset + len(column))
    return bits[column.offset :].view(np.bool_)


def _or(values: NDArray[Any], valid: NDArray[np.bool_] | None, missing: int) -> NDArray[Any]:
    return values if valid is None else np.where(valid, values, values.dtype.type(missing))
