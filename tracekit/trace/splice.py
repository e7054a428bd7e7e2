"""Record batches whose columns carry zstd frames of our choice instead of those Arrow would search for.

Arrow writes the message of a batch without rows, which costs next to nothing (it would set up zstd anew for
each buffer); then the columns' frames are put in, and what header and footer say of rows and sizes is set
right. Columns that stay the same, or change steadily, have frames of ours (zstd_rows.py), the others zstd's
own. The result is what Arrow IPC prescribes: which zstd made a buffer, no reader can tell.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa

from tracekit.trace.layout import BLOCK, SIZES_BYTES, Block, batch_places, footer_places, set_sizes
from tracekit.trace.schema import EVENTS
from tracekit.trace.zstd_rows import compress_constant, compress_rows

__all__ = ["Column", "compress", "mend_footer", "put_in"]

_STEADY: Final = frozenset({"ts_ns", "gfn", "latency_ns"})
"""The columns that change a little with each row. Other addresses repeat in ways that zstd makes use of."""

_ALIGNMENT: Final = 8
_SIZE: Final = struct.Struct("<q")
_ZSTD: Final = pa.Codec("zstd")
_UNSIGNED: Final = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


class Column(NamedTuple):
    """A column's buffers as they go to the file: which rows are null (empty: none is), and the values."""

    rows: int
    nulls: int
    validity: bytes
    values: bytes


def compress(rows: pa.RecordBatch) -> list[Column]:
    """Return the columns of a batch compressed."""
    return [_compressed(name, column) for name, column in zip(EVENTS.names, rows.columns, strict=True)]


def put_in(frame: bytearray, columns: list[Column]) -> tuple[bytearray, Block]:
    """Return the bytes that Arrow wrote for no rows with the columns put in, and where the batch is."""
    places = batch_places(frame)
    pieces: list[bytes | memoryview] = [memoryview(frame)[: places.body], bytes(SIZES_BYTES)]
    where = []
    size = 0
    for content in (content for column in columns for content in (column.validity, column.values)):
        pieces += [content, bytes(-len(content) % _ALIGNMENT)]
        where.append((size, len(content)))
        size += len(content) + -len(content) % _ALIGNMENT
    made = bytearray().join(pieces)
    set_sizes(made, places, columns[0].rows, size)
    for at, column in zip(places.nodes_at, columns, strict=True):
        struct.pack_into("<qq", made, at, column.rows, column.nulls)
    for at, buffer in zip(places.buffers_at, where, strict=True):
        struct.pack_into("<qq", made, at, *buffer)
    return made, Block(places.start, places.body + SIZES_BYTES - places.start, size)


def mend_footer(tail: bytearray, blocks: list[Block]) -> None:
    """Let the footer that ends a part tell where its batches are."""
    for at, block in zip(footer_places(tail), blocks, strict=True):
        struct.pack_into(BLOCK, tail, at, block.offset, block.header, 0, block.body)


def _compressed(name: str, column: pa.Array) -> Column:
    rows, start = len(column), column.offset
    if column.null_count == rows and rows:
        return Column(rows, rows, _zeros((rows + 7) // 8), _zeros(rows * column.type.bit_width // 8))
    validity, data = column.buffers()
    width = column.type.bit_width // 8 if name != "kind" else 1
    values = np.frombuffer(data, _UNSIGNED[width], rows, start * width)
    present = b""
    if column.null_count:
        bits = np.frombuffer(validity, np.uint8)
        if start % 8 or len(bits) * 8 != rows:
            flags = np.unpackbits(bits[start // 8 :], bitorder="little")[start % 8 :][:rows]
            bits = np.packbits(flags, bitorder="little")
        present = _buffer(bits, steady=False)
    return Column(rows, column.null_count, present, _buffer(values, steady=name in _STEADY))


@lru_cache(maxsize=256)
def _zeros(size: int) -> bytes:
    return _buffer(np.zeros(size, np.uint8), steady=False)


def _buffer(values: np.ndarray, *, steady: bool) -> bytes:
    """Return a buffer of a compressed batch: its size, and a zstd frame of it."""
    frame = compress_constant(values)
    if frame is None and values.itemsize == 8:
        frame = compress_rows(values) if steady else compress_rows(values, most=1)
    if frame is None:
        frame = _ZSTD.compress(values, asbytes=True)
    return _SIZE.pack(values.nbytes) + frame
