"""Record batches whose columns carry zstd frames of our choice instead of those Arrow would search for.

Arrow writes the message of a batch without rows, which costs next to nothing (it would set up zstd anew for
each buffer); then the columns' frames are put in, and what header and footer say of rows and sizes is set
right. Columns that stay the same, or change steadily, have frames of ours (zstd_rows.py), the others zstd's
own. The result is what Arrow IPC prescribes: which zstd made a buffer, no reader can tell.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa

from tracekit.trace.layout import BLOCK, SIZES_BYTES, Block, batch_places, footer_places, set_sizes
from tracekit.trace.repeated import is_shared
from tracekit.trace.schema import EVENTS
from tracekit.trace.zstd_rows import compress_repeated, compress_rows, is_constant

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


def compress(batches: Sequence[pa.RecordBatch]) -> list[Column]:
    """Return the columns of batches, one behind the other, compressed."""
    columns = zip(*(batch.columns for batch in batches), strict=True)
    return [_compressed(name, column) for name, column in zip(EVENTS.names, columns, strict=True)]


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


def _compressed(name: str, pieces: Sequence[pa.Array]) -> Column:
    rows, nulls = sum(map(len, pieces)), sum(piece.null_count for piece in pieces)
    width = pieces[0].type.bit_width // 8 if name != "kind" else 1
    if nulls == rows and rows:
        return Column(rows, rows, _zeros((rows + 7) // 8), _zeros(rows * width))
    values = [
        np.frombuffer(piece.buffers()[1], _UNSIGNED[width], len(piece), piece.offset * width)
        for piece in pieces
    ]
    present = _packed(pieces) if nulls else b""
    alike = all(is_shared(piece.buffers()[1].address) for piece in pieces)
    return Column(rows, nulls, present, _buffer(values, steady=name in _STEADY, alike=alike))


def _packed(pieces: Sequence[pa.Array]) -> bytes:
    """Return the bits that say which rows are not null."""
    flags = []
    for piece in pieces:
        bits = piece.buffers()[0]
        if bits is None or not piece.null_count:
            flags.append(np.ones(len(piece), np.uint8))
            continue
        start = piece.offset
        within = np.frombuffer(bits, np.uint8)[start // 8 : (start + len(piece) + 7) // 8]
        flags.append(np.unpackbits(within, bitorder="little")[start % 8 :][: len(piece)])
    return _buffer([np.packbits(np.concatenate(flags), bitorder="little")], steady=False)


@lru_cache(maxsize=256)
def _zeros(size: int) -> bytes:
    return _buffer([np.zeros(size, np.uint8)], steady=False)


def _buffer(pieces: list[np.ndarray], *, steady: bool, alike: bool = False) -> bytes:
    """Return a buffer of a compressed batch: its size, and a zstd frame of it.

    `alike`: each piece is known to have one value.
    """
    first, rows = pieces[0][:1].tobytes(), sum(map(len, pieces))
    frame = None
    if all((alike or is_constant(piece)) and piece[:1].tobytes() == first for piece in pieces):
        frame = compress_repeated(first, rows)
    if frame is None:
        values = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        if values.itemsize == 8:
            frame = compress_rows(values) if steady else compress_rows(values, most=1)
        if frame is None:
            frame = _ZSTD.compress(values, asbytes=True)
    return _SIZE.pack(rows * pieces[0].itemsize) + frame
