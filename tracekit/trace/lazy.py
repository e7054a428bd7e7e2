"""A trace whose files are not in time order (compacted, or with late rows) as an ordered LazyFrame."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pyarrow as pa

from tracekit.trace.batch import newer_kinds
from tracekit.trace.schema import EVENTS, KINDS

if TYPE_CHECKING:
    import polars as pl

    from tracekit.trace.reader import Trace

__all__ = ["current_kinds", "scan_in_order"]


def current_kinds(events: pl.LazyFrame) -> pl.LazyFrame:
    """Give `kind` all the categories of today; a trace of an older tracekit knows fewer."""
    import polars as pl

    found = events.collect_schema()["kind"]
    if not isinstance(found, pl.Enum) or tuple(found.categories) == KINDS:
        return events
    if tuple(found.categories) != KINDS[: len(found.categories)]:
        raise newer_kinds()
    return events.with_columns(pl.col("kind").cast(pl.Enum(KINDS)))


def scan_in_order(trace: Trace) -> pl.LazyFrame:
    """Return all events in time order; a query reads only its columns, a row group at a time."""
    import polars as pl
    from polars.io.plugins import register_io_source

    def source(
        with_columns: list[str] | None, predicate: pl.Expr | None, n_rows: int | None, batch_size: int | None
    ) -> Iterator[pl.DataFrame]:
        left = trace.rows if n_rows is None else n_rows
        for batch in trace.batches(with_columns):
            frame = pl.DataFrame(pa.Table.from_batches([batch])).head(left)
            left -= frame.height
            yield frame if predicate is None else frame.filter(predicate)
            if not left:
                return

    return register_io_source(source, schema=pl.DataFrame(EVENTS.empty_table()).schema)
