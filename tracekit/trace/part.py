"""One part of a trace: an Arrow IPC file that grows frame by frame and is readable after any crash."""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final

import pyarrow as pa

from tracekit.errors import DamagedError
from tracekit.trace.folder import EVENTS_DIR, Folder, part_name, write_all
from tracekit.trace.framing import frame_metadata, seal
from tracekit.trace.holdback import frames, rows_of, times
from tracekit.trace.layout import Block
from tracekit.trace.schema import EVENTS
from tracekit.trace.splice import compress, mend_footer, put_in

__all__ = ["FRAME_ROWS", "PartLine", "PartWriter"]

FRAME_ROWS: Final = 1 << 16
"""Rows of a full record batch: 8 times fewer compress worse by an eighth, more gain nothing."""

_PART: Final = re.compile(r"\d{5,9}\.(arrow|parquet)")
_CRC: Final = re.compile(r"[0-9a-f]{8}")
_NEWEST: Final = (1 << 64) - 1
_OPTIONS: Final = pa.ipc.IpcWriteOptions(compression="zstd", use_threads=False)


@dataclass(frozen=True)
class PartLine:
    """What `manifest.jsonl` says of a closed part; `crc32` is of the whole file, in hexadecimal.

    >>> line = PartLine("00000.arrow", 2, 3000, 10, 20, 1, "00c0ffee")
    >>> PartLine.from_json(line.to_json()) == line
    True
    """

    part: str
    rows: int
    bytes: int
    first_ts_ns: int | None
    last_ts_ns: int | None
    batches: int
    crc32: str

    def to_json(self) -> str:
        """Return the line, with its newline and a checksum of its own."""
        return json.dumps({**asdict(self), "line_crc32": _line_crc(asdict(self))}) + "\n"

    @classmethod
    def from_json(cls, line: str) -> PartLine:
        """Read a line; DamagedError when it is not exactly what was written."""
        try:
            values = json.loads(line)
            if values.pop("line_crc32") == _line_crc(values):
                return cls(**values)._checked()
        except (TypeError, ValueError, AttributeError, KeyError, RecursionError):
            pass
        raise DamagedError(f"manifest.jsonl has a damaged line: {line[:60]!r}")

    def _checked(self) -> PartLine:
        """Return the line; ValueError when a value is none that a writer could have written."""
        times = (self.first_ts_ns, self.last_ts_ns)
        if not (
            isinstance(self.part, str)
            and _PART.fullmatch(self.part)
            and isinstance(self.crc32, str)
            and _CRC.fullmatch(self.crc32)
            and all(_is_count(n, most=1 << 62) for n in (self.rows, self.bytes, self.batches))
            and all(t is None if not self.rows else _is_count(t, most=_NEWEST) for t in times)
            and (times[0] or 0) <= (times[1] or 0)
        ):
            raise ValueError(self.part)
        return self


def _is_count(value: object, *, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def _line_crc(values: dict[str, object]) -> str:
    return f"{zlib.crc32(json.dumps(values).encode()):08x}"


class PartWriter:
    """Writes one part; rows must come in time order. `rows` counts what the file holds, synced or not."""

    def __init__(self, folder: Folder, number: int, *, suffix: str = ".part") -> None:
        """Create `events/NNNNN.arrow` + suffix; OSError if that is not possible."""
        self.name = part_name(number)
        self.written_name = f"{EVENTS_DIR}/{self.name}{suffix}"
        self.first_ts: int | None = None
        self.last_ts: int | None = None
        self.rows = 0
        self.bytes = 0
        self._batches = 0
        self._blocks: list[Block] = []
        self._crc = 0
        self._synced_rows = 0
        self._folder = folder
        self._sink = _Sink()
        self._fd = folder.new_file(self.written_name)
        self._arrow = pa.ipc.new_file(pa.PythonFile(self._sink, "w"), EVENTS, options=_OPTIONS)

    def write(self, batches: Sequence[pa.RecordBatch], lost_so_far: int | None) -> None:
        """Append rows sorted by `ts_ns`, none older than the last; not durable before `sync`.

        Each frame has FRAME_ROWS of them, whatever batches they come in.

        On OSError (disk full) the file is cut back to its last whole frame and can only be abandoned.
        """
        for group in frames(batches, most=FRAME_ROWS):
            rows = rows_of(group)
            metadata = frame_metadata(self._batches, self.rows, rows, lost_so_far)
            self._arrow.write_batch(group[0].slice(0, 0), custom_metadata=metadata)
            frame, block = put_in(self._sink.take(), compress(group))
            self._blocks.append(block._replace(offset=self.bytes + block.offset))
            crc = seal(frame, self._crc)
            self._put(frame)
            self._crc = crc
            self._batches += 1
            self.rows += rows
            self.first_ts = int(times(group[0])[0]) if self.first_ts is None else self.first_ts
            self.last_ts = int(times(group[-1])[-1])

    def sync(self) -> int:
        """Make what was written durable; returns how many rows that adds."""
        added = self.rows - self._synced_rows
        if added:
            os.fdatasync(self._fd)
            self._synced_rows = self.rows
        return added

    def close(self) -> PartLine:
        """Write the footer, make the part durable under its final name, and return its manifest line."""
        self._arrow.close()
        end = self._sink.take()
        mend_footer(end, self._blocks)
        self._put(end)
        self._crc = zlib.crc32(end, self._crc)
        os.fdatasync(self._fd)
        os.close(self._fd)
        self._fd = -1
        self._folder.rename(self.written_name, f"{EVENTS_DIR}/{self.name}")
        times = (self.first_ts, self.last_ts)
        return PartLine(self.name, self.rows, self.bytes, *times, self._batches, f"{self._crc:08x}")

    def abandon(self) -> None:
        """Leave the file as it is, for `recover`."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _put(self, content: bytearray) -> None:
        try:
            write_all(self._fd, content)
        except OSError:
            os.ftruncate(self._fd, self.bytes)
            raise
        self.bytes += len(content)


class _Sink:
    """Collects what Arrow writes, so that a frame can be sealed and goes to the disk in one piece."""

    closed = False

    def __init__(self) -> None:
        self._content = bytearray()
        self._taken = 0

    def write(self, content: bytes | memoryview) -> int:
        before = len(self._content)
        self._content += content
        return len(self._content) - before

    def take(self) -> bytearray:
        taken, self._content = self._content, bytearray()
        self._taken += len(taken)
        return taken

    def tell(self) -> int:
        return self._taken + len(self._content)

    def flush(self) -> None: ...

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def close(self) -> None:
        self.closed = True
