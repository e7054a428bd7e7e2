"""Record batches whose steadily changing columns carry zstd frames of ours (zstd_rows.py) instead of Arrow's.

Arrow writes the batch with zeros in the place of such a column, which costs next to nothing; then the frame
takes the place of the zeros, and what the header and the footer say of sizes is set right. The result is what
Arrow IPC prescribes: which zstd made a buffer, no reader can tell.
"""

from __future__ import annotations

import struct
from typing import Final

import numpy as np
import pyarrow as pa

from tracekit.trace.layout import BLOCK, MOST_ROWS, Block, batch_places, footer_places
from tracekit.trace.schema import EVENTS
from tracekit.trace.zstd_rows import compress_rows

__all__ = ["mend_footer", "put_in", "take_out"]

_COLUMNS: Final = [EVENTS.get_field_index(name) for name in ("ts_ns", "gfn", "latency_ns")]
"""The columns that change a little with each row. Other addresses repeat in ways that zstd makes use of."""

_ALIGNMENT: Final = 8
_ZEROS: Final = pa.py_buffer(bytes(MOST_ROWS * 8))
_SIZE: Final = struct.Struct("<q")


def take_out(rows: pa.RecordBatch) -> tuple[pa.RecordBatch, dict[int, bytes]]:
    """Return the batch with zeros for the columns that we compress, and those compressed, by field."""
    columns = rows.columns
    frames: dict[int, bytes] = {}
    for index in _COLUMNS:
        column = columns[index]
        if column.null_count:
            continue
        values = np.frombuffer(column.buffers()[1], np.uint64, len(column), column.offset * 8)
        if (frame := compress_rows(values)) is not None:
            frames[index] = frame
            columns[index] = pa.Array.from_buffers(column.type, len(column), [None, _ZEROS])
    if not frames:
        return rows, frames
    return pa.RecordBatch.from_arrays(columns, schema=rows.schema), frames


def put_in(frame: bytearray, columns: dict[int, bytes], rows: int) -> tuple[bytearray, Block]:
    """Return the bytes that Arrow wrote for a batch with the columns put in, and where the batch is."""
    places = batch_places(frame)
    body = memoryview(frame)[places.body :]
    pieces: list[bytes | memoryview] = [memoryview(frame)[: places.body]]
    where = []
    size = 0
    for number, (start, length) in enumerate(places.buffers):
        field, is_data = divmod(number, 2)
        if is_data and field in columns:
            pieces += [_SIZE.pack(rows * 8), columns[field]]
            taken = _SIZE.size + len(columns[field])
        else:
            pieces.append(body[start : start + length])
            taken = length
        pieces.append(bytes(-taken % _ALIGNMENT))
        where.append((size, taken))
        size += taken + -taken % _ALIGNMENT
    made = bytearray().join(pieces)
    for at, buffer in zip(places.buffers_at, where, strict=True):
        struct.pack_into("<qq", made, at, *buffer)
    _SIZE.pack_into(made, places.body_size_at, size)
    return made, Block(places.start, places.body - places.start, size)


def mend_footer(tail: bytearray, blocks: list[Block]) -> None:
    """Let the footer that ends a part tell where its batches are."""
    for at, block in zip(footer_places(tail), blocks, strict=True):
        struct.pack_into(BLOCK, tail, at, block.offset, block.header, 0, block.body)
