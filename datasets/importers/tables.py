"""CSV and Parquet tables: a column of the event table is any SQL expression over the file's columns.

Columns of the same name are taken as they are; `--column "ts_ns=time_us * 1000"` says how to get others.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from operator import and_
from pathlib import Path

import polars as pl

from tracekit.datasets.importers.sink import Sink
from tracekit.errors import UsageError
from tracekit.trace import events_batch
from tracekit.trace.schema import EVENTS, KINDS

__all__ = ["read_csv", "read_parquet"]

_ROWS = 1 << 18
_BAD_SHOWN = 5
_REQUIRED = ("ts_ns", "kind")
_DTYPES = pl.DataFrame(EVENTS.empty_table()).schema


def read_csv(path: Path | str, sink: Sink) -> None:
    """Read a CSV file with a header line; rows whose values don't fit are bad lines."""
    _read(
        lambda: pl.scan_csv(path, infer_schema_length=10_000, ignore_errors=False), path, sink, header_lines=1
    )


def read_parquet(path: Path | str, sink: Sink) -> None:
    """Read a Parquet file; its rows count as lines."""
    _read(lambda: pl.scan_parquet(path), path, sink, header_lines=0)


def _read(scan: Callable[[], pl.LazyFrame], path: Path | str, sink: Sink, header_lines: int) -> None:
    try:
        table = scan()
        have = table.collect_schema().names()
        wanted = _expressions(have, sink)
        # Rows need not be in time order in a table; a trace's parts are.
        frame = table.with_row_index("line", offset=1 + header_lines).select("line", **wanted)
        frame = frame.sort(pl.col("ts_ns").cast(pl.UInt64, strict=False))
        for batch in frame.collect_batches(chunk_size=_ROWS, maintain_order=True):
            _take(batch, sink)
    except pl.exceptions.PolarsError as error:
        raise UsageError(
            f"cannot read {path}: {str(error).splitlines()[0]}", hint="check the --column's"
        ) from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}", hint=f"ls -l {path}") from None
    sink.vms([-1])


def _expressions(have: list[str], sink: Sink) -> dict[str, pl.Expr]:
    mapped = dict(sink.options.columns)
    if unknown := mapped.keys() - set(EVENTS.names):
        raise UsageError(f"no such event column: {', '.join(sorted(unknown))}", hint=", ".join(EVENTS.names))
    out = {name: pl.col(name) for name in EVENTS.names if name in have and name not in mapped}
    for name, expression in mapped.items():
        out[name] = pl.sql_expr(expression)
    if missing := [name for name in _REQUIRED if name not in out]:
        raise UsageError(
            f"the table has no column {' and no '.join(missing)} (it has {', '.join(have)})",
            hint=f'--column "{missing[0]}=…"',
        )
    return out


def _take(frame: pl.DataFrame, sink: Sink) -> None:
    sink.report.lines += frame.height
    columns = {f.name: _cast(frame[f.name]) for f in EVENTS if f.name in frame.columns}
    nullable = {f.name for f in EVENTS if f.nullable}
    fits = [
        column.is_not_null() | frame[name].is_null() if name in nullable else column.is_not_null()
        for name, column in columns.items()
    ]
    good = reduce(and_, fits)
    bad = frame.filter(~good)
    for line, *values in bad.head(_BAD_SHOWN).rows():
        sink.bad(line, str(values), "values that don't fit")
    sink.report.bad_lines += max(0, bad.height - _BAD_SHOWN)
    kept = {name: column.filter(good) for name, column in columns.items()}
    if bad.height == frame.height:
        return
    sink.batch(
        events_batch(
            valid={n: v.is_not_null().to_numpy() for n, v in kept.items() if v.null_count()},
            kind=kept["kind"].to_physical().to_numpy(),
            **{n: v.fill_null(0).to_numpy() for n, v in kept.items() if n != "kind"},
        )
    )


def _cast(column: pl.Series) -> pl.Series:
    """Cast to the event table's type; values that don't fit become null."""
    if column.name == "kind":
        return column.cast(pl.String).cast(pl.Enum(KINDS), strict=False)
    whole = column.floor() if column.dtype.is_float() else column
    return whole.cast(_DTYPES[column.name], strict=False)
