"""From the bytes of one part to rows in time order, each checked before it is used."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from tracekit.errors import DamagedError
from tracekit.trace.batch import KIND_DICTIONARY, newer_kinds
from tracekit.trace.framing import BODY_START, FrameReader
from tracekit.trace.part import PartLine
from tracekit.trace.schema import EVENTS

__all__ = ["TIE", "check_crc", "check_part", "parquet_rows", "part_batches"]

TIE: Final = "tie"
"""Column that only compacted parts have: the rank of a row among those of equal `ts_ns`."""

_READ_SIZE: Final = 1 << 22
_MOST_GROUP_ROWS: Final = 1 << 20
_BAD_BYTES: Final = (pa.ArrowException, OSError, EOFError, ValueError, KeyError, MemoryError)


def part_batches(events: Path, part: PartLine, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a part in time order; `columns` are in the order of `EVENTS`, with `ts_ns`.

    Raises DamagedError at the first byte that is not what was written.
    """
    path = events / part.part
    decode = _parquet if path.suffix == ".parquet" else _arrow
    rows = 0
    for batch in decode(path, part, columns):
        rows += batch.num_rows
        yield batch
    if rows != part.rows:
        raise damaged(path, f"it holds {rows:,} events instead of {part.rows:,}")


def check_crc(events: Path, part: PartLine) -> None:
    """Compare a part with the checksum in its manifest line; raises DamagedError."""
    crc = 0
    try:
        with (events / part.part).open("rb") as file:
            while chunk := file.read(_READ_SIZE):
                crc = zlib.crc32(chunk, crc)
    except OSError as error:
        raise damaged(events / part.part, error.strerror or str(error)) from None
    if crc != int(part.crc32, 16):
        raise damaged(events / part.part, "its checksum does not match")


def check_part(events: Path, part: PartLine) -> None:
    """Check a part so that any Arrow reader may have it, not just ours; raises DamagedError.

    Others find the batches by the footer, which no checksum of ours but the file's covers, and a stranger can
    compute that one: the footer must name exactly the batches that are there, and every kind must exist.
    """
    check_crc(events, part)
    path = events / part.part
    if path.suffix == ".parquet":
        return
    try:
        with pa.memory_map(str(path)) as file:
            content = file.read_buffer()
            reader = FrameReader(content, columns=["kind"])
            rows = sum(frame.batch.num_rows for frame in reader)
            if reader.trouble or not reader.closed or rows != part.rows:
                raise ValueError(reader.trouble or f"it holds {rows:,} events instead of {part.rows:,}")
            schema = pa.ipc.open_file(content).schema
            if not schema.equals(pa.ipc.open_stream(content.slice(BODY_START)).schema, check_metadata=True):
                raise ValueError("its footer names other columns than there are")
    except _BAD_BYTES as error:
        raise damaged(path, str(error)) from None


def damaged(path: Path, why: str) -> DamagedError:
    """Return the error for a part that is not what was written."""
    return DamagedError(f"{path} is damaged: {why}", hint=f"tracekit recover {path.parent.parent}")


def _arrow(path: Path, part: PartLine, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    try:
        with pa.memory_map(str(path)) as file:
            reader = FrameReader(file.read_buffer(), columns=columns)
            for frame in reader:
                yield frame.batch
    except OSError as error:
        raise damaged(path, str(error)) from None
    if reader.trouble or not reader.closed:
        raise damaged(path, reader.trouble or "its end is missing")


def _parquet(path: Path, part: PartLine, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    # Page checksums do not cover the footer, which says where the pages are; this does.
    check_crc(path.parent, part)
    yield from parquet_rows(path, columns)


def parquet_rows(path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a compacted part in time order, with only its pages checked; raises DamagedError."""
    import pyarrow.parquet as pq  # only compacted traces need it

    try:
        file = pq.ParquetFile(path, page_checksum_verification=True, memory_map=True)
        _check_groups(file)
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=[*columns, TIE], use_threads=False)
            batch = _in_time_order(table, columns)
            batch.validate(full=True)
            yield batch
    except _BAD_BYTES as error:
        raise damaged(path, str(error)) from None


def _check_groups(file: Any) -> None:
    """Raise ValueError unless the file claims what `tracekit compact` writes, before a page is decoded."""
    if file.schema_arrow.names != [*EVENTS.names, TIE]:
        raise ValueError("it has other columns than tracekit writes")
    for group in range(file.num_row_groups):
        about = file.metadata.row_group(group)
        if not 0 <= about.num_rows <= _MOST_GROUP_ROWS:
            raise ValueError(f"it claims {about.num_rows:,} rows in a group")
        # Of the group, not of its columns: pyarrow 26 ends the whole process over a column's
        # metadata that contradicts itself, where reading the group raises an error.
        if about.total_byte_size > about.num_columns * (about.num_rows * 32 + (1 << 16)):
            raise ValueError(f"a group claims {about.total_byte_size:,} bytes for {about.num_rows:,} rows")


def _in_time_order(table: pa.Table, columns: Sequence[str]) -> pa.RecordBatch:
    ts, tie = table["ts_ns"].to_numpy(), table[TIE].to_numpy()
    # Sorted runs, one per vCPU: a stable sort by time alone merges them quickly.
    order = np.lexsort((tie, ts)) if tie.any() else np.argsort(ts, kind="stable")
    rows = table.select(list(columns)).combine_chunks().to_batches()[0].take(pa.array(order))
    fields = [EVENTS.field(name) for name in columns]
    arrays = [_kind(rows.column(f.name)) if f.name == "kind" else rows.column(f.name) for f in fields]
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))


def _kind(column: pa.Array) -> pa.DictionaryArray:
    """Return the column with the codes of KINDS: a Parquet dictionary lists only the kinds it met."""
    import pyarrow.compute as pc

    if not isinstance(column, pa.DictionaryArray):
        raise pa.ArrowInvalid("its column kind is no dictionary")
    codes = pc.index_in(column.dictionary, KIND_DICTIONARY).cast(pa.uint8())
    if codes.null_count:
        raise newer_kinds()
    return pa.DictionaryArray.from_arrays(codes.take(column.indices), KIND_DICTIONARY)
