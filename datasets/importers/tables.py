"""CSV and Parquet tables: a column of the event table is any SQL expression over the file's columns.

Columns of the same name are taken as they are; `--column "ts_ns=time_us * 1000"` says how to get others.
"""

from __future__ import annotations

import sys
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
_SAMPLE = 10_000
_MISFIT = "not a number"
_BAD_SHOWN = 5
_REQUIRED = ("ts_ns", "kind")
_DTYPES = pl.DataFrame(EVENTS.empty_table()).schema


def read_csv(path: Path | str, sink: Sink) -> None:
    """Read a CSV file with a header line; rows whose values don't fit are bad lines."""
    source = _source(path)

    def scan() -> pl.LazyFrame:
        return pl.scan_csv(source, infer_schema_length=_SAMPLE)

    try:
        _read(scan, sink, header_lines=1)
    except pl.exceptions.PolarsError as error:
        # One cell that is no number makes the whole column text, or stops polars when it is far down. Nothing
        # was written by then (the sort comes first), so read again with numbers where most cells are numbers.
        if sink.report.lines or not (numbers := _mostly_numbers(source)):
            raise _unreadable(path, error) from None
        try:
            _read(lambda: _lenient(source, numbers), sink, header_lines=1)
        except pl.exceptions.PolarsError:
            raise _unreadable(path, error) from None


def read_parquet(path: Path | str, sink: Sink) -> None:
    """Read a Parquet file; its rows count as lines."""
    source = _source(path)
    try:
        _read(lambda: pl.scan_parquet(source), sink, header_lines=0)
    except pl.exceptions.PolarsError as error:
        raise _unreadable(path, error) from None


def _source(path: Path | str) -> Path | bytes:
    return sys.stdin.buffer.read() if str(path) == "-" else Path(path)


def _unreadable(path: Path | str, error: pl.exceptions.PolarsError) -> UsageError:
    return UsageError(f"cannot read {path}: {str(error).splitlines()[0]}", hint="check the --column's")


def _mostly_numbers(source: Path | bytes) -> dict[str, pl.DataType]:
    """Return the columns most of whose first cells are numbers, with the type that takes them."""
    try:
        text = pl.scan_csv(source, infer_schema=False).head(_SAMPLE).collect()
    except pl.exceptions.PolarsError:
        return {}
    out: dict[str, pl.DataType] = {}
    for column in text:
        filled = len(column) - column.null_count()
        real = column.cast(pl.Float64, strict=False)
        if 2 * (len(real) - real.null_count()) > filled:
            whole = column.cast(pl.Int64, strict=False).null_count() == real.null_count()
            out[column.name] = pl.Int64() if whole else pl.Float64()
    return out


def _lenient(source: Path | bytes, numbers: dict[str, pl.DataType]) -> pl.LazyFrame:
    """Scan with those columns as numbers; `_MISFIT` is the first cell of the row that is none, as text."""
    cast = {name: pl.col(name).cast(dtype, strict=False) for name, dtype in numbers.items()}
    misfits = [
        pl.when(pl.col(name).is_not_null() & number.is_null()).then(pl.format(f"{name}={{}}", pl.col(name)))
        for name, number in cast.items()
    ]
    return pl.scan_csv(source, infer_schema=False).with_columns(pl.coalesce(misfits).alias(_MISFIT), **cast)


def _read(scan: Callable[[], pl.LazyFrame], sink: Sink, header_lines: int) -> None:
    table = scan()
    have = table.collect_schema().names()
    wanted = _expressions([name for name in have if name != _MISFIT], sink)
    if _MISFIT in have:
        wanted[_MISFIT] = pl.col(_MISFIT)
    # Rows need not be in time order in a table; a trace's parts are.
    frame = table.with_row_index("line", offset=1 + header_lines).select("line", **wanted)
    frame = frame.sort(pl.col("ts_ns").cast(pl.UInt64, strict=False))
    for batch in frame.collect_batches(chunk_size=_ROWS, maintain_order=True):
        _take(batch, sink)
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
    if _MISFIT in frame.columns:
        fits.append(frame[_MISFIT].is_null())
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
