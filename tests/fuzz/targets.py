"""What is fuzzed: each target takes bytes and reads right, or raises a TracekitError with exit code 2 or 4.

All else is a finding: another exception, a wrong row, too much memory, too much time.
"""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tests.fuzz import seeds
from tests.fuzz.edits import Cursor, edited, sealed_part
from tracekit.cli.info import _print as print_info
from tracekit.datasets.importers import FORMATS, ImportOptions, import_trace
from tracekit.errors import FailedError, TracekitError
from tracekit.probes import decode
from tracekit.probes.attribution import Attribution
from tracekit.probes.filemap import fill_hvas
from tracekit.probes.memslots import MemslotTable
from tracekit.probes.ring import RingReader
from tracekit.probes.vmm import classify, signature_of
from tracekit.probes.wire import RECORD, RECORD_BYTES
from tracekit.replay import load_profile, load_scenarios, parse_scenario, run
from tracekit.replay.uncertainty.ranges import parse_variation
from tracekit.trace import Meta, Trace, open_trace, recover
from tracekit.trace.framing import FrameReader
from tracekit.trace.loops import plain, quicken
from tracekit.trace.resync import SalvageReader
from tracekit.trace.schema import EVENTS, KINDS
from tracekit.trace.summary import summarise

__all__ = ["TARGETS", "read_whole", "refused"]


def refused(target: Callable[[bytes], None], data: bytes) -> bool:
    """Run a target on one input; True when it refused the input as it should."""
    try:
        target(data)
    except TracekitError as error:
        if error.exit_code not in (2, 4) or not error.message:
            raise AssertionError(f"exit code {error.exit_code}: {error}") from error
        return True
    return False


@cache
def _room() -> Path:
    """A folder in memory for this process."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    return Path(tempfile.mkdtemp(prefix="tracekit-fuzz-", dir=place))


def _laid_out(files: dict[str, bytes]) -> Path:
    path = _room() / "x.trace"
    shutil.rmtree(path, ignore_errors=True)
    (path / "events").mkdir(parents=True)
    for name, content in files.items():
        (path / name).write_bytes(content)
    return path


def _rows(batches: Sequence[pa.RecordBatch]) -> pa.Table:
    return pa.Table.from_batches(batches, schema=EVENTS)


@cache
def _truth() -> pa.Table:
    return _rows(list(open_trace(_laid_out(seeds.finished())).batches()))


def _read_all(trace: Trace) -> pa.Table:
    """Read everything in every way; the two ways to the events must agree, row by row."""
    streamed = _rows(list(trace.batches()))
    streamed.validate(full=True)
    for name in ("memslots", "samples", "losses"):
        getattr(trace, name)
    lazy = trace.events.collect()
    assert lazy.columns == EVENTS.names
    assert lazy.height == streamed.num_rows == trace.rows
    for name in ("ts_ns", "gfn", "pages", "latency_ns", "arg", "vcpu"):
        assert lazy[name].to_list() == streamed[name].to_pylist(), name
    assert lazy["kind"].to_list() == streamed["kind"].to_pylist()
    with redirect_stdout(io.StringIO()):
        print_info(summarise(trace))
    return streamed


def read_whole(files: dict[str, bytes]) -> pa.Table:
    """Lay the files of a trace out and read all of it in every way."""
    return _read_all(open_trace(_laid_out(files)))


def _finished(seed: dict[str, bytes], data: bytes) -> None:
    files, sealed = edited(seed, data)
    rows = read_whole(files)
    # Without right checksums no change to the events can have gone unnoticed.
    assert sealed or rows.equals(_truth())


def finished(data: bytes) -> None:
    """A finished trace, any file of it changed."""
    _finished(seeds.finished(), data)


def compacted(data: bytes) -> None:
    """A compacted one."""
    _finished(seeds.smaller(), data)


def recovered(data: bytes) -> None:
    """A killed or finished one, changed, and then recovered."""
    seed = seeds.killed() if data[:1] < b"\xa0" else seeds.finished()
    files, sealed = edited(seed, data[1:])
    path = _laid_out(files)
    report = recover(path)
    rows = _read_all(open_trace(path))
    assert rows.num_rows == report.rows
    assert not recover(path).changed
    if not sealed:
        # Rows may be missing, whole frames of them, but none may differ.
        truth = _truth()
        known = set(truth["ts_ns"].to_pylist())
        assert set(rows["ts_ns"].to_pylist()) <= known
        assert report.whole is False or rows.num_rows == truth.num_rows


def part(data: bytes) -> None:
    """One Arrow part: the bytes, or a seed with edits and right checksums."""
    if data[:1] < b"\x80":
        content = data[1:]
    else:
        seed = {"events/00000.arrow": seeds.finished()["events/00000.arrow"]}
        content = edited(seed, data[1:])[0].get("events/00000.arrow", b"")
        content = sealed_part(content)
    reader = FrameReader(pa.py_buffer(content))
    for frame in reader:
        frame.batch.validate(full=True)
        assert frame.batch.num_rows <= 1 << 16
        assert frame.batch.schema.equals(EVENTS)
    salvage = SalvageReader(pa.py_buffer(content))
    times = [frame.batch.column("ts_ns")[0].as_py() for frame in salvage if frame.batch.num_rows]
    assert times == sorted(times)
    assert all(gap.size > 0 for gap in salvage.gaps)


def meta(data: bytes) -> None:
    """meta.json: any text, or a good one with other values; then shown as `tracekit info` does."""
    if data[:1] < b"\x40":
        Meta.from_json(data[1:].decode(errors="surrogateescape"))
        return
    files, _ = edited({"meta.json": seeds.finished()["meta.json"]}, b"\0" + data[1:])
    text = files.get("meta.json", b"").decode(errors="replace")
    made = Meta.from_json(text)
    assert Meta.from_json(made.to_json()) == made
    whole = {**seeds.finished(), "meta.json": made.to_json().encode()}
    trace = open_trace(_laid_out(whole))
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        print_info(summarise(trace))


def toml(data: bytes) -> None:
    """Scenario files, cost profiles, and the texts that name them on the command line."""
    which, rest = data[:1], data[1:]
    if which < b"\x40":
        text = rest.decode(errors="replace")
        parse_scenario(text)
    elif which < b"\x60":
        parse_variation(rest.decode(errors="replace"))
    else:
        path = _room() / "x.toml"
        path.write_bytes(rest)
        if which < b"\xb0":
            load_scenarios(path)
        else:
            load_profile(path)


_TEXTS = ("perf", "trace-cmd", "ftrace", "damo", "damo-raw", "csv")
_COLUMNS = {"ts_ns": "t * 1000", "kind": "k", "gfn": "g"}


def importers(data: bytes) -> None:
    """Every importer that reads a file by itself; perf.data and trace.dat are read by those tools."""
    cursor = Cursor(data[:2])
    name = cursor.pick((*_TEXTS, "parquet"))
    how = cursor.number()
    source = _room() / "input"
    source.write_bytes(data[2:])
    options = ImportOptions(
        addresses="gva" if how & 1 else "gpa",
        strict=bool(how & 2),
        mmu=("", "ept", "npt", "shadow")[how >> 2 & 3],
        columns=_COLUMNS if how & 16 and name in ("csv", "parquet") else {},
    )
    assert name in FORMATS
    report = import_trace(source, _room() / "imported.trace", format=name, options=options, force=True)
    trace = open_trace(_room() / "imported.trace")
    assert trace.rows == sum(report.rows.values())
    assert _rows(list(trace.batches())).num_rows == trace.rows


class _Slots:
    """A writer that takes memslots."""

    def add_memslot(self, **memslot: Any) -> None:
        assert memslot["size_bytes"] >= 0


def _ring(content: bytes) -> RingReader:
    """A reader over these bytes in place of the kernel's pages."""
    reader = RingReader.__new__(RingReader)
    reader.size_bytes = max(len(content), 1)
    reader._stride = RECORD.itemsize
    reader._consumer = np.zeros(1, np.uint64)
    reader._producer = np.array([len(content)], np.uint64)
    reader._data = np.frombuffer(content, np.uint8)
    return reader


def ring(data: bytes) -> None:
    """Records of the ring buffer, on their whole way to rows of the event table."""
    how = data[0] if data else 0
    body = bytearray(data[1:])
    if how & 1:
        # What the kernel writes has the right length and a known kind; the rest is what a guest can reach.
        for at in range(0, len(body) - len(body) % RECORD.itemsize, RECORD.itemsize):
            body[at : at + 8] = RECORD_BYTES.to_bytes(8, "little")
            kind, level = (at + RECORD.fields[name][1] for name in ("kind", "level"))
            body[kind] %= len(KINDS)
            body[level] %= 4
    try:
        records = _ring(bytes(body)).read()
    except FailedError:
        assert not how & 1
        return
    if not len(records):
        return
    mode = ("ept", "npt", "shadow", "none")[how >> 1 & 3]
    assert quicken(build_first=True)
    with plain():
        by_numpy = decode.columns(records, mode)
    out = decode.columns(records, mode)
    assert all(np.array_equal(out[name], column) for name, column in by_numpy.items())
    table = MemslotTable(_Slots())  # type: ignore[arg-type]
    table.take_from(out)
    pids = [os.getpid(), 4194303]
    out = Attribution(table, lambda: pids).resolve(out)
    if not len(out["vm"]):
        return
    hugetlb = fill_hvas(out, pids)
    table.fill_gfns(out)
    signatures = [signature_of(["qemu-system-x86_64", "-device", "virtio-balloon"])] * (
        int(out["vm"].max()) + 1
    )
    classify(out, signatures, hugetlb)
    batch = decode.to_batch(out)
    batch.validate(full=True)
    assert batch.num_rows == len(out["vm"])


_GFNS = (0, 1, 511, 512, 4095, 1 << 18, (1 << 40) - 1, 1 << 40, (1 << 52) - 1, (1 << 63) - 1, (1 << 64) - 1)
_PAGES = (0, 1, 2, 512, 4096, 1 << 18, (1 << 31) - 1, (1 << 32) - 1)
_TIMES = (0, 1, 1000, 10**9, 1 << 40, 1 << 62)
_SCENARIOS = (
    "zeroing",
    "prealloc+zeroing",
    "hot_hint",
    "cold_hint",
    "epf",
    "balloon",
    "hugepages",
    "swap,swap_ns=1",
)


class _Rows:
    """A trace in memory, of rows that the fuzzer chose."""

    def __init__(self, batch: pa.RecordBatch, slots: bool) -> None:
        whole = open_trace(_laid_out(seeds.finished()))
        self.meta, self.losses, self.lost, self.samples = whole.meta, whole.losses, 0, whole.samples
        self.memslots = whole.memslots if slots else whole.memslots.clear()
        self._batch = batch

    def batches(self, columns: Any = None, batch_rows: int = 0) -> list[pa.RecordBatch]:
        return [self._batch if columns is None else self._batch.select(list(columns))]


def replay(data: bytes) -> None:
    """Events with absurd numbers, replayed."""
    from tracekit.trace import events_batch

    cursor = Cursor(data)
    how = cursor.number()
    rows = []
    at = 1000
    while cursor.left > 0 and len(rows) < 40:
        at = min(at + cursor.pick(_TIMES), (1 << 63) - 1)
        kind, vm = cursor.number() % len(KINDS), cursor.number() % 2
        gfn = cursor.pick(_GFNS) + cursor.number() & (1 << 64) - 1
        rows.append(
            (at, kind, vm, gfn,
             cursor.pick(_PAGES), cursor.number() % 5, cursor.pick(_TIMES), cursor.number(), cursor.number())
        )  # fmt: skip
    if not rows:
        return
    ts, kinds, vms, gfns, pages, level, latency, arg, nulls = map(list, zip(*rows, strict=True))
    batch = events_batch(
        ts_ns=np.array(ts, np.uint64),
        kind=np.array(kinds),
        vm=vms,
        gfn=np.array(gfns, np.uint64),
        hva=np.array(gfns, np.uint64),
        pages=np.array(pages, np.uint32),
        level=level,
        latency_ns=np.array(latency, np.uint64),
        arg=arg,
        flags=np.array(arg, np.uint32),
        vcpu=np.array(vms),
        valid={
            "gfn": np.array(nulls) % 2 == 0,
            "latency_ns": np.array(nulls) % 3 > 0,
            "level": np.array(level) > 0,
        },
    )
    trace: Any = _Rows(batch, slots=bool(how & 1))
    result = run(trace, [_SCENARIOS[how // 2 % len(_SCENARIOS)]])
    frame = result.frame if hasattr(result, "frame") else None
    if frame is not None:
        assert frame.height


TARGETS: dict[str, Callable[[bytes], None]] = {
    f.__name__: f for f in (finished, compacted, recovered, part, meta, toml, importers, ring, replay)
}
