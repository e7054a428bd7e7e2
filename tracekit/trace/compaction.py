"""Rewrites a trace as Parquet grouped by vCPU: about half the size, for keeping and for sending."""

from __future__ import annotations

import copy
import os
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa

from tracekit.errors import FailedError, UsageError
from tracekit.trace.decode import TIE
from tracekit.trace.folder import EVENTS_DIR, Folder
from tracekit.trace.holdback import EMPTY, times
from tracekit.trace.journal import SIDE_TABLES, write_table
from tracekit.trace.memslots import MemslotMap
from tracekit.trace.merging import rebatch
from tracekit.trace.meta import tool_version
from tracekit.trace.part import PartLine
from tracekit.trace.reader import Trace, open_folder, open_trace
from tracekit.trace.rebasing import Rebase, anonymous
from tracekit.trace.sampling import Sampler
from tracekit.trace.schema import EVENTS

if TYPE_CHECKING:
    import pyarrow.parquet as pq

__all__ = ["GROUP_ROWS", "CompactReport", "compact"]

GROUP_ROWS: Final = 1 << 20
"""Rows of a part, which is one row group: damage to a file costs these and no others."""

_SCHEMA: Final = EVENTS.append(pa.field(TIE, pa.uint32(), nullable=False))
_NUMBERS: Final = ("ts_ns", "gfn", "hva", "gva", "latency_ns", "rip", "arg")
_DICTIONARY: Final = [name for name in _SCHEMA.names if name not in _NUMBERS]
# Differences suit what grows steadily; for numbers that jump, splitting the bytes leaves zstd the empty
# upper ones. Which is smaller depends on the guest (recorded latencies 1.4 or 2.1 bytes): both are tried.
_ENCODINGS: Final = ("DELTA_BINARY_PACKED", "BYTE_STREAM_SPLIT")


@dataclass(frozen=True)
class CompactReport:
    """Rows written, rows that were there, and sizes of the events on disk before and after, in bytes."""

    path: str
    rows: int
    rows_before: int
    bytes_before: int
    bytes_after: int


def compact(
    source: Path | str,
    out: Path | str,
    *,
    force: bool = False,
    sample: float | None = None,
    seed: int = 0,
    rebase: bool = False,
) -> CompactReport:
    """Write the trace `source` as a compacted trace `out`; the same rows in the same order.

    `sample` keeps only a share of the guest's 2 MiB blocks, chosen by `seed` (see `Sampler`); `rebase` takes
    out names and addresses that a replay doesn't need (see `Rebase` and `anonymous`).

    Every 1,048,576 rows in time order are one Parquet file, inside which they are grouped by VM and
    vCPU: a vCPU's own addresses and times lie close together, so their differences are small. Memory
    is bounded by a few such groups. `out` appears only when it is whole.

    Raises UsageError when `out` exists (unless `force`, and then only a trace is replaced) or the source is a
    sample already, DamagedError when the source is damaged, FailedError when the disk refuses.
    """
    trace, out = open_trace(source), Path(out)
    if out.exists() and trace.path.samefile(out):
        raise UsageError(f"{out} is the trace itself", hint="choose another name with -o")
    if sample is not None and trace.meta.sampling:
        raise UsageError(f"{source} is a sample already", hint="without --sample")
    Folder.refuse_unless_replaceable(out, force=force)
    sampler = Sampler(sample, seed, MemslotMap(trace.memslots)) if sample is not None else None
    moved = Rebase(trace.memslots) if rebase else None
    working = out.with_name(f".{out.name}.compacting-{os.getpid()}")
    folder = Folder.create(working)
    try:
        ties = _Ties()
        lines = [
            _write_part(folder, number, batch, ties.of(times(batch)))
            for number, batch in enumerate(_rows(trace, sampler, moved))
        ]
        lines = lines or [_write_part(folder, 0, EMPTY, np.zeros(0, np.uint32))]
        meta = copy.deepcopy(trace.meta)
        meta.parts, meta.rows = len(lines), sum(line.rows for line in lines)
        meta.notes.append(f"compacted from {trace.path.name} by tracekit {tool_version()}")
        _copy_side_tables(trace.path, folder)
        if sampler is not None:
            meta.sampling = sampler.facts()
        if moved is not None:
            meta = anonymous(meta)
            meta.tables["memslots.arrow"] = write_table(folder, "memslots.arrow", moved.memslots.to_dicts())
        folder.replace("manifest.jsonl", "".join(line.to_json() for line in lines).encode())
        folder.replace("meta.json", meta.to_json().encode())
        folder.publish(out, force=force)
    except OSError as error:
        raise FailedError(
            f"cannot write {out}: {error.strerror or error}", hint="nothing was changed"
        ) from None
    finally:
        folder.close()
        shutil.rmtree(working, ignore_errors=True)
    after = sum(line.bytes for line in lines)
    return CompactReport(str(out), meta.rows or 0, trace.rows, trace.bytes, after)


def _rows(trace: Trace, sampler: Sampler | None, moved: Rebase | None) -> Iterator[pa.RecordBatch]:
    """Yield what is to be written, a part at a time."""
    batches = trace.batches(batch_rows=GROUP_ROWS)
    if sampler is not None:
        batches = rebatch(filter(len, map(sampler.thin, batches)), GROUP_ROWS)
    return batches if moved is None else map(moved.batch, batches)


def _write_part(folder: Folder, number: int, batch: pa.RecordBatch, ties: np.ndarray) -> PartLine:
    """Write rows that are in time order as one Parquet file with one row group."""
    name = f"{number:05d}.parquet"
    rows = pa.RecordBatch.from_arrays([*batch.columns, pa.array(ties)], schema=_SCHEMA)
    vcpu = batch.column("vcpu").fill_null(-(1 << 15)).to_numpy()
    order = np.lexsort((vcpu, batch.column("vm").to_numpy()))
    grouped = pa.Table.from_batches([rows.take(pa.array(order))])
    sink = pa.BufferOutputStream()
    with _writer(sink, _SCHEMA, {column: _smallest(grouped, column) for column in _NUMBERS}) as writer:
        if grouped.num_rows:
            writer.write_table(grouped, row_group_size=GROUP_ROWS)
    content = sink.getvalue()
    folder.replace(f"{EVENTS_DIR}/{name}", content)
    ts = times(batch)
    first, last = (int(ts[0]), int(ts[-1])) if len(ts) else (None, None)
    crc = f"{zlib.crc32(content):08x}"
    return PartLine(name, batch.num_rows, content.size, first, last, int(len(ts) > 0), crc)


def _writer(file: object, schema: pa.Schema, encodings: dict[str, str]) -> pq.ParquetWriter:
    import pyarrow.parquet as pq  # 10 MB that a recorder does not need

    return pq.ParquetWriter(
        file,
        schema,
        version="2.6",
        data_page_version="2.0",
        compression="zstd",
        compression_level=3,
        use_dictionary=[name for name in _DICTIONARY if name in schema.names],
        column_encoding=encodings,
        write_page_checksum=True,
    )


def _smallest(table: pa.Table, name: str) -> str:
    """Return the encoding that makes this column of this row group smallest."""
    sizes = {}
    for encoding in _ENCODINGS:
        sink = pa.BufferOutputStream()
        with _writer(sink, pa.schema([_SCHEMA.field(name)]), {name: encoding}) as writer:
            writer.write_table(table.select([name]))
        sizes[encoding] = sink.tell()
    return min(sizes, key=lambda encoding: sizes[encoding])


class _Ties:
    """Gives each row its rank among the rows of equal time, also across batches.

    >>> ties = _Ties()
    >>> [ties.of(np.array(ts)).tolist() for ts in ([5, 7, 7], [7, 7], [7, 9])]
    [[0, 0, 1], [2, 3], [4, 0]]
    """

    def __init__(self) -> None:
        self._last_ts = -1
        self._last_rank = 0

    def of(self, ts: np.ndarray) -> np.ndarray:
        at = np.arange(len(ts), dtype=np.uint32)
        changes = np.concatenate([[True], ts[1:] != ts[:-1]])
        ranks = at - np.maximum.accumulate(np.where(changes, at, np.uint32(0)))
        if int(ts[0]) == self._last_ts:
            going_on = len(ts) if not changes[1:].any() else int(np.argmax(changes[1:])) + 1
            ranks[:going_on] += np.uint32(self._last_rank + 1)
        self._last_ts, self._last_rank = int(ts[-1]), int(ranks[-1])
        return ranks


def _copy_side_tables(source: Path, folder: Folder) -> None:
    read = open_folder(source)
    try:
        for name in SIDE_TABLES:
            folder.replace(name, read.read(name))
    finally:
        read.close()
