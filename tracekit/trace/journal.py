"""The side tables (memslots, samples, losses, marks) while a trace is being written.

Each row is a line of `journal.ndjson` with its own crc32 in front, appended and made durable with the
events. Closing (or `recover`) folds the lines into `memslots.arrow`, `samples.arrow` and
`losses.arrow` as a stream: a recording of days keeps none of them in memory.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any, Final, Self

import pyarrow as pa

from tracekit.errors import DamagedError
from tracekit.trace.folder import Folder, write_all
from tracekit.trace.layout import check_batch_header, footer_blocks
from tracekit.trace.memslots import is_memory
from tracekit.trace.meta import Mark
from tracekit.trace.room import require_memory
from tracekit.trace.schema import LOSSES, MEMSLOTS, SAMPLES

__all__ = ["JOURNAL", "SIDE_TABLES", "Journal", "Side", "fold_journal", "read_table", "write_table"]

JOURNAL: Final = "journal.ndjson"
SIDE_TABLES: Final[dict[str, pa.Schema]] = {
    "memslots.arrow": MEMSLOTS,
    "samples.arrow": SAMPLES,
    "losses.arrow": LOSSES,
}
_CHUNK_ROWS: Final = 1 << 16
_CHUNK_BYTES: Final = _CHUNK_ROWS * 100  # rows of a full batch, decoded
_MARKS: Final = pa.schema([pa.field("name", pa.string(), nullable=False), SAMPLES.field("ts_ns")])
_ENDS: Final = pa.schema([pa.field("reason", pa.string(), nullable=False)])
_JOURNALLED: Final = {"memslot": MEMSLOTS, "sample": SAMPLES, "loss": LOSSES, "mark": _MARKS, "end": _ENDS}
_PYTHON_TYPES: Final[dict[str, Any]] = {"string": str, "double": (int, float)}
_PYTHON_TYPES.update(dict.fromkeys(("uint16", "uint32", "uint64", "int32"), int))
_LEAST: Final = {"uint16": 0, "uint32": 0, "uint64": 0, "int32": -(1 << 31), "double": -(1 << 53)}
_MOST: Final = {
    "uint16": (1 << 16) - 1,
    "uint32": (1 << 32) - 1,
    "uint64": (1 << 64) - 1,
    "int32": (1 << 31) - 1,
}
_MOST["double"] = 1 << 53


class Journal:
    """Appends rows of side tables; `flush` makes them durable."""

    def __init__(self, folder: Folder) -> None:
        """Create the journal; OSError if that is not possible."""
        self._fd = folder.new_file(JOURNAL)
        self._size = 0
        self._lines: list[bytes] = []

    def add(self, table: str, row: dict[str, Any]) -> None:
        """Queue one row of `memslot`, `sample`, `loss`, `mark` or `end`."""
        text = json.dumps([table, row], allow_nan=False).encode()
        self._lines.append(b"%08x %s\n" % (zlib.crc32(text), text))

    def flush(self) -> None:
        """Write and sync the queued lines; on OSError the file ends with its last whole line."""
        if not self._lines:
            return
        content = b"".join(self._lines)
        try:
            write_all(self._fd, content)
        except OSError:
            os.ftruncate(self._fd, self._size)
            raise
        self._lines.clear()
        self._size += len(content)
        os.fdatasync(self._fd)

    def close(self) -> None:
        """Close the file without writing what is queued."""
        os.close(self._fd)


@dataclass
class Side:
    """What a journal held besides rows: `end` = why writing stopped early, `torn` = a line is damaged."""

    marks: list[Mark] = field(default_factory=list)
    tables: dict[str, dict[str, Any]] = field(default_factory=dict)
    lost: int | None = 0
    newest_ns: int = 0
    end: str = ""
    torn: bool = False


def fold_journal(folder: Folder, more_losses: Callable[[Side], list[dict[str, Any]]] | None = None) -> Side:
    """Write the three side tables from the journal (if there is one); see `Side`.

    `more_losses`, called when the journal has been read, returns losses that it does not tell of.
    """
    side = Side()
    memslots: list[dict[str, Any]] = []
    with ExitStack() as stack:
        writers = {name: stack.enter_context(_TableWriter(folder, name)) for name in SIDE_TABLES}
        for table, row in _lines(folder, side):
            if table == "sample":
                writers["samples.arrow"].add(row)
                side.newest_ns = max(side.newest_ns, row["ts_ns"])
            elif table == "memslot":
                _add_memslot(memslots, row)
            elif table == "mark":
                side.marks.append(Mark(name=row["name"], ts_ns=row["ts_ns"]))
            elif table == "end":
                side.end = row["reason"]
            elif table == "loss":
                _add_loss(side, writers["losses.arrow"], row)
        for row in more_losses(side) if more_losses else []:
            _add_loss(side, writers["losses.arrow"], row)
        for row in memslots:
            writers["memslots.arrow"].add(row)
        side.tables = {name: writer.finish() for name, writer in writers.items()}
    return side


def write_table(folder: Folder, name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Write a whole side table; returns its {rows, bytes, crc32} for meta."""
    with _TableWriter(folder, name) as writer:
        for row in rows:
            writer.add(row)
        return writer.finish()


def read_table(folder: Folder, name: str, stated: dict[str, Any] | None) -> pa.Table:
    """Return a side table; DamagedError unless it is exactly the file that was written."""
    try:
        content = folder.read(name)
        if stated is not None and (len(content), f"{zlib.crc32(content):08x}") != (
            stated.get("bytes"),
            stated.get("crc32"),
        ):
            raise DamagedError(f"{folder.path / name} is damaged: its checksum does not match")
        _check_claims(pa.py_buffer(content), name)
        table = pa.ipc.open_file(content).read_all()
        table.validate(full=True)
    except FileNotFoundError:
        raise DamagedError(f"{folder.path / name} is missing") from None
    except (pa.ArrowException, OSError, EOFError, ValueError, MemoryError) as error:
        raise DamagedError(f"{folder.path / name} is damaged: {error}") from None
    if not table.schema.equals(SIDE_TABLES[name]):
        raise DamagedError(f"{folder.path / name} has other columns than tracekit writes")
    if name == "memslots.arrow":
        for slot in table.select(["gpa", "size_bytes", "hva"]).to_pylist():
            if not is_memory(**slot):
                raise DamagedError(f"{folder.path / name} has a memslot that ends beyond all addresses")
    return table


def _check_claims(content: pa.Buffer, name: str) -> None:
    """Raise ValueError where a side table claims what it cannot be, UsageError where it is too large here."""
    fields = list(SIDE_TABLES[name])
    _, blocks = footer_blocks(content)
    for block in blocks:
        if not 0 <= block.offset < content.size:
            raise ValueError("its footer names a batch outside the file")
        message = pa.ipc.read_message(pa.BufferReader(content.slice(block.offset)))
        if message.type != "record batch" or message.metadata.size + 8 != block.header:
            raise ValueError("its footer names a batch that is none")
        check_batch_header(message, fields)
    require_memory(len(blocks) * _CHUNK_BYTES, f"the table {name}")


def _add_loss(side: Side, writer: _TableWriter, row: dict[str, Any]) -> None:
    """Enter a loss into the table and the sum."""
    writer.add(row)
    side.lost = None if side.lost is None or row["lost"] is None else side.lost + row["lost"]
    side.newest_ns = max(side.newest_ns, row["t1_ns"])


def _add_memslot(memslots: list[dict[str, Any]], row: dict[str, Any]) -> None:
    """Apply KVM's rule: setting a slot ends the one of that number; size 0 only ends it."""
    for slot in reversed(memslots):
        if (slot["vm"], slot["slot"]) == (row["vm"], row["slot"]):
            if slot["to_ns"] is None:
                slot["to_ns"] = max(slot["from_ns"], row["from_ns"])
            break
    if row["size_bytes"]:
        memslots.append(row)


def _lines(folder: Folder, side: Side) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        fd = folder.open_file(JOURNAL)
    except FileNotFoundError:
        return
    with os.fdopen(fd, "rb") as file:
        for line in file:
            crc, _, text = line.rstrip(b"\n").partition(b" ")
            if not line.endswith(b"\n") or crc != b"%08x" % zlib.crc32(text):
                side.torn = True
                continue
            try:
                table, row = json.loads(text)
                _check_row(table, row)
            except (ValueError, TypeError, RecursionError):
                side.torn = True
                continue
            yield table, row


def _check_row(table: Any, row: Any) -> None:
    """Raise ValueError unless this is a row that a writer could have noted."""
    fields = _JOURNALLED.get(table) if isinstance(table, str) else None
    if fields is None or not isinstance(row, dict) or row.keys() != set(fields.names):
        raise ValueError(table)
    for column in fields:
        value = row[column.name]
        if value is None and column.nullable:
            continue
        # A bool is an int to Python, and no number of ours.
        if isinstance(value, bool) or not isinstance(value, _PYTHON_TYPES[str(column.type)]):
            raise ValueError(column.name)
        if isinstance(value, int) and not _LEAST[str(column.type)] <= value <= _MOST[str(column.type)]:
            raise ValueError(column.name)
        if isinstance(value, str):
            value.encode()  # UnicodeEncodeError, a ValueError, for half a surrogate pair
    if table == "memslot" and not is_memory(row["gpa"], row["size_bytes"], row["hva"]):
        raise ValueError(table)


class _TableWriter:
    """Writes one side table in chunks, under a temporary name until it is whole."""

    def __init__(self, folder: Folder, name: str) -> None:
        self._folder, self._name, self._schema = folder, name, SIDE_TABLES[name]
        folder.remove(f"{name}.tmp")
        self._file = os.fdopen(folder.new_file(f"{name}.tmp"), "wb")
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        self._arrow = pa.ipc.new_file(self._file, self._schema, options=options)
        self._rows: list[dict[str, Any]] = []
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # A full buffer of a full disk must not raise a second time.
        with suppress(OSError):
            self._file.close()

    def add(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        if len(self._rows) >= _CHUNK_ROWS:
            self._write()

    def _write(self) -> None:
        self._arrow.write_batch(pa.RecordBatch.from_pylist(self._rows, schema=self._schema))
        self._count += len(self._rows)
        self._rows.clear()

    def finish(self) -> dict[str, Any]:
        if self._rows:
            self._write()
        self._arrow.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        content = self._folder.read(f"{self._name}.tmp")
        self._folder.rename(f"{self._name}.tmp", self._name)
        return {"rows": self._count, "bytes": len(content), "crc32": f"{zlib.crc32(content):08x}"}
