"""CSV in blocks of lines, as frames of typed columns: bounded memory, and every bad line known by its number.

The first line names the columns; a line is a row, so a quoted cell has no line break in it. Compiled code
counts each line's fields; polars reads the lines that have as many as the header has.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from typing import IO, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from tracekit.datasets.importers.blocks import line_blocks
from tracekit.datasets.importers.sink import Sink
from tracekit.errors import DamagedError, UsageError
from tracekit.replay.jit import compiled

__all__ = ["MISFIT", "Rows", "csv_rows"]

MISFIT = "not a number"
"""Name of the column, where there is one, that has a row's first cell that is not what its column holds."""

_SAMPLE_LINES = 10_000
_BAD_SHOWN = 5
_BLANK, _STRAY = -1, -2
_COMMA, _QUOTE, _NEWLINE, _RETURN = b',"\n\r'


Bytes = npt.NDArray[np.uint8]
Integers = npt.NDArray[np.int64]


class Rows(NamedTuple):
    """Rows of a table, and the number of each one's line."""

    frame: pl.DataFrame
    lines: range | Integers


def csv_rows(stream: IO[bytes], sink: Sink, known: dict[str, pl.DataType]) -> Iterator[Rows]:
    """Yield the rows of a CSV file block by block; lines with a wrong number of fields are told as bad.

    Columns hold what most of their first 10,000 cells are, whole numbers, numbers or text, or what `known`
    says of them by name. UsageError where there is no header line.
    """
    blocks = line_blocks(stream)
    first = next(blocks, b"").removeprefix(b"\xef\xbb\xbf")
    header, _, rest = first.partition(b"\n")
    names = _names(header)
    types: dict[str, pl.DataType] = {}
    line = 2
    for block in _chain(rest, blocks):
        found = _lines(block, line)
        good = found.fields == len(names)
        text, lines = block, found.numbers
        if not good.all():
            _tell(found, len(names), sink)
            text = found.data[np.repeat(good, np.diff(found.ends, prepend=0))].tobytes()
            lines = np.array(lines)[good]
        line += len(found.numbers)
        if text:
            types = types or _types(text, names, known)
            frame = _frame(text, types)
            if frame.height != len(lines):
                raise DamagedError(f"lines {lines[0]} to {lines[-1]} are not the rows of a table")
            yield Rows(frame, lines)


def _chain(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    if first:
        yield first
    yield from rest


def _names(header: bytes) -> list[str]:
    """Return the names in the header line; a name that is there twice gets a number."""
    names: list[str] = []
    try:
        cells = next(csv.reader([header.decode(errors="replace").strip("\r\n")]), [])
    except csv.Error:
        cells = []
    for name in cells:
        names.append(f"{name}_{names.count(name) + 1}" if name in names else name)
    if not names or len(set(names)) < len(names):
        raise UsageError("the table has no header line", hint="the first line names the columns")
    return names


class _Lines(NamedTuple):
    """A block's lines: where each ends, and how many fields it has, or `_BLANK` or `_STRAY` (quotes)."""

    data: Bytes
    numbers: range
    ends: Integers
    fields: Integers


def _lines(block: bytes, first: int) -> _Lines:
    data = np.frombuffer(block if block.endswith(b"\n") else block + b"\n", np.uint8)
    count = np.count_nonzero(data == _NEWLINE)
    ends, fields = np.empty(count, np.int64), np.empty(count, np.int64)
    _scan_lines(data, ends, fields)
    return _Lines(data, range(first, first + count), ends, fields)


@compiled
def _scan_lines(data: np.ndarray, ends: np.ndarray, fields: np.ndarray) -> None:
    line, found, quoted, stray, begin = 0, 1, False, False, 0
    for at in range(data.size):
        byte = data[at]
        if byte == _NEWLINE:
            blank = at == begin or (at == begin + 1 and data[begin] == _RETURN)
            fields[line] = _BLANK if blank else _STRAY if stray or quoted else found
            ends[line] = begin = at + 1
            line, found, quoted, stray = line + 1, 1, False, False
        elif byte == _QUOTE and quoted:
            after = data[at + 1]
            # A cell ends here, or this is the first of two quotes that stand for one.
            quoted = False
            stray |= after not in (_COMMA, _NEWLINE, _RETURN, _QUOTE)
        elif byte == _QUOTE:
            quoted = True
            stray |= at > begin and data[at - 1] not in (_COMMA, _QUOTE)
        elif byte == _COMMA and not quoted:
            found += 1


def _tell(lines: _Lines, fields: int, sink: Sink) -> None:
    """Report the lines that have not so many fields; a blank line is nothing."""
    bad = np.flatnonzero((lines.fields != fields) & (lines.fields != _BLANK))
    sink.report.lines += bad.size
    sink.report.bad_lines += max(0, bad.size - _BAD_SHOWN)
    for at in bad[:_BAD_SHOWN].tolist():
        begin, end, found = int(lines.ends[at - 1]) if at else 0, int(lines.ends[at]), lines.fields[at]
        text = lines.data[begin : min(end, begin + 400)].tobytes().decode(errors="replace").strip()
        why = "a misplaced quote" if found == _STRAY else f"{found} fields instead of {fields}"
        sink.bad(lines.numbers[at], text, why)


def _frame(text: bytes, types: dict[str, pl.DataType]) -> pl.DataFrame:
    try:
        return pl.read_csv(text, has_header=False, schema=types)
    except pl.exceptions.PolarsError:
        return _with_misfits(text, types)


def _types(text: bytes, names: list[str], known: dict[str, pl.DataType]) -> dict[str, pl.DataType]:
    """Return what each column holds: see `csv_rows`."""
    sample = b"\n".join(text.split(b"\n", _SAMPLE_LINES)[:_SAMPLE_LINES])
    cells = _cells(sample, names)
    return {column.name: _type(column, known.get(column.name)) for column in cells}


def _type(column: pl.Series, known: pl.DataType | None) -> pl.DataType:
    def fit(dtype: pl.DataType) -> int:
        return len(column) - column.cast(dtype, strict=False).null_count()

    numbers, filled = fit(pl.Float64()), len(column) - column.null_count()
    if 2 * numbers <= filled:
        return known if known and not filled else pl.String()
    whole = next((dtype for dtype in (pl.Int64(), pl.UInt64()) if fit(dtype) == numbers), pl.Float64())
    return known if known and known.is_integer() and whole.is_integer() else whole


def _cells(text: bytes, names: Iterable[str]) -> pl.DataFrame:
    schema = dict.fromkeys(names, pl.String())
    return pl.read_csv(text, has_header=False, schema=schema, encoding="utf8-lossy")


def _with_misfits(text: bytes, types: dict[str, pl.DataType]) -> pl.DataFrame:
    """Read cell by cell: what does not fit is null, and `MISFIT` has the first such cell of a row as text."""
    cells = _cells(text, types)
    cast = {
        name: pl.col(name).str.strip_chars(" \r").cast(dtype, strict=False)
        for name, dtype in types.items()
        if dtype != pl.String
    }
    misfits: list[pl.Expr] = [
        pl.when(pl.col(name).is_not_null() & number.is_null()).then(pl.format(f"{name}={{}}", pl.col(name)))
        for name, number in cast.items()
    ]
    return cells.with_columns(pl.coalesce(misfits or [pl.lit(None, pl.String)]).alias(MISFIT), **cast)
