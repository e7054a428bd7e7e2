"""Frames: the bytes of one record batch in a part, sealed with a checksum that Arrow IPC lacks.

A frame is every byte of the file from the end of the frame before it to the end of its own record
batch message; the first one so covers the magic, the schema and the dictionary too. Its crc32 is of
the *encoded* bytes: a tenth of the decoded size (2 ns instead of 20 per event), and they can be
checked before any decoder touches them. The checksum stands in the batch's own metadata, inside those
bytes, so its eight digits count as zeros.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import pyarrow as pa

from tracekit.trace.batch import KIND_DICTIONARY, newer_kinds
from tracekit.trace.crc_loops import joined
from tracekit.trace.holdback import goes_back, times
from tracekit.trace.layout import Block, check_batch_header, check_dictionary_header, footer_blocks
from tracekit.trace.schema import EVENTS

__all__ = [
    "ARROW_ERRORS",
    "BODY_START",
    "Frame",
    "FrameReader",
    "decode_frame",
    "frame_metadata",
    "is_sealed",
    "open_frames",
    "seal",
]

BODY_START: Final = 8
"""Where the stream of messages begins in an Arrow IPC file: after `ARROW1` and two bytes of padding."""

_ZEROS: Final = b"crc32:00000000"
_DIGITS: Final = 8
_SEAL: Final = re.compile(rb"crc32:[0-9a-f]{8}")
ARROW_ERRORS: Final = (pa.ArrowException, OSError, EOFError, MemoryError, ValueError)
"""What Arrow raises for bytes that are none of its."""


class Frame(NamedTuple):
    """One verified record batch: its number in the part, the loss count when it was written, its rows.

    `rows_before` is how many rows of the part came before it, None where that was not noted (by 0.1.0).
    """

    seq: int
    lost_so_far: int | None
    rows_before: int | None
    batch: pa.RecordBatch


def frame_metadata(seq: int, rows_before: int, rows: int, lost_so_far: int | None) -> dict[str, str]:
    """Return the metadata to write with a batch; `seal` then fills in the checksum.

    >>> frame_metadata(3, 70000, 65536, None)["lost_so_far"]
    'unknown'
    """
    return {
        "seq": str(seq),
        "rows": str(rows),
        "rows_before": str(rows_before),
        "lost_so_far": "unknown" if lost_so_far is None else str(lost_so_far),
        "crc32": _ZEROS.decode(),
    }


def seal(frame: bytearray, before: int = 0) -> int:
    """Put the checksum of the frame's bytes into the frame, where `frame_metadata` left zeros.

    Returns the crc32 of what came before, given its own, and the frame as it is then.
    """
    digits = frame.find(_ZEROS) + len(_ZEROS) - _DIGITS
    rest = digits + _DIGITS
    view = memoryview(frame)
    if joined.compiled is None:
        frame[digits:rest] = f"{zlib.crc32(view):08x}".encode()
        return zlib.crc32(view, before)
    # To go through all bytes twice would cost more than all the frame's other bookkeeping.
    behind, size = zlib.crc32(view[rest:]), len(frame) - rest
    whole = joined.compiled(zlib.crc32(view[:rest]), behind, size)
    frame[digits:rest] = f"{whole:08x}".encode()
    crc: int = joined.compiled(zlib.crc32(view[:rest], before), behind, size)
    return crc


class FrameReader:
    """Iterates over the verified frames of a part, closed or not; stops at the first bad byte.

    `part` is the whole file as a buffer (memory-mapped: nothing is copied). After iterating, `end` is
    the offset behind the last good frame, `closed` tells whether Arrow's end mark and a footer that names
    just these batches follow it, and `trouble` says why reading stopped early ("" = the data ended between
    two frames). Rows whose time goes back are such a trouble, where `columns` has their time.
    `dictionaries` and `batches` are where the messages are.
    """

    def __init__(self, part: pa.Buffer, *, columns: Sequence[str] | None = None) -> None:
        self.end = 0
        self.closed = False
        self.trouble = ""
        self.dictionaries: list[Block] = []
        self.batches: list[Block] = []
        self._part = part
        self._columns = columns
        self._last_ts = 0

    def __iter__(self) -> Iterator[Frame]:
        """Yield frames in the order they were written."""
        decoder: pa.RecordBatchStreamReader | None = None
        for number, end in enumerate(self._verified_ends()):
            try:
                if decoder is None:
                    decoder = open_frames(self._part.slice(BODY_START), self._columns)
                frame = decode_frame(decoder)
            except ARROW_ERRORS as error:
                self.trouble = f"batch {number} cannot be decoded: {error}"
                return
            if frame.seq != number:
                self.trouble = f"batch {number} says it is number {frame.seq}"
                return
            if "ts_ns" in frame.batch.schema.names and frame.batch.num_rows:
                if goes_back(frame.batch, self._last_ts):
                    self.trouble = f"batch {number}: time goes back"
                    return
                self._last_ts = int(times(frame.batch)[-1])
            self.end = end
            yield frame

    def _footer_is_right(self) -> bool:
        try:
            return footer_blocks(self._part) == (self.dictionaries, self.batches)
        except ValueError:
            return False

    def _verified_ends(self) -> Iterator[int]:
        size = self._part.size
        if size < BODY_START or self._part[:6].to_pybytes() != b"ARROW1":
            self.trouble = "it does not begin like an Arrow file" if size else ""
            return
        stream = pa.BufferReader(self._part)
        start, at = 0, BODY_START
        while at < size:
            if self._part[at : at + 8].to_pybytes() == b"\xff\xff\xff\xff\0\0\0\0":
                # Arrow's end mark may be stray bytes; the footer behind it must reach to the file's end, and
                # name the batches that were here.
                footer = int.from_bytes(self._part[size - 10 : size - 6].to_pybytes(), "little")
                self.closed = at + 8 + footer + 10 == size and self._footer_is_right()
                self.trouble = "" if self.closed else f"byte {at}: an end mark, but not the footer behind it"
                return
            stream.seek(at)
            try:
                message = pa.ipc.read_message(stream)
                kind, header = message.type, message.metadata.size
                if kind == "record batch":
                    check_batch_header(message, list(EVENTS))
                elif kind == "dictionary":
                    check_dictionary_header(message)
            except ARROW_ERRORS as error:
                self.trouble = f"byte {at}: {error}"
                return
            header_at, at = at, stream.tell()
            block = Block(header_at, 8 + header, at - header_at - 8 - header)
            if kind == "dictionary":
                self.dictionaries.append(block)
            if kind != "record batch":
                continue
            self.batches.append(block)
            if not is_sealed(self._part.slice(start, at - start), header_at - start, header):
                self.trouble = f"byte {header_at}: the checksum of the batch does not match"
                return
            yield at
            start = at
        if start != at:
            self.trouble = f"byte {start}: cut inside a batch"


def open_frames(stream: pa.Buffer, columns: Sequence[str] | None) -> pa.RecordBatchStreamReader:
    """Return a decoder of the frames in a stream of messages; ValueError when it has other columns."""
    fields = None if columns is None else [EVENTS.get_field_index(name) for name in columns]
    options = pa.ipc.IpcReadOptions(included_fields=fields, use_threads=False)
    decoder = pa.ipc.open_stream(pa.BufferReader(stream), options=options)
    wanted = EVENTS.names if columns is None else columns
    if not decoder.schema.equals(pa.schema([EVENTS.field(name) for name in wanted])):
        raise ValueError("other columns than tracekit writes")
    return decoder


def decode_frame(decoder: pa.RecordBatchStreamReader) -> Frame:
    """Return the next frame of a decoder; one of ARROW_ERRORS when it is not what was written."""
    try:
        batch, metadata = decoder.read_next_batch_with_custom_metadata()
        # Arrow trusts the codes of a dictionary column; whoever reads the rows would, too.
        batch.validate(full=True)
        seq, rows, before = (int(metadata.get(name, -1)) for name in ("seq", "rows", "rows_before"))
        lost = metadata["lost_so_far"]
        so_far = None if lost == b"unknown" else int(lost)
    except (KeyError, StopIteration, AttributeError) as error:
        raise ValueError(f"its metadata is not tracekit's: {error}") from None
    if rows != batch.num_rows:
        raise ValueError(f"it says it has {rows} rows, not {batch.num_rows}")
    return Frame(seq, so_far, None if before < 0 else before, _current_kinds(batch))


def is_sealed(frame: pa.Buffer, header_at: int, header_size: int) -> bool:
    """Return whether a frame's bytes match the checksum in the header of its batch, at `header_at`."""
    view = memoryview(frame)
    found = _SEAL.search(view, header_at, header_at + 8 + header_size)
    if found is None:
        return False
    digits = found.end() - 8
    crc = zlib.crc32(view[:digits])
    crc = zlib.crc32(view[found.end() :], zlib.crc32(b"00000000", crc))
    return crc == int(view[digits : found.end()].tobytes(), 16)


def _current_kinds(batch: pa.RecordBatch) -> pa.RecordBatch:
    at = batch.schema.get_field_index("kind")
    if at < 0 or batch.column(at).dictionary.equals(KIND_DICTIONARY):
        return batch
    kind: Any = batch.column(at)
    if not KIND_DICTIONARY.slice(0, len(kind.dictionary)).equals(kind.dictionary):
        raise newer_kinds()
    kind = pa.DictionaryArray.from_arrays(kind.indices, KIND_DICTIONARY)
    return batch.set_column(at, EVENTS.field("kind"), kind)
