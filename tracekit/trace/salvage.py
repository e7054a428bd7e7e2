"""Gets every whole, verified frame out of one part, however the part ended."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field, replace

import pyarrow as pa

from tracekit.errors import DamagedError
from tracekit.trace.decode import parquet_rows
from tracekit.trace.folder import EVENTS_DIR, Folder, part_name
from tracekit.trace.holdback import times
from tracekit.trace.part import PartLine, PartWriter
from tracekit.trace.resync import Gap, SalvageReader
from tracekit.trace.schema import EVENTS

__all__ = ["Salvaged", "salvage_part"]


@dataclass(frozen=True)
class Salvaged:
    """A part that is whole now: its manifest line, and what was wrong with it ("" = nothing).

    `gaps` are where it holds no verified rows; `lost_so_far` is the loss count of its last frame.
    """

    line: PartLine
    trouble: str
    gaps: tuple[Gap, ...]
    lost_so_far: int | None
    was_open: bool


def salvage_part(folder: Folder, number: int, stated: PartLine | None) -> Salvaged | None:
    """Make part `number` a closed part of verified frames; None when there is no file of it at all.

    The damaged original stays as `.damaged` when any of its bytes are not explained. May be repeated
    after a crash at any point: it then comes to the same end.
    """
    compacted = f"{EVENTS_DIR}/{number:05d}.parquet"
    if folder.exists(compacted):
        return _salvage_parquet(folder, number, stated)
    closed = f"{EVENTS_DIR}/{part_name(number)}"
    sources = [name for name in (f"{closed}.part", closed, f"{closed}.damaged") if folder.exists(name)]
    if not sources:
        return None
    source = sources[0]
    path = folder.path / source
    if source == closed and stated is not None and _matches(folder, source, stated):
        return Salvaged(stated, "", (), _scan(path).lost_so_far, was_open=False)
    found = _scan(path)
    if source == closed and found.whole:
        return Salvaged(found.line(part_name(number)), "", (), found.lost_so_far, was_open=False)
    folder.remove(f"{closed}.tmp")
    writer = PartWriter(folder, number, suffix=".tmp")
    try:
        with pa.memory_map(str(path)) as file:
            for frame in SalvageReader(file.read_buffer()):
                writer.write([frame.batch], frame.lost_so_far)
        if source == closed:
            folder.rename(closed, f"{closed}.damaged")
        line = writer.close()
    finally:
        writer.abandon()
    if source.endswith(".part"):
        if found.gaps:
            folder.rename(source, f"{closed}.damaged")
        else:
            folder.remove(source)
    trouble = found.trouble or ("" if source.endswith(".part") else "its end is missing")
    return Salvaged(line, trouble, tuple(found.gaps), found.lost_so_far, source.endswith(".part"))


def _salvage_parquet(folder: Folder, number: int, stated: PartLine | None) -> Salvaged:
    """A compacted part is good as a whole or not at all: it is one row group with one checksum."""
    name = f"{EVENTS_DIR}/{number:05d}.parquet"
    if stated is not None and _matches(folder, name, stated):
        return Salvaged(stated, "", (), 0, was_open=False)
    content = folder.read(name)
    trouble = "its checksum does not match"
    if stated is None:
        line = PartLine(f"{number:05d}.parquet", 0, len(content), None, None, 1, f"{zlib.crc32(content):08x}")
        try:
            ts = [times(batch) for batch in parquet_rows(folder.path / name, EVENTS.names)]
        except DamagedError as error:
            trouble = error.message
        else:
            ends = (int(ts[0][0]), int(ts[-1][-1])) if ts else (None, None)
            made = replace(line, rows=sum(map(len, ts)), first_ts_ns=ends[0], last_ts_ns=ends[1])
            return Salvaged(made, "", (), 0, was_open=False)
    empty = PartWriter(folder, number, suffix=".tmp")
    folder.rename(name, f"{name}.damaged")
    return Salvaged(empty.close(), trouble, (), 0, was_open=False)


@dataclass
class _Scan:
    rows: int = 0
    batches: int = 0
    first_ts: int | None = None
    last_ts: int | None = None
    lost_so_far: int | None = 0
    whole: bool = False
    gaps: list[Gap] = field(default_factory=list)
    size: int = 0
    crc: int = 0

    @property
    def trouble(self) -> str:
        return self.gaps[0].trouble if self.gaps else ""

    def line(self, name: str) -> PartLine:
        times = (self.first_ts, self.last_ts)
        return PartLine(name, self.rows, self.size, *times, self.batches, f"{self.crc:08x}")


def _scan(path: object) -> _Scan:
    scan = _Scan()
    with pa.memory_map(str(path)) as file:
        content = file.read_buffer()
        scan.size = content.size
        reader = SalvageReader(content, columns=["ts_ns"])
        for frame in reader:
            ts = frame.batch.column(0)
            scan.rows += len(ts)
            scan.batches += 1
            scan.first_ts = ts[0].as_py() if scan.first_ts is None else scan.first_ts
            scan.last_ts = ts[-1].as_py()
            scan.lost_so_far = frame.lost_so_far
        scan.gaps = reader.gaps
        scan.crc = zlib.crc32(content)
        if reader.closed:
            scan.whole = _footer_agrees(content, scan.batches)
    return scan


def _footer_agrees(content: pa.Buffer, batches: int) -> bool:
    try:
        return bool(pa.ipc.open_file(content).num_record_batches == batches)
    except (pa.ArrowException, OSError, ValueError, MemoryError):
        return False


def _matches(folder: Folder, name: str, stated: PartLine) -> bool:
    with pa.memory_map(str(folder.path / name)) as file:
        content = file.read_buffer()
        return content.size == stated.bytes and zlib.crc32(content) == int(stated.crc32, 16)
