"""Opens a finished trace: lazily as a polars frame, or as a verified stream of batches in time order."""

from __future__ import annotations

import difflib
import errno
import shlex
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pyarrow as pa

from tracekit.errors import DamagedError, UsageError
from tracekit.trace.decode import check_crc, check_part, part_batches
from tracekit.trace.folder import EVENTS_DIR, Folder, part_name
from tracekit.trace.journal import read_table
from tracekit.trace.lazy import current_kinds, scan_in_order
from tracekit.trace.merging import Source, joined, merge_sources, rebatch
from tracekit.trace.meta import Meta
from tracekit.trace.part import PartLine
from tracekit.trace.schema import EVENTS

if TYPE_CHECKING:
    import polars as pl

_LEAST_ROWS: Final = 1 << 14
"""Batches of fewer rows cost more than their rows do."""

__all__ = ["Trace", "open_folder", "open_trace", "read_manifest", "read_meta"]


class Trace:
    """A finished trace. Opening reads `meta.json` and the manifest; events are read when asked for.

    `path` is the folder, `meta` its `Meta`, `parts` the manifest.
    """

    def __init__(self, path: Path, meta: Meta, parts: Sequence[PartLine]) -> None:
        self.path = path
        self.meta = meta
        self.parts = tuple(parts)

    def __repr__(self) -> str:
        """Return a short form for a prompt."""
        return f"Trace({str(self.path)!r}, {self.rows:,} events, {self.meta.source})"

    @property
    def rows(self) -> int:
        """Number of events."""
        return sum(part.rows for part in self.parts)

    @property
    def bytes(self) -> int:
        """Size of the events on disk, in bytes."""
        return sum(part.bytes for part in self.parts)

    @property
    def compacted(self) -> bool:
        """True when the events are Parquet, grouped by vCPU (see `tracekit compact`)."""
        return any(part.part.endswith(".parquet") for part in self.parts)

    @property
    def events(self) -> pl.LazyFrame:
        """All events in time order, columns as in `EVENTS`, `kind` as an Enum.

        The first use compares each part with its checksum (about 2 ns per event).
        Raises DamagedError when a part is not what was written.
        """
        import polars as pl

        self._verified  # noqa: B018
        spans = self._by_time()
        if self.compacted or any(one[1] >= other[0] for one, other in pairwise(spans)):
            return scan_in_order(self)
        parts = [part for _, _, part in spans] or self.parts
        try:
            return current_kinds(pl.scan_ipc([self.path / EVENTS_DIR / part.part for part in parts]))
        except pl.exceptions.PolarsError as error:
            # What was changed together with its checksum, and Arrow takes where polars does not.
            why = f"{self.path} is damaged: polars cannot read it: {error}"
            raise DamagedError(why, hint=f"tracekit recover {self.path}") from None

    @cached_property
    def memslots(self) -> pl.DataFrame:
        """Memslots: guest physical ranges and where they are in the VMM, with the time they were there."""
        return self._table("memslots.arrow")

    @cached_property
    def samples(self) -> pl.DataFrame:
        """Samples, long: ts_ns, vm, metric, value."""
        return self._table("samples.arrow")

    @cached_property
    def losses(self) -> pl.DataFrame:
        """The loss ledger: cpu, t0_ns, t1_ns (inclusive), lost (null = unknown), reason."""
        return self._table("losses.arrow")

    @property
    def lost(self) -> int | None:
        """Number of events lost; None when any loss is of unknown size."""
        lost = self.losses["lost"]
        return None if lost.null_count() else int(lost.sum())

    @property
    def span_ns(self) -> int:
        """Length of the recording in nanoseconds: stop - start, or last - first event where not noted."""
        times = [t for part in self.parts for t in (part.first_ts_ns, part.last_ts_ns) if t is not None]
        start = self.meta.start_ns if self.meta.start_ns is not None else min(times, default=0)
        stop = self.meta.stop_ns if self.meta.stop_ns is not None else max(times, default=start)
        return max(0, stop - start)

    def batches(
        self, columns: Sequence[str] | None = None, batch_rows: int = 1 << 20
    ) -> Iterator[pa.RecordBatch]:
        """Stream all events in time order, every batch checked before it is decoded.

        `columns` in the order wanted (default: all); each batch has `batch_rows` rows but the last, or with
        `batch_rows` = 0 as many as cost least: those of the file, small ones joined.
        Memory: a few batches, whatever the length of the trace. Raises DamagedError at the first byte
        that is not what was written, UsageError for an unknown column.
        """
        names = list(EVENTS.names if columns is None else columns)
        if unknown := [name for name in names if name not in EVENTS.names]:
            raise UsageError(f"no such event column: {', '.join(unknown)}", hint=", ".join(EVENTS.names))
        if batch_rows < 0:
            raise UsageError("batch_rows must be at least 1, or 0")
        wanted = sorted({"ts_ns", *names}, key=EVENTS.get_field_index)
        sources = [
            Source(first, last, partial(part_batches, self.path / EVENTS_DIR, part, wanted))
            for first, last, part in self._by_time()
        ]
        rows = merge_sources(sources)
        for batch in rebatch(rows, batch_rows) if batch_rows else joined(rows, _LEAST_ROWS):
            yield batch if wanted == names else batch.select(names)

    def verify(self) -> None:
        """Compare every part with its checksum in the manifest; DamagedError at the first that differs."""
        for part in self.parts:
            check_crc(self.path / EVENTS_DIR, part)

    def _by_time(self) -> list[tuple[int, int, PartLine]]:
        """Return (first ts_ns, last ts_ns, part) of the parts that hold events, in time order."""
        spans = [(part.first_ts_ns or 0, part.last_ts_ns or 0, part) for part in self.parts if part.rows]
        return sorted(spans, key=lambda span: span[:2])

    @cached_property
    def _verified(self) -> bool:
        for part in self.parts:
            check_part(self.path / EVENTS_DIR, part)
        return True

    def _table(self, name: str) -> pl.DataFrame:
        import polars as pl

        folder = open_folder(self.path)
        try:
            table = read_table(folder, name, self.meta.tables.get(name))
        finally:
            folder.close()
        frame = pl.from_arrow(table)
        assert isinstance(frame, pl.DataFrame)
        return frame


def open_trace(path: Path | str) -> Trace:
    """Open a finished trace folder; cheap: reads `meta.json` and the manifest, and compares file sizes.

    Raises UsageError when there is no trace or a newer tracekit made it, DamagedError when it was
    never finished (still recording, or crashed) or files are missing.
    """
    path = Path(path)
    folder = open_folder(path)
    try:
        meta = read_meta(folder)
        if not meta.finalised:
            _raise_unfinished(folder)
        parts = read_manifest(folder)
        _compare(folder, meta, parts)
    finally:
        folder.close()
    return Trace(path, meta, parts)


def read_meta(folder: Folder) -> Meta:
    """Return the `Meta` of an open folder, with errors that name the trace."""
    try:
        return Meta.from_json(folder.read("meta.json").decode())
    except OSError as error:
        raise _broken(folder, f"meta.json cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise _broken(folder, "meta.json is not text") from None
    except DamagedError as error:
        raise _broken(folder, error.message) from None
    except UsageError as error:
        raise UsageError(f"{folder.path}: {error.message}", hint=error.hint) from None


def read_manifest(folder: Folder) -> list[PartLine]:
    """Return the lines of the manifest in the order of the parts."""
    try:
        lines = folder.read("manifest.jsonl").decode().splitlines()
        return sorted((PartLine.from_json(line) for line in lines), key=lambda line: line.part)
    except (OSError, UnicodeDecodeError):
        raise _broken(folder, "manifest.jsonl cannot be read") from None
    except DamagedError as error:
        raise _broken(folder, error.message) from None


def _compare(folder: Folder, meta: Meta, parts: Sequence[PartLine]) -> None:
    numbers = [part.part.removesuffix(".arrow").removesuffix(".parquet") for part in parts]
    if not parts or [f"{number}.arrow" for number in numbers] != [part_name(n) for n in range(len(parts))]:
        raise _broken(folder, f"the manifest does not list the parts 0 to {len(parts) - 1}")
    if (meta.parts, meta.rows) != (len(parts), sum(part.rows for part in parts)):
        raise _broken(folder, "manifest.jsonl and meta.json disagree on the number of events")
    for part in parts:
        try:
            size = folder.size(f"{EVENTS_DIR}/{part.part}")
        except OSError as error:
            raise _broken(folder, f"{part.part} cannot be read ({error.strerror})") from None
        if size != part.bytes:
            raise _broken(folder, f"{part.part} has {size:,} bytes instead of {part.bytes:,}")


def _broken(folder: Folder, what: str) -> DamagedError:
    return DamagedError(f"{folder.path}: {what}", hint=f"tracekit recover {folder.path}")


def open_folder(path: Path) -> Folder:
    """Open a folder that should be a trace; UsageError, naming traces nearby, when it cannot be one."""
    try:
        # A link that the user names, such as latest.trace, is followed; links inside a trace never are.
        folder = Folder(path.resolve() if path.is_symlink() else path)
    except FileNotFoundError:
        if path.is_dir():
            raise UsageError(f"{path} is a folder but not a trace", hint=_nearby(path)) from None
        raise UsageError(f"no trace at {path}", hint=_nearby(path)) from None
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            raise UsageError(f"{path} is not a trace: a trace is a folder", hint=_nearby(path)) from None
        raise UsageError(f"cannot open {path}: {error.strerror}", hint=f"ls -ld {path}") from None
    return folder


def _nearby(path: Path) -> str:
    """Return the command to type next: look at the trace whose name is nearest, or at the bundled ones."""
    try:
        traces = [item.parent.name for item in sorted(path.absolute().parent.glob("*/meta.json"))[:1000]]
    except OSError:
        traces = []
    close = difflib.get_close_matches(path.name, traces, n=3, cutoff=0.4) or traces[:3]
    if not close:
        return "tracekit datasets list"
    first, *others = (shlex.quote(str(path.parent / name)) for name in close)
    return f"tracekit info {first}" + (f"   # or {', '.join(others)}" if others else "")


def _raise_unfinished(folder: Folder) -> None:
    if not folder.lock():
        raise DamagedError(f"{folder.path} is still being recorded", hint="stop the recording first")
    raise DamagedError(
        f"{folder.path} was never finished: the recording was killed or the disk was full",
        hint=f"tracekit recover {folder.path}",
    )
