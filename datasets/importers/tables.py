"""CSV and Parquet tables: a column of the event table is any SQL expression over the file's columns.

Columns of the same name are taken as they are; `--column "ts_ns=time_us * 1000"` says how to get others.
Tables are read a piece at a time, and may be larger than memory.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from functools import reduce
from operator import or_
from pathlib import Path
from typing import IO

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from tracekit.datasets.importers.blocks import open_bytes
from tracekit.datasets.importers.csv_lines import MISFIT, Rows, csv_rows
from tracekit.datasets.importers.sink import Sink
from tracekit.errors import DamagedError, UsageError
from tracekit.trace import events_batch
from tracekit.trace.holdback import concat, sort_by_time, times
from tracekit.trace.schema import EVENTS, KINDS

__all__ = ["read_csv", "read_parquet"]

_ROWS = 1 << 18
_RUN_ROWS = 1 << 20
_BAD_SHOWN = 5
_REQUIRED = ("ts_ns", "kind")
_DTYPES = pl.DataFrame(EVENTS.empty_table()).schema


def read_csv(path: Path | str, sink: Sink) -> None:
    """Read a CSV file with a header line; rows whose values don't fit are bad lines."""
    known = {name: _DTYPES[name] for name in EVENTS.names if name not in sink.options.columns}
    with open_bytes(path) as stream, _our_words(path):
        _read(csv_rows(stream, sink, known), sink)


def read_parquet(path: Path | str, sink: Sink) -> None:
    """Read a Parquet file; its rows count as lines."""
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(_seekable(path))
        stack.enter_context(_our_words(path))
        try:
            table = pq.ParquetFile(file, pre_buffer=False)
        except (pa.ArrowException, OSError) as error:
            raise DamagedError(f"{path} is no Parquet file: {_first_line(error)}") from None
        _read(_parquet_rows(table, sink), sink)


def _parquet_rows(table: pq.ParquetFile, sink: Sink) -> Iterator[Rows]:
    names = table.schema_arrow.names
    needed = {
        root for expression in _expressions(names, sink).values() for root in expression.meta.root_names()
    }
    line = 1
    for batch in table.iter_batches(_ROWS, columns=[name for name in names if name in needed]):
        frame = pl.from_arrow(batch)
        assert isinstance(frame, pl.DataFrame)
        yield Rows(frame, range(line, line + batch.num_rows))
        line += batch.num_rows


@contextlib.contextmanager
def _seekable(path: Path | str) -> Iterator[IO[bytes]]:
    """Open a file; what comes through a pipe goes to a scratch file, as Parquet is read from its end."""
    if str(path) != "-":
        with Path(path).open("rb") as file:
            yield file
        return
    with tempfile.TemporaryFile() as scratch:
        shutil.copyfileobj(sys.stdin.buffer, scratch)
        yield scratch


@contextlib.contextmanager
def _our_words(path: Path | str) -> Iterator[None]:
    try:
        yield
    except pl.exceptions.PolarsError as error:
        raise UsageError(f"cannot read {path}: {_first_line(error)}", hint="check the --column's") from None
    except (pa.ArrowException, OSError) as error:
        raise DamagedError(f"cannot read {path}: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _read(table: Iterator[Rows], sink: Sink) -> None:
    wanted: dict[str, pl.Expr] = {}
    runs = _Runs(sink)
    for rows in table:
        frame = rows.frame
        if not wanted:
            wanted = _expressions([name for name in frame.columns if name != MISFIT], sink)
            _check_row_by_row(frame.head(_ROWS), wanted)
        chosen = frame.with_columns(**wanted).select(*wanted, *({MISFIT} & set(frame.columns)))
        runs.add(_events(Rows(chosen, rows.lines), sink))
    runs.end()
    sink.vms([-1])


class _Runs:
    """Passes rows on: at once while they are in time order, else in long sorted runs, for few parts."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._held: list[pa.RecordBatch] = []
        self._last_ns = 0

    def add(self, batch: pa.RecordBatch) -> None:
        if not batch.num_rows:
            return
        ts_ns = times(batch)
        if not self._held and ts_ns[0] >= self._last_ns and bool((ts_ns[1:] >= ts_ns[:-1]).all()):
            self._last_ns = int(ts_ns[-1])
            self._sink.batch(batch)
            return
        self._held.append(batch)
        if sum(held.num_rows for held in self._held) >= _RUN_ROWS:
            self.end()

    def end(self) -> None:
        """Pass on what is held."""
        if self._held:
            run = sort_by_time(concat(self._held))
            self._held = []
            self._last_ns = int(times(run)[-1])
            self._sink.batch(run)


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


def _check_row_by_row(frame: pl.DataFrame, wanted: dict[str, pl.Expr]) -> None:
    """Refuse expressions over many rows (a minimum, a running sum): a table is read a piece at a time."""
    whole = frame.with_columns(**wanted)
    for row in sorted({0, frame.height // 2, frame.height - 1}):
        alone = frame.slice(row, 1).with_columns(**wanted)
        for name in wanted:
            if not alone[name].equals(whole[name].slice(row, 1), null_equal=True):
                raise UsageError(
                    f"the column {name} depends on more than its own row",
                    hint="a sum or a minimum is a number that you have to give",
                )


def _events(rows: Rows, sink: Sink) -> pa.RecordBatch:
    """Return the rows as events, without those that don't fit: they are bad lines."""
    frame = rows.frame
    sink.report.lines += frame.height
    columns = {f.name: _cast(frame[f.name]) for f in EVENTS if f.name in frame.columns}
    nullable = {f.name for f in EVENTS if f.nullable}
    misfits = [
        column.is_null() & frame[name].is_not_null() if name in nullable else column.is_null()
        for name, column in columns.items()
        if column.null_count() > (frame[name].null_count() if name in nullable else 0)
    ]
    if MISFIT in frame.columns:
        misfits.append(frame[MISFIT].is_not_null())
    if misfits:
        good = ~reduce(or_, misfits)
        bad = (~good).arg_true().to_list()
        for at in bad[:_BAD_SHOWN]:
            sink.bad(int(rows.lines[at]), str(list(frame.row(at))), "values that don't fit")
        sink.report.bad_lines += max(0, len(bad) - _BAD_SHOWN)
        columns = {name: column.filter(good) for name, column in columns.items()}
    return events_batch(
        valid={n: v.is_not_null().to_numpy() for n, v in columns.items() if v.null_count()},
        kind=columns["kind"].to_physical().to_numpy(),
        **{n: v.fill_null(0).to_numpy() for n, v in columns.items() if n != "kind"},
    )


def _cast(column: pl.Series) -> pl.Series:
    """Cast to the event table's type; values that don't fit become null."""
    if column.name == "kind":
        return column.cast(pl.String).cast(pl.Enum(KINDS), strict=False)
    whole = column.floor() if column.dtype.is_float() else column
    return whole.cast(_DTYPES[column.name], strict=False)
