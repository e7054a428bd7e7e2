"""CSV and NDJSON: a line per event, empty (CSV) or null (NDJSON) where a value is not known."""

from __future__ import annotations

from typing import IO

import polars as pl
import pyarrow as pa
import pyarrow.csv as pacsv

from tracekit.datasets.exporters.parquet import plain_kinds
from tracekit.trace import Trace
from tracekit.trace.schema import EVENTS

__all__ = ["write_csv", "write_ndjson"]


def write_csv(trace: Trace, stream: IO[bytes]) -> None:
    """Write a header line and all events."""
    at = EVENTS.get_field_index("kind")
    schema = EVENTS.remove_metadata().set(at, pa.field("kind", pa.string(), nullable=False))
    with pacsv.CSVWriter(stream, schema, write_options=pacsv.WriteOptions(quoting_style="needed")) as writer:
        for batch in trace.batches():
            writer.write_batch(plain_kinds(batch).cast(schema))


def write_ndjson(trace: Trace, stream: IO[bytes]) -> None:
    """Write all events as JSON objects, one a line."""
    for batch in trace.batches():
        frame = pl.from_arrow(batch)
        assert isinstance(frame, pl.DataFrame)
        frame.write_ndjson(stream)
