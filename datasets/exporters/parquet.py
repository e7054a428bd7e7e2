"""Parquet: time-ordered, numbers delta-encoded, what repeats as dictionaries, zstd, page checksums."""

from __future__ import annotations

from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from tracekit.trace import Trace
from tracekit.trace.schema import EVENTS

__all__ = ["BATCH_ROWS", "write_parquet"]

BATCH_ROWS = 1 << 20
"""Rows of a row group: what readers skip by its statistics."""

DELTA = ("ts_ns", "gfn", "hva", "gva", "latency_ns", "arg")
DICTIONARY = ("kind", "vm", "tid", "vcpu", "pages", "level", "access", "flags", "rip")


def write_parquet(trace: Trace, stream: IO[bytes]) -> None:
    """Write all events; the trace's meta.json is in the file's metadata under `tracekit`."""
    schema = EVENTS.remove_metadata()
    schema = schema.set(schema.get_field_index("kind"), pa.field("kind", pa.string(), nullable=False))
    schema = schema.with_metadata({"tracekit": trace.meta.to_json()})
    with pq.ParquetWriter(
        stream,
        schema,
        compression="zstd",
        use_dictionary=list(DICTIONARY),
        column_encoding=dict.fromkeys(DELTA, "DELTA_BINARY_PACKED"),
        sorting_columns=[pq.SortingColumn(schema.get_field_index("ts_ns"))],
        write_page_checksum=True,
    ) as writer:
        for batch in trace.batches(batch_rows=BATCH_ROWS):
            writer.write_batch(plain_kinds(batch).cast(schema))


def plain_kinds(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return the batch with `kind` as text instead of a dictionary."""
    at = batch.schema.get_field_index("kind")
    return batch.set_column(
        at, pa.field("kind", pa.string(), nullable=False), batch.column(at).cast(pa.string())
    )
