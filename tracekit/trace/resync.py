"""Finds the verified frames of a part also behind damage: each proves itself.

A frame begins with Arrow's continuation mark, and every frame but the first is checked by a checksum over
nothing but itself. So reading can go on behind bytes that are not understood: at the next mark whose frame
has the right checksum. What stands at a part's start, the columns and the kinds, is the same in every part:
even one without its start can be read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import pyarrow as pa

from tracekit.trace.batch import KIND_DICTIONARY
from tracekit.trace.framing import ARROW_ERRORS, Frame, FrameReader, decode_frame, is_sealed, open_frames
from tracekit.trace.holdback import goes_back
from tracekit.trace.layout import MOST_ROWS, check_batch_header, footer_blocks
from tracekit.trace.schema import EVENTS

__all__ = ["Gap", "SalvageReader"]

# Arrow's mark, then the size of a header of less than 16 KiB, of which tracekit's has a tenth.
_MARK: Final = re.compile(rb"\xff\xff\xff\xff(?=.[\x00-\x3f]\x00\x00)", re.DOTALL)
_END_MARK_BYTES: Final = 8
_MOST_BODY: Final = 1 << 23  # 65,536 rows, not compressed, are 5 MB
_MOST_LIES: Final = 1000
"""Marks with a wrong checksum behind them that are looked at: bytes made to look like frames cost time."""


class Gap(NamedTuple):
    """Bytes that hold no verified frame: how many, between which rows of the part, and what is known of them.

    `rows` is how many rows they held, None = unknown; `before_ns` and `after_ns` are the times of the rows
    beside them, None where there are none.
    """

    size: int
    rows: int | None
    before_ns: int | None
    after_ns: int | None
    trouble: str


class SalvageReader:
    """Iterates over the verified frames of a part, whatever lies between them.

    After iterating, `gaps` says what was between or behind frames ([] = nothing) and `closed` is that of
    `FrameReader`. Frames that are older than one before them, or have its number, are no frames of this part.
    """

    def __init__(self, part: pa.Buffer, *, columns: Sequence[str] | None = None) -> None:
        self.gaps: list[Gap] = []
        self.closed = False
        self._part, self._columns = part, columns
        self._lies = 0
        self._seq, self._rows = -1, 0
        self._last_ts: int | None = None

    def __iter__(self) -> Iterator[Frame]:
        """Yield frames in the order they were written."""
        reader = FrameReader(self._part, columns=self._columns)
        for frame in reader:
            self._note(frame)
            yield frame
        self.closed = reader.closed
        end, trouble = reader.end, reader.trouble
        if not trouble:
            return
        for start, frame, after in self._frames_behind(end):
            if start > end:
                self.gaps.append(
                    Gap(start - end, self._missing_before(frame), self._last_ts, _first_ts(frame), trouble)
                )
            self._note(frame)
            end = after
            trouble = f"byte {end}: no batch with a right checksum"
            yield frame
        if end < self._part.size and not (self.gaps and self._is_end(end)):
            self.gaps.append(Gap(self._part.size - end, None, self._last_ts, None, trouble))

    def _missing_before(self, frame: Frame) -> int | None:
        """Return how many rows the batches before a frame held that were not found."""
        most = (frame.seq - self._seq - 1) * MOST_ROWS
        missing = -1 if frame.rows_before is None else frame.rows_before - self._rows
        return missing if 0 <= missing <= most else None

    def _is_end(self, at: int) -> bool:
        """Return whether what stands at `at` is the end of a part whose last frame was the last one found."""
        try:
            _, batches = footer_blocks(self._part)
        except ValueError:
            return False
        footer = int.from_bytes(self._part[self._part.size - 10 : self._part.size - 6].to_pybytes(), "little")
        return at + 8 + footer + 10 == self._part.size and len(batches) == self._seq + 1

    def _note(self, frame: Frame) -> None:
        self._seq = frame.seq
        self._rows = (self._rows if frame.rows_before is None else frame.rows_before) + frame.batch.num_rows
        if frame.batch.num_rows:
            self._last_ts = frame.batch.column("ts_ns")[-1].as_py()

    def _frames_behind(self, at: int) -> Iterator[tuple[int, Frame, int]]:
        """Yield (start, frame, end) of the frames that follow `at`."""
        view = memoryview(self._part)
        while found := _MARK.search(view, at):
            at = found.start()
            size = self._verified_size(at)
            frame = self._decoded(at, size) if size else None
            if frame is None:
                at += 1
                continue
            yield at, frame, at + size
            at += size

    def _verified_size(self, at: int) -> int:
        """Return the size of the frame at `at`, 0 when there is none with a right checksum."""
        most = self._part.slice(at, min(self._part.size - at, _MOST_BODY))
        stream = pa.BufferReader(most)
        if self._lies >= _MOST_LIES:
            return 0
        try:
            message = pa.ipc.read_message(stream)
            if message.type != "record batch":
                return 0
            check_batch_header(message, list(EVENTS))
        except ARROW_ERRORS:
            return 0
        size = int(stream.tell())
        if is_sealed(most.slice(0, size), 0, message.metadata.size):
            return size
        self._lies += 1
        return 0

    def _decoded(self, at: int, size: int) -> Frame | None:
        try:
            stream = pa.py_buffer(_START + memoryview(self._part)[at : at + size])
            decoder = open_frames(stream, self._columns)
            decoder.read_next_batch()  # the empty one of _START
            frame = decode_frame(decoder)
        except (*ARROW_ERRORS, StopIteration):
            return None
        older = bool(frame.batch.num_rows) and goes_back(frame.batch, self._last_ts or 0)
        return None if older or frame.seq <= self._seq else frame


def _first_ts(frame: Frame) -> int | None:
    ts: int | None = frame.batch.column("ts_ns")[0].as_py() if frame.batch.num_rows else None
    return ts


def _part_start() -> bytes:
    """Return the stream of a part's columns, kinds and no rows: what a frame needs before it to be read."""
    sink = pa.BufferOutputStream()
    stream = pa.ipc.new_stream(sink, EVENTS)
    arrays = [
        pa.DictionaryArray.from_arrays(pa.array([], pa.uint8()), KIND_DICTIONARY)
        if pa.types.is_dictionary(field.type)
        else pa.array([], field.type)
        for field in EVENTS
    ]
    stream.write_batch(pa.RecordBatch.from_arrays(arrays, schema=EVENTS))
    stream.close()
    whole: bytes = sink.getvalue().to_pybytes()
    return whole[:-_END_MARK_BYTES]


_START: Final = _part_start()
