"""Where a recording goes: one trace, a new trace every so often, or memory until the last seconds are wanted.

All three take what `TraceWriter` takes. A trace begun later gets the memslots that stand, so that each is
whole in itself.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tracekit.errors import TracekitError, UsageError
from tracekit.trace import Meta, TraceWriter

__all__ = ["FlightWriter", "RotatingWriter", "Writer", "numbered", "taken_numbers"]

_IPC: Final = pa.ipc.IpcWriteOptions(compression="zstd")


class Writer(Protocol):
    """What the recorder needs of a trace being written."""

    meta: Meta

    @property
    def path(self) -> Path:
        """The trace; of several the one written last."""

    @property
    def bytes_written(self) -> int:
        """Bytes of events on the disk so far."""

    def append(self, batch: pa.RecordBatch) -> None:
        """Take in rows of the event table."""

    def add_memslot(
        self,
        *,
        vm: int,
        slot: int,
        gpa: int,
        size_bytes: int,
        hva: int,
        flags: int,
        from_ns: int,
        known_by: str,
    ) -> None:
        """Note a memslot."""

    def add_sample(self, ts_ns: int, vm: int, metric: str, value: float) -> None:
        """Note one value of a metric."""

    def add_loss(self, cpu: int | None, t0_ns: int, t1_ns: int, lost: int | None, reason: str) -> None:
        """Enter lost events into the ledger."""

    def mark(self, name: str, ts_ns: int) -> object:
        """Name a point in time."""

    def save_meta(self) -> None:
        """Make what `meta` says now safe against a crash."""

    def flush(self) -> int:
        """Do what is due; returns how many rows are safe."""

    def close(self) -> Meta:
        """Finalise."""


def numbered(path: Path, number: int) -> Path:
    """Return the name of the n-th trace of a series.

    >>> numbered(Path("vm.trace"), 2).name
    'vm-0002.trace'
    """
    return path.with_name(f"{path.stem}-{number:04d}{path.suffix}")


def taken_numbers(path: Path) -> list[int]:
    """Return the numbers of a series of which something has the name already, in order."""
    name = re.compile(re.escape(path.stem) + r"-(\d{4,})" + re.escape(path.suffix))
    try:
        found = [name.fullmatch(item.name) for item in path.parent.iterdir()]
    except OSError:  # no such folder, or not ours to list: making the trace will say so
        return []
    return sorted(int(match[1]) for match in found if match)


class _Memslots:
    """The memslots that stand, as they were noted."""

    def __init__(self) -> None:
        self._standing: dict[tuple[int, int], dict[str, Any]] = {}

    def note(self, memslot: dict[str, Any]) -> None:
        key = memslot["vm"], memslot["slot"]
        self._standing.pop(key, None)
        if memslot["size_bytes"]:
            self._standing[key] = memslot

    def tell(self, writer: TraceWriter) -> None:
        for memslot in self._standing.values():
            writer.add_memslot(**memslot)


class RotatingWriter:
    """A new trace every `seconds`: NAME-0001.trace, NAME-0002.trace, …; of these the last `keep` (0 = all).

    `open_trace` opens a writer on a path, with a meta of its own; `meta` is what they all start from. A
    context manager: an exception leaves the trace that is being written for `tracekit recover`. What takes a
    name of the series while it is recorded keeps it, and the next trace gets the next number.
    """

    def __init__(
        self,
        path: Path,
        meta: Meta,
        open_trace: Callable[[Path], TraceWriter],
        *,
        seconds: float,
        keep: int = 0,
    ) -> None:
        self.meta = meta
        self.rows = 0
        self._path, self._open = path, open_trace
        self._every_ns, self._keep = int(seconds * 1e9), keep
        self._memslots = _Memslots()
        self._paths: deque[Path] = deque()
        self._closed_bytes = self._number = 0
        self._complete_ns = meta.start_ns or time.monotonic_ns()
        self._begin()

    @property
    def path(self) -> Path:
        """The trace that is being written, or was written last."""
        return self._writer.path

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        """After an exception, leave a recoverable trace."""
        if kind is not None:
            self._writer.abort(f"stopped by {kind.__name__}")

    @property
    def bytes_written(self) -> int:
        """Bytes of events in all traces of the series, those that were dropped again included."""
        return self._closed_bytes + self._writer.bytes_written

    def append(self, batch: pa.RecordBatch) -> None:
        """Take in rows of the event table."""
        self._writer.append(batch)

    def add_memslot(self, **memslot: Any) -> None:
        """Note a memslot."""
        self._memslots.note(memslot)
        self._writer.add_memslot(**memslot)

    def add_sample(self, ts_ns: int, vm: int, metric: str, value: float) -> None:
        """Note one value of a metric."""
        self._writer.add_sample(ts_ns, vm, metric, value)

    def add_loss(self, cpu: int | None, t0_ns: int, t1_ns: int, lost: int | None, reason: str) -> None:
        """Enter lost events into the ledger of the trace that is being written."""
        self._writer.add_loss(cpu, t0_ns, t1_ns, lost, reason)

    def mark(self, name: str, ts_ns: int) -> None:
        """Name a point in time, in the trace that is being written."""
        self._writer.mark(name, ts_ns)

    def save_meta(self) -> None:
        """Make what `meta` says now safe against a crash, in the trace that is being written."""
        _copy_facts(self.meta, self._writer.meta)
        self._writer.save_meta()

    def complete_until(self, ts_ns: int) -> None:
        """Say that all rows until then are here: there, one trace ends and the next begins."""
        self._complete_ns = ts_ns

    def flush(self) -> int:
        """Flush; when the time is over, finalise this trace and begin the next."""
        if time.monotonic_ns() - self._began_ns >= self._every_ns:
            self._end()
            self._begin()
            return self.rows
        return self.rows + self._writer.flush()

    def close(self) -> Meta:
        """Finalise the last trace."""
        self._end()
        self.meta.rows = self.rows
        return self.meta

    def _begin(self) -> None:
        self._began_ns = time.monotonic_ns()
        path, self._writer = self._open_next()
        self._writer.meta.start_ns = self._complete_ns
        self._writer.save_meta()  # a crash must not make it as old as the whole recording
        self._memslots.tell(self._writer)
        self._paths.append(path)
        while self._keep and len(self._paths) > self._keep:
            shutil.rmtree(self._paths.popleft(), ignore_errors=True)

    def _open_next(self) -> tuple[Path, TraceWriter]:
        while True:
            self._number += 1
            path = numbered(self._path, self._number)
            try:
                return path, self._open(path)
            except UsageError:
                # The first may not be skipped: whoever called us is told that there is something.
                if not (self._paths and os.path.lexists(path)):
                    raise

    def _end(self) -> None:
        self._writer.meta.stop_ns = self._complete_ns
        _copy_facts(self.meta, self._writer.meta)
        self._closed_bytes += self._writer.bytes_written
        self.rows += self._writer.close().rows or 0


class FlightWriter:
    """Keeps the last `seconds` in memory, compressed; a dump and `close` write them out as a trace.

    A dump is made at the first flush by which all rows from before it was asked for are here (`triggered`
    says when that was, 0: it was not), under the next number of which nothing has the name
    (NAME-0001.trace, …). One that fails costs nothing that is kept; `say` is told of each.
    About 10 bytes an event: 100,000 events/s for 60 s are 60 MB.
    """

    def __init__(
        self,
        path: Path,
        meta: Meta,
        open_trace: Callable[[Path], TraceWriter],
        *,
        seconds: float,
        triggered: Callable[[], int],
        say: Callable[[str], None],
    ) -> None:
        self.meta = meta
        self.path = path
        self.bytes_written = 0
        self._open, self._keep_ns = open_trace, int(seconds * 1e9)
        self._triggered, self._say = triggered, say
        self._newest_ns = self._complete_ns = self._asked_ns = 0
        self._start_ns = meta.start_ns or 0
        self._memslots = _Memslots()
        self._later_memslots: deque[dict[str, Any]] = deque()  # of the seconds that are kept
        self._frames: deque[tuple[int, pa.Buffer]] = deque()
        self._samples: deque[tuple[int, int, str, float]] = deque()
        self._losses: deque[tuple[int | None, int, int, int | None, str]] = deque()
        self._marks: deque[tuple[str, int]] = deque()

    @property
    def held_bytes(self) -> int:
        """How much memory the kept events take."""
        return sum(frame.size for _, frame in self._frames)

    def append(self, batch: pa.RecordBatch) -> None:
        """Take in rows of the event table."""
        if batch.num_rows:
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, batch.schema, options=_IPC) as stream:
                stream.write_batch(batch)
            newest = int(batch.column("ts_ns").to_numpy().max())
            self._frames.append((newest, sink.getvalue()))
            self._newest_ns = max(self._newest_ns, newest)
        self._forget()

    def add_memslot(self, **memslot: Any) -> None:
        """Note a memslot."""
        self._later_memslots.append(memslot)

    def add_sample(self, ts_ns: int, vm: int, metric: str, value: float) -> None:
        """Note one value of a metric."""
        self._samples.append((ts_ns, vm, metric, value))
        self._newest_ns = max(self._newest_ns, ts_ns)

    def add_loss(self, cpu: int | None, t0_ns: int, t1_ns: int, lost: int | None, reason: str) -> None:
        """Enter lost events into the ledger."""
        self._losses.append((cpu, t0_ns, t1_ns, lost, reason))

    def mark(self, name: str, ts_ns: int) -> None:
        """Name a point in time; each dump from now on holds it, as long as its seconds are kept."""
        self._marks.append((name, ts_ns))

    def save_meta(self) -> None:
        """Nothing is on the disk before a dump."""

    def complete_until(self, ts_ns: int) -> None:
        """Say that all rows until then are here: a dump ends there."""
        self._complete_ns = ts_ns

    def flush(self) -> int:
        """Write a dump if one was asked for."""
        self._forget()
        self._asked_ns = self._triggered() or self._asked_ns
        if 0 < self._asked_ns <= self._complete_ns:
            self._asked_ns = 0
            self._dump_beside()
        return 0

    def close(self) -> Meta:
        """Write the last seconds to the path itself; where somebody has taken that, to the next number.

        They are those before the recording was stopped: what ending it takes may be as long as what is kept.
        """
        try:
            writer = self._open(self.path)
        except UsageError:
            if not os.path.lexists(self.path):
                raise
            writer = self._open(self._free_path())
        self._fill(writer, self.meta.stop_ns or time.monotonic_ns())
        self.path, self.meta.rows = writer.path, writer.meta.rows or 0
        return self.meta

    def _free_path(self) -> Path:
        paths = (numbered(self.path, number) for number in itertools.count(1))
        return next(path for path in paths if not os.path.lexists(path))

    def _dump_beside(self) -> None:
        """Write what is kept under the next free number; whatever goes wrong, the recording goes on."""
        path, writer = self._free_path(), None
        try:
            writer = self._open(path)
            self._fill(writer, self._complete_ns)
        except (TracekitError, OSError) as error:
            if writer is not None:  # all that is in it is still kept here, and its room may be needed
                shutil.rmtree(writer.path, ignore_errors=True)
            self._say(
                f"no dump: {_why(error)} ({path}); the last seconds are still kept, the recording goes on"
            )
        else:
            self._say(f"dumped {writer.meta.rows or 0:,} events into {writer.path}")

    def _forget(self) -> None:
        oldest = self._newest_ns - self._keep_ns
        while self._frames and self._frames[0][0] < oldest:
            self._frames.popleft()
        while self._samples and self._samples[0][0] < oldest:
            self._samples.popleft()
        while self._losses and self._losses[0][2] < oldest:
            self._losses.popleft()
        while self._marks and self._marks[0][1] < oldest:
            self._marks.popleft()
        while self._later_memslots and self._later_memslots[0]["from_ns"] < oldest:
            self._memslots.note(self._later_memslots.popleft())

    def _fill(self, writer: TraceWriter, end_ns: int) -> None:
        """Write what is kept of the seconds before `end_ns`, at most back to the start, and finalise."""
        oldest = max(end_ns - self._keep_ns, self._start_ns)
        with writer:
            _copy_facts(self.meta, writer.meta)
            writer.meta.start_ns, writer.meta.stop_ns = oldest, None
            writer.save_meta()  # a disk that gets full must not make it as old as the whole recording
            writer.meta.stop_ns = end_ns
            self._memslots.tell(writer)
            for memslot in self._later_memslots:
                writer.add_memslot(**memslot)
            for _, frame in self._frames:
                for batch in pa.ipc.open_stream(frame):
                    writer.append(batch.filter(pc.greater_equal(batch.column("ts_ns"), np.uint64(oldest))))
            for sample in self._samples:
                if sample[0] >= oldest:
                    writer.add_sample(*sample)
            for loss in self._losses:
                if loss[2] >= oldest:
                    writer.add_loss(*loss)
            for name, ts_ns in self._marks:
                if ts_ns >= oldest:
                    writer.mark(name, ts_ns)
        self.bytes_written += writer.bytes_written


def _why(error: Exception) -> str:
    """Return what the system said, without what a message adds for a trace that stays."""
    cause = error if isinstance(error, OSError) else error.__context__
    return (cause.strerror if isinstance(cause, OSError) else None) or str(error)


def _copy_facts(source: Meta, target: Meta) -> None:
    """Give a trace of a series what was learned since it was begun."""
    target.vms = list(source.vms)
    target.notes = list(source.notes)
    target.extra = dict(source.extra)
    if source.stop_ns is not None:
        target.stop_ns = source.stop_ns
