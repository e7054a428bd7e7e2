"""One trace of a host's and a guest's view of one VM, on the host's clock."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from tracekit.errors import FailedError, UsageError
from tracekit.trace.holdback import times
from tracekit.trace.merging import Source, merge_sources
from tracekit.trace.meta import Meta, tool_version
from tracekit.trace.offset import ContradictedError, Offset, PageEvents, Touches, estimate_offset, find
from tracekit.trace.reader import Trace, open_trace
from tracekit.trace.schema import EVENTS, FLAG_ATTACH, FLAG_PRESENT, FLAG_ZEROED, KIND_CODE
from tracekit.trace.writer import TraceWriter

__all__ = ["describe", "find_offset", "given_offset", "merge"]

_GUEST_KINDS: Final = frozenset({"page_alloc", "page_free", "guest_fault", "access"})
_MOST_ROWS: Final = 4_000_000
_EXPAND_ROWS: Final = 1 << 20


def merge(
    host: Path | str,
    guest: Path | str,
    out: Path | str,
    *,
    vm: int | None = None,
    offset: Offset | None = None,
    force: bool = False,
) -> tuple[Trace, Offset]:
    """Write one trace with all events of both, in time order on the host's clock.

    Guest events get the number of the VM (`vm`; may be left out when the host saw memory of one only) and
    host times; nothing else of a row changes. Side tables are joined too, the guest's metrics with `guest_`
    before their names. How the offset was found and how sure it is stands in meta.json under `merge`.

    Raises UsageError when the traces are not of these two sides, FailedError when the offset cannot be
    estimated.
    """
    host_trace, guest_trace = open_trace(host), open_trace(guest)
    number = _vm_number(host_trace, vm)
    if offset is None:
        offset = _offset(host_trace, guest_trace, number)
    meta = _joined_meta(host_trace, guest_trace, number, offset)
    guest_marks = len(host_trace.meta.marks)
    sources = _sources(host_trace) + _sources(
        guest_trace, partial(_move, offset=offset, vm=number, marks=guest_marks)
    )
    with TraceWriter(out, meta, force=force) as writer:
        for batch in merge_sources(sources):
            writer.append(batch)
        _join_side_tables(writer, host_trace, guest_trace, number, offset)
    return open_trace(out), offset


def given_offset(offset_ns: int | None, uncertainty_ns: int | None = None) -> Offset | None:
    """Return the offset that the user states, None when none is; UsageError for half a statement."""
    if offset_ns is None:
        if uncertainty_ns is not None:
            raise UsageError("--uncertainty-ns says how sure --offset-ns is; give both")
        return None
    if uncertainty_ns is None:
        return Offset(offset_ns, None, None, given=True)
    return Offset(offset_ns, offset_ns - uncertainty_ns, offset_ns + uncertainty_ns, given=True)


def find_offset(host: Trace, guest: Trace, vm: int = 0) -> Offset:
    """Estimate the offset of the guest's clock from the pages that both traces tell of; see `offset.py`."""
    touches = _touches(host, vm)
    pages = _page_events(guest, touches.gfn)
    within = guest.meta.clock.get("uncertainty_ns")
    return estimate_offset(touches, pages, _reports(host, vm, pages.gfn), within_ns=within)


def _offset(host: Trace, guest: Trace, vm: int) -> Offset:
    """Estimate the offset; where the pages don't tell, a guest's trace in the host's times needs none."""
    try:
        return find_offset(host, guest, vm)
    except ContradictedError:
        raise
    except FailedError:
        within_ns = guest.meta.clock.get("uncertainty_ns")
        if within_ns is None:
            raise
        return Offset(0, -within_ns, within_ns, given=True)


def _vm_number(host: Trace, vm: int | None) -> int:
    count = len(host.meta.vms)
    with_memory = host.memslots["vm"].unique().to_list()
    if vm is None and len(with_memory) == 1:
        return int(with_memory[0])
    if vm is None and count > 1:
        raise UsageError(f"{host.path} holds {count} VMs", hint=f"say which with --vm 0 … {count - 1}")
    if vm is not None and not 0 <= vm < max(count, 1):
        raise UsageError(f"{host.path} has no VM {vm}", hint=f"--vm 0 … {max(count, 1) - 1}")
    return vm or 0


def _touches(host: Trace, vm: int) -> Touches:
    """First touches by 4 KiB faults; pages that faulted more than once are left out.

    A VM that is emulated has no faults but its VMM's own.
    """
    kind = "host_fault" if host.meta.host.get("mmu_mode") == "tcg" else "ept_violation"
    found = []
    for batch in host.batches(["ts_ns", "kind", "vm", "gfn", "level", "flags", "latency_ns"]):
        flags = batch.column("flags").to_numpy()
        level = batch.column("level").fill_null(1).to_numpy()
        keep = _is_kind(batch, kind) & (batch.column("vm").to_numpy() == vm) & (level == 1)
        keep &= (flags & (FLAG_ATTACH | FLAG_PRESENT)) == 0
        keep &= _valid(batch, "gfn") & _valid(batch, "latency_ns")
        columns = ("gfn", "ts_ns", "latency_ns")
        found.append([batch.column(name).fill_null(0).to_numpy()[keep] for name in columns])
    gfn, end, latency = (
        (np.concatenate(column) for column in zip(*found, strict=True))
        if found
        else [np.zeros(0, np.uint64)] * 3
    )
    order = np.argsort(gfn, kind="stable")
    unique, first, count = np.unique(gfn[order], return_index=True, return_counts=True)
    once = order[first[count == 1]]
    start = end[once].astype(np.int64) - latency[once].astype(np.int64)
    return Touches(unique[count == 1], start, end[once].astype(np.int64))


def _page_events(guest: Trace, touched: np.ndarray) -> PageEvents:
    """Allocations and frees of touched pages; when there are too many, of a sample of the pages."""
    kept: list[list[np.ndarray]] = []
    rows, step = 0, 1
    faults = _guest_faults(guest)
    last = _LastOfThread()
    for batch in guest.batches(["ts_ns", "kind", "tid", "gfn", "pages", "flags"]):
        allocs, frees = _is_kind(batch, "page_alloc"), _is_kind(batch, "page_free")
        keep = (allocs | frees) & _valid(batch, "gfn")
        zeroed = (batch.column("flags").to_numpy() & FLAG_ZEROED) != 0
        gfn, pages = batch.column("gfn").fill_null(0).to_numpy(), batch.column("pages").to_numpy()
        tid, when = batch.column("tid").to_numpy()[keep], times(batch)[keep]
        began = np.maximum(_fault_of(tid, when, faults), last.before(tid, when))
        columns = [gfn[keep], when, allocs[keep], zeroed[keep], began]
        for part in _expanded(columns, pages[keep]):
            mine = find(touched, part[0])[1] & (part[0] % np.uint64(step) == 0)
            kept.append([column[mine] for column in part])
            rows += int(mine.sum())
        while rows > _MOST_ROWS:
            step *= 2
            kept = [[column[part[0] % np.uint64(step) == 0] for column in part] for part in kept]
            rows = sum(len(part[0]) for part in kept)
    empty = [np.zeros(0, dtype) for dtype in (np.uint64, np.uint64, bool, bool, np.uint64)]
    gfn, ts, alloc, zeroed, fault = (np.concatenate(column) for column in zip(empty, *kept, strict=True))
    spans = [t for part in guest.parts for t in (part.first_ts_ns, part.last_ts_ns) if t is not None]
    return PageEvents(gfn, ts, alloc, zeroed, fault, min(spans, default=0), max(spans, default=0))


def _guest_faults(guest: Trace) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return thread, begin and end of the guest's own faults, by thread and time; of many, the first."""
    found: list[list[np.ndarray]] = [[np.zeros(0, np.uint64)] * 3]
    rows = 0
    for batch in guest.batches(["ts_ns", "kind", "tid", "latency_ns"]):
        keep = _is_kind(batch, "guest_fault") & _valid(batch, "latency_ns")
        tid, end = batch.column("tid").to_numpy()[keep].astype(np.uint64), times(batch)[keep]
        found.append([tid, end - batch.column("latency_ns").fill_null(0).to_numpy()[keep], end])
        rows += len(tid)
        if rows > _MOST_ROWS:
            break
    tid, begin, end = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.lexsort((begin, tid))
    return tid[order], begin[order], end[order]


def _fault_of(
    tid: np.ndarray, ts: np.ndarray, faults: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> np.ndarray:
    """Return when the fault began that each thread was in at each time, 0 where it was in none."""
    threads, begin, end = faults
    order = np.lexsort((np.concatenate([begin, ts]), np.concatenate([threads, tid])))
    at = np.empty(len(order), np.int64)
    # The last fault before each row, in the order of threads and times.
    at[order] = np.maximum.accumulate(np.where(order < len(begin), order, -1))
    last = at[len(begin) :]
    inside = last >= 0
    inside[inside] = (threads[last[inside]] == tid[inside]) & (ts[inside] <= end[last[inside]])
    found = np.zeros(len(ts), np.uint64)
    found[inside] = begin[last[inside]]
    return found


class _LastOfThread:
    """When each thread was last told of, over the batches of a trace."""

    def __init__(self) -> None:
        self._last: dict[int, int] = {}

    def before(self, tid: np.ndarray, ts: np.ndarray) -> np.ndarray:
        """Return the time of the row before each of the same thread, 0 where none is known."""
        found = np.zeros(len(tid), np.uint64)
        if not len(tid):
            return found
        order = np.argsort(tid, kind="stable")
        threads, first = np.unique(tid[order], return_index=True)
        found[order[1:]] = ts[order[:-1]]
        found[order[first]] = [self._last.get(thread, 0) for thread in threads.tolist()]
        ends = np.concatenate([first[1:], [len(tid)]]) - 1
        self._last.update(zip(threads.tolist(), ts[order[ends]].tolist(), strict=True))
        found[tid == 0] = 0  # the idle task of any CPU
        return found


def _expanded(columns: list[np.ndarray], pages: np.ndarray) -> Iterator[list[np.ndarray]]:
    """Yield the rows with one row per 4 KiB page, a bounded number at a time."""
    if not len(pages):
        return
    chunk = np.cumsum(pages, dtype=np.int64) // _EXPAND_ROWS
    for at in np.split(np.arange(len(pages)), np.flatnonzero(np.diff(chunk)) + 1):
        count = pages[at].astype(np.int64)
        inside = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        part = [np.repeat(column[at], count) for column in columns]
        part[0] = part[0] + inside.astype(np.uint64)
        yield part


def _reports(host: Trace, vm: int, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    gfns, when = [np.zeros(0, np.uint64)], [np.zeros(0, np.uint64)]
    pages_wanted = np.unique(wanted)
    for batch in host.batches(["ts_ns", "kind", "vm", "gfn", "pages"]):
        keep = (
            _is_kind(batch, "free_page_report") & (batch.column("vm").to_numpy() == vm) & _valid(batch, "gfn")
        )
        gfn, pages = batch.column("gfn").fill_null(0).to_numpy()[keep], batch.column("pages").to_numpy()[keep]
        for part in _expanded([gfn, times(batch)[keep]], pages):
            mine = find(pages_wanted, part[0])[1]
            gfns.append(part[0][mine])
            when.append(part[1][mine])
    return np.concatenate(gfns), np.concatenate(when)


def _sources(trace: Trace, change: Any = None) -> list[Source]:
    """One source per trace: `batches` has merged its parts already."""
    if not trace.rows:
        return []
    spans = [t for part in trace.parts for t in (part.first_ts_ns, part.last_ts_ns) if t is not None]
    first, last = min(spans), max(spans)
    if change is None:
        return [Source(first, last, partial(trace.batches, batch_rows=1 << 16))]
    first, last = change.keywords["offset"].to_host(np.array([first, last], np.uint64)).tolist()
    return [Source(first, last, lambda: map(change, trace.batches(batch_rows=1 << 16)))]


def _move(batch: pa.RecordBatch, *, offset: Offset, vm: int, marks: int) -> pa.RecordBatch:
    """Put guest rows on the host's clock, into VM `vm`, their marks behind the host's."""
    ts = pa.array(offset.to_host(times(batch)))
    columns = dict(zip(EVENTS.names, batch.columns, strict=True))
    columns.update(ts_ns=ts, vm=pa.array(np.full(batch.num_rows, vm, np.uint16)))
    is_mark = _is_kind(batch, "mark")
    if marks and is_mark.any():
        arg = batch.column("arg")
        moved = arg.fill_null(0).to_numpy() + np.where(is_mark, np.uint64(marks), np.uint64(0))
        columns["arg"] = pa.array(moved, mask=~_valid(batch, "arg"))
    return pa.RecordBatch.from_arrays([columns[name] for name in EVENTS.names], schema=EVENTS)


def _joined_meta(host: Trace, guest: Trace, vm: int, offset: Offset) -> Meta:
    for side, trace, wrong in (("host", host, True), ("guest", guest, False)):
        kinds = {kind for kind in _kinds(trace) if kind != "mark"}
        if kinds and all((kind in _GUEST_KINDS) == wrong for kind in kinds):
            raise UsageError(f"{trace.path} holds no {side} events", hint="tracekit merge HOST GUEST -o OUT")
    meta, theirs = copy.deepcopy(host.meta), guest.meta
    sources = {meta.source, theirs.source}
    meta.source = (
        sources.pop() if len(sources) == 1 else "synthetic" if "synthetic" in sources else "imported"
    )
    meta.tool_version = tool_version()
    low, high = offset.to_host(np.array([theirs.start_ns or 0, theirs.stop_ns or 0], np.uint64)).tolist()
    meta.start_ns = min(meta.start_ns, low) if meta.start_ns is not None else low
    meta.stop_ns = max(meta.stop_ns, high) if meta.stop_ns is not None else high
    meta.marks += [{"name": mark["name"], "ts_ns": _one(offset, mark["ts_ns"])} for mark in theirs.marks]
    meta.recovered = meta.recovered or theirs.recovered
    meta.extra["merge"] = {
        "host": host.path.name,
        "guest": guest.path.name,
        "vm": vm,
        "offset": offset.to_dict(),
        "guest_meta": {
            name: getattr(theirs, name) for name in ("host", "probes", "clock", "command", "notes", "filters")
        },
    }
    meta.notes.append(f"merged with the guest trace {guest.path.name}: {describe(offset)}")
    return meta


def _kinds(trace: Trace) -> set[str]:
    import polars as pl

    return set(trace.events.select(pl.col("kind").unique()).collect()["kind"].to_list())


def describe(offset: Offset) -> str:
    """Say an offset and its uncertainty in words.

    >>> describe(Offset(1500, 1000, 2000, pairs=40, contradicting=1))
    'guest clock + 1,500 ns (between 1,000 and 2,000; 40 pairs of events, 1 contradicting)'
    >>> describe(Offset(1500, None, None, given=True))
    'guest clock + 1,500 ns (given, uncertainty not known)'
    """
    text = f"guest clock + {offset.offset_ns:,} ns"
    if offset.low_ns is None or offset.high_ns is None:
        return f"{text} (given, uncertainty not known)"
    bounds = f"between {offset.low_ns:,} and {offset.high_ns:,}"
    if offset.given:
        return f"{text} (given, {bounds})"
    drift = f", drifting by {offset.drift_ppm:.3f} ppm" if offset.drift_ppm else ""
    return (
        f"{text}{drift} ({bounds}; {offset.pairs:,} pairs of events, {offset.contradicting:,} contradicting)"
    )


def _join_side_tables(writer: TraceWriter, host: Trace, guest: Trace, vm: int, offset: Offset) -> None:
    for slot in [*host.memslots.iter_rows(named=True)]:
        writer.add_memslot(**slot)
    for row in host.samples.iter_rows(named=True):
        writer.add_sample(**row)
    for row in guest.samples.iter_rows(named=True):
        writer.add_sample(_one(offset, row["ts_ns"]), vm, f"guest_{row['metric']}", row["value"])
    for row in host.losses.iter_rows(named=True):
        writer.add_loss(**row)
    for row in guest.losses.iter_rows(named=True):
        bounds = _one(offset, row["t0_ns"]), _one(offset, row["t1_ns"])
        writer.add_loss(None, *bounds, row["lost"], f"guest: {row['reason']}")


def _one(offset: Offset, ts_ns: int) -> int:
    return int(offset.to_host(np.array([ts_ns], np.uint64))[0])


def _is_kind(batch: pa.RecordBatch, kind: str) -> np.ndarray:
    codes: np.ndarray = batch.column("kind").indices.to_numpy() == KIND_CODE[kind]
    return codes


def _valid(batch: pa.RecordBatch, column: str) -> np.ndarray:
    valid: np.ndarray = batch.column(column).is_valid().to_numpy(zero_copy_only=False)
    return valid
