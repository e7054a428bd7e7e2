"""What an Arrow message claims, read from its header before any decoder acts on it.

Arrow's decoders allocate what a header claims, and a compressed buffer may claim anything: a kilobyte can
name gigabytes. tracekit writes batches of at most 65,536 rows, so each buffer's size is known beforehand.
Headers are flatbuffers; the few fields needed are read here by their documented layout (Arrow's Message.fbs).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

import pyarrow as pa

__all__ = [
    "BLOCK",
    "MOST_ROWS",
    "SIZES_BYTES",
    "BatchPlaces",
    "Block",
    "batch_places",
    "check_batch_header",
    "check_dictionary_header",
    "footer_blocks",
    "footer_places",
    "set_sizes",
]

MOST_ROWS: Final = 1 << 16
"""Rows of the largest batch that tracekit ever writes."""

BLOCK: Final = "<qiiq"
"""A batch in the footer of an Arrow file: offset, bytes of the header, padding, bytes of the body."""

SIZES_BYTES: Final = 16
"""What `set_sizes` needs behind a header."""

_TEXT_BYTES: Final = 256  # of a metric's name or a reason, on average over a batch
_FILE_MAGIC: Final = 8  # bytes before the first message of a file
_SLACK: Final = 64  # Arrow pads buffers to 64 bytes


class Block(NamedTuple):
    """Where a footer says that a message is: offset, header and body bytes."""

    offset: int
    header: int
    body: int


class _Table:
    """A flatbuffers table at a position; every access out of bounds is a struct.error."""

    def __init__(self, data: bytes | memoryview, at: int) -> None:
        self._data, self._at = data, at
        self._vtable = at - _read("<i", data, at)
        if self._vtable < 0:
            raise struct.error("vtable before the buffer")

    @classmethod
    def root(cls, data: bytes | memoryview) -> _Table:
        return cls(data, _read("<I", data, 0))

    @property
    def where(self) -> tuple[int, int]:
        """Where the table and its vtable are in the buffer."""
        return self._at, self._vtable

    def _field(self, index: int) -> int:
        size = _read("<H", self._data, self._vtable)
        entry = 4 + 2 * index
        offset = _read("<H", self._data, self._vtable + entry) if entry + 2 <= size else 0
        return self._at + offset if offset else 0

    def number(self, index: int, form: str) -> int:
        at = self._field(index)
        return _read(form, self._data, at) if at else 0

    def table(self, index: int) -> _Table:
        at = self._field(index)
        if not at:
            raise struct.error("a table is missing")
        return _Table(self._data, at + _read("<I", self._data, at))

    def place(self, index: int) -> int:
        """Return where a number is in the buffer, which has it."""
        at = self._field(index)
        if not at:
            raise struct.error("a number is missing")
        return at

    def places(self, index: int, form: str) -> list[int]:
        """Return where the structs of a vector are in the buffer."""
        at = self._field(index)
        if not at:
            return []
        at += _read("<I", self._data, at)
        count, size = _read("<I", self._data, at), struct.calcsize(form)
        if at + 4 + count * size > len(self._data):
            raise struct.error("a vector ends outside the buffer")
        return [at + 4 + k * size for k in range(count)]

    def vector(self, index: int, form: str) -> list[tuple[int, ...]]:
        return [struct.unpack_from(form, self._data, at) for at in self.places(index, form)]


def _read(form: str, data: bytes | bytearray | memoryview, at: int) -> int:
    if at < 0:
        raise struct.error("a position before the buffer")
    value: int = struct.unpack_from(form, data, at)[0]
    return value


class BatchPlaces(NamedTuple):
    """Where the message of a batch begins, its body, its tables (and their vtables), and what tells sizes."""

    start: int
    body: int
    message: tuple[int, int]
    batch: tuple[int, int]
    nodes_at: list[int]
    buffers_at: list[int]


def batch_places(content: bytearray) -> BatchPlaces:
    """Return the places of the record batch that ends `content`; what stands before it are whole messages."""
    end = _FILE_MAGIC if content.startswith(b"ARROW1") else 0
    while end < len(content):
        start, header = end, end + 8
        body = header + _read("<I", content, start + 4)
        message = _Table.root(memoryview(content)[header:body])
        end = body + message.number(3, "<q")
    batch = message.table(2)
    nodes, buffers = ([header + place for place in batch.places(which, "<qq")] for which in (1, 2))
    tables = [(header + at, header + vtable) for at, vtable in (message.where, batch.where)]
    return BatchPlaces(start, body, tables[0], tables[1], nodes, buffers)


def set_sizes(content: bytearray, places: BatchPlaces, rows: int, body: int) -> None:
    """Let a batch that was written without rows, of which its header so says nothing, have rows and a body.

    Each number takes the next of the SIZES_BYTES that `content` has behind the header; the table that lacks
    it is made to reach there.
    """
    at = places.body
    for (table, vtable), index, number in ((places.message, 3, body), (places.batch, 0, rows)):
        entry = vtable + 4 + 2 * index
        reach = at - table
        if _read("<H", content, vtable) < 6 + 2 * index or _read("<H", content, entry) or reach > 0xFFF0:
            raise ValueError("another header than that of a batch without rows")
        struct.pack_into("<H", content, vtable + 2, reach + 8)
        struct.pack_into("<H", content, entry, reach)
        struct.pack_into("<q", content, at, number)
        at += 8
    struct.pack_into("<I", content, places.start + 4, at - places.start - 8)


def footer_places(tail: bytearray) -> list[int]:
    """Return where the footer at the end of an Arrow file tells of its batches: offset, header, 0, body."""
    size = _read("<i", tail, len(tail) - 10)
    start = len(tail) - 10 - size
    footer = _Table.root(memoryview(tail)[start : start + size])
    return [start + place for place in footer.places(3, BLOCK)]


def check_batch_header(message: pa.Message, fields: Sequence[pa.Field]) -> None:
    """Raise ValueError unless a record batch message claims just what such columns take.

    `fields` are the columns: numbers, dictionary codes and strings.
    """
    try:
        header = _Table.root(memoryview(message.metadata)).table(2)
        rows, nodes = header.number(0, "<q"), header.vector(1, "<qq")
        _check(rows, nodes, header.vector(2, "<qq"), fields, memoryview(message.body or b""))
    except struct.error as error:
        raise ValueError(f"its header is not one: {error}") from None


def check_dictionary_header(message: pa.Message) -> None:
    """Raise ValueError unless a dictionary message claims at most 256 words, as for the kinds of events."""
    try:
        header = _Table.root(memoryview(message.metadata)).table(2).table(1)
        rows, nodes = header.number(0, "<q"), header.vector(1, "<qq")
        if rows > 256:
            raise ValueError(f"it claims {rows} kinds")
        body = memoryview(message.body or b"")
        _check(rows, nodes, header.vector(2, "<qq"), [pa.field("kind", pa.string())], body)
    except struct.error as error:
        raise ValueError(f"its header is not one: {error}") from None


def _check(
    rows: int,
    nodes: Sequence[tuple[int, ...]],
    buffers: Sequence[tuple[int, ...]],
    fields: Sequence[pa.Field],
    body: memoryview,
) -> None:
    if not 0 <= rows <= MOST_ROWS:
        raise ValueError(f"it claims {rows} rows; tracekit writes {MOST_ROWS} at most")
    if len(nodes) != len(fields) or len(buffers) != sum(3 if _is_text(f.type) else 2 for f in fields):
        raise ValueError("it has other columns than tracekit writes")
    at = 0
    for field, (length, nulls) in zip(fields, nodes, strict=True):
        if length != rows or not 0 <= nulls <= rows:
            raise ValueError(f"{field.name} claims {length} rows, {nulls} of them null")
        sizes = [(rows + 7) // 8 if nulls else 0]
        if _is_text(field.type):
            sizes += [(rows + 1) * 4 if rows else 0, -1]
        else:
            index = field.type.index_type if pa.types.is_dictionary(field.type) else field.type
            sizes.append(rows * index.bit_width // 8)
        for size in sizes:
            _check_buffer(field.name, size, rows, buffers[at], body)
            at += 1


def _check_buffer(name: str, size: int, rows: int, where: tuple[int, ...], body: memoryview) -> None:
    """Check one buffer; `size` is what it must hold at least, -1 = text of any length up to a bound."""
    offset, length = where
    if offset < 0 or length < 0 or offset + length > len(body):
        raise ValueError(f"a buffer of {name} lies outside the batch")
    claimed = 0
    if length:
        # A compressed buffer begins with its size; -1 = it follows as it is.
        claimed = _read("<q", body[offset : offset + length], 0)
        claimed = length - 8 if claimed == -1 else claimed
    most = rows * _TEXT_BYTES + (1 << 16) if size < 0 else max(size, (rows + 7) // 8) + _SLACK
    if not max(size, 0) <= claimed <= most:
        raise ValueError(f"a buffer of {name} claims {claimed} bytes for {rows} rows")


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind))


def footer_blocks(part: pa.Buffer) -> tuple[list[Block], list[Block]]:
    """Return where the footer of an Arrow file says that dictionaries and batches are; ValueError if none."""
    try:
        tail = part[part.size - 10 :].to_pybytes()
        size = _read("<i", tail, 0)
        if tail[4:] != b"ARROW1" or not 0 < size <= part.size - 18:
            raise ValueError("it has no footer")
        footer = _Table.root(memoryview(part[part.size - 10 - size : part.size - 10]))
        kinds = footer.vector(2, BLOCK), footer.vector(3, BLOCK)
    except (struct.error, IndexError):
        raise ValueError("its footer is not one") from None
    dictionaries, batches = ([Block(b[0], b[1], b[3]) for b in found] for found in kinds)
    return dictionaries, batches
