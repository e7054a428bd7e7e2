"""Writes a trace folder so that a crash at any moment costs at most what came after the last flush."""

from __future__ import annotations

import errno
import os
import shutil
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import pyarrow as pa

from tracekit.errors import FailedError, TracekitError
from tracekit.trace.batch import check_batch
from tracekit.trace.folder import Folder, cannot_make
from tracekit.trace.holdback import HoldBack, concat, frames, rows_of, split_at, times
from tracekit.trace.journal import JOURNAL, Journal, fold_journal
from tracekit.trace.meta import Meta, tool_version
from tracekit.trace.part import FRAME_ROWS, PartLine, PartWriter

__all__ = ["FLUSH_NS", "HOLD_BACK_NS", "TraceWriter"]

HOLD_BACK_NS: Final = 50_000_000
FLUSH_NS: Final = 250_000_000
_MOST_HELD_ROWS: Final = 1 << 22


class TraceWriter:
    """A trace being written; a context manager that finalises the trace when the block ends.

    Rows reach the disk in time order, synced, at most 250 ms after `append` and once no older row can
    be expected (50 ms of trace time). Rows that come later than that go to a part of their own, and
    the reader merges. When the block ends with an exception the trace is left unfinalised: everything
    flushed is there for `tracekit recover`.

    `live`: the rows come, by CLOCK_MONOTONIC, from something that goes on when writing has ended, so that the
    rows given to this writer are not all there were, and a trace that could not be finished says so.

    Raises UsageError when `path` exists (unless `force`, and then only a trace is replaced) and
    FailedError when the disk refuses: disk full, folder removed, I/O error.

    >>> import tempfile
    >>> from tracekit.trace import Meta, events_batch, open_trace
    >>> path = Path(tempfile.mkdtemp()) / "x.trace"
    >>> with TraceWriter(path, Meta(source="synthetic")) as writer:
    ...     writer.append(events_batch(ts_ns=[20, 10], kind="ept_violation", gfn=[1, 2], latency_ns=5))
    ...     writer.add_loss(cpu=0, t0_ns=10, t1_ns=20, lost=3, reason="ring full")
    >>> trace = open_trace(path)
    >>> trace.events.collect()["gfn"].to_list(), trace.lost
    ([2, 1], 3)
    """

    def __init__(
        self,
        path: Path | str,
        meta: Meta,
        *,
        force: bool = False,
        max_part_bytes: int = 256 << 20,
        max_part_s: float = 60.0,
        owner: tuple[int, int] | None = None,
        live: bool = False,
    ) -> None:
        self.path = Path(path)
        self.meta = meta
        self.rows_durable = 0
        self.bytes_written = 0
        self._max_part_bytes, self._max_part_ns = max_part_bytes, int(max_part_s * 1e9)
        self._held = HoldBack(HOLD_BACK_NS)
        self._parts: dict[str, PartWriter] = {}
        self._opened_ns: dict[str, int] = {}
        self._next_part = 0
        self._last_ts: int | None = None
        self._lines: list[PartLine] = []
        self._lost: int | None = 0
        self._flushed_ns = self._told_ns = time.monotonic_ns()
        self._state = "open"
        self._live = live
        self._folder = Folder.create(self.path, force=force, owner=owner)
        try:
            meta.finalised, meta.rows, meta.parts, meta.tables = False, None, None, {}
            meta.tool_version = meta.tool_version or tool_version()
            self._manifest = self._folder.new_file("manifest.jsonl")
            self._journal = Journal(self._folder)
            self._folder.replace("meta.json", meta.to_json().encode())
        except OSError as error:
            self._folder.close()
            shutil.rmtree(self.path, ignore_errors=True)  # there is nothing in it yet
            raise cannot_make(self.path, error) from None

    def append(self, batch: pa.RecordBatch) -> None:
        """Take in rows of the schema `EVENTS`, in any order inside the hold-back window of 50 ms."""
        self._must_be_open()
        self._held.add(check_batch(batch))
        full = self._held.fresh_rows >= max(FRAME_ROWS, self._held.rows // 2)
        if full or time.monotonic_ns() - self._flushed_ns >= FLUSH_NS:
            self._flush(everything=False)

    def add_memslot(
        self,
        *,
        vm: int,
        slot: int,
        gpa: int,
        size_bytes: int,
        hva: int,
        from_ns: int,
        known_by: str,
        to_ns: int | None = None,
        flags: int = 0,
    ) -> None:
        """Note a memslot; as in KVM it ends an earlier one of the same number, and size 0 only does that."""
        row = {"vm": vm, "slot": slot, "gpa": gpa, "size_bytes": size_bytes, "hva": hva, "flags": flags}
        self._note("memslot", {**row, "from_ns": from_ns, "to_ns": to_ns, "known_by": known_by})

    def add_sample(self, ts_ns: int, vm: int, metric: str, value: float) -> None:
        """Note one value of a metric, such as rss_bytes."""
        self._note("sample", {"ts_ns": int(ts_ns), "vm": int(vm), "metric": metric, "value": float(value)})

    def add_loss(self, cpu: int | None, t0_ns: int, t1_ns: int, lost: int | None, reason: str) -> None:
        """Enter lost events into the ledger; `lost` None = an unknown number; bounds are inclusive."""
        row = {"cpu": cpu, "t0_ns": int(t0_ns), "t1_ns": int(t1_ns), "lost": lost, "reason": reason}
        self._lost = None if self._lost is None or lost is None else self._lost + int(lost)
        self._note("loss", row)

    def mark(self, name: str, ts_ns: int) -> int:
        """Name a point in time; returns its index, the `arg` of a `mark` event."""
        self._note("mark", {"name": name, "ts_ns": int(ts_ns)})
        self.meta.marks.append({"name": name, "ts_ns": int(ts_ns)})
        return len(self.meta.marks) - 1

    def save_meta(self) -> None:
        """Write `meta` as it stands, unfinalised: what was learned since the start then outlives a crash."""
        self._must_be_open()
        try:
            self._folder.replace("meta.json", self.meta.to_json().encode())
        except OSError as error:
            raise self._fail(error) from None

    def flush(self, *, everything: bool = False) -> int:
        """Write what is due, or everything, and sync it; returns `rows_durable`.

        A recorder calls this a few times a second also when nothing happens: rows that were held back
        are written when no newer ones came since the flush before.
        """
        self._must_be_open()
        self._flush(everything=everything or not self._held.fresh_rows, all_ripe=True)
        self._told_ns = time.monotonic_ns()
        return self.rows_durable

    def close(self) -> Meta:
        """Write everything, close parts and side tables, finalise `meta.json`; returns that meta."""
        if self._state == "closed":
            return self.meta
        self._must_be_open()
        self._flush(everything=True, all_ripe=True)
        try:
            for role in list(self._parts):
                self._close_part(role)
            if not self._lines:
                self._lines.append(self._log(PartWriter(self._folder, 0).close()))
            side = fold_journal(self._folder)
            self._finalise(side.tables)
            self._journal.close()
            self._folder.remove(JOURNAL)
        except OSError as error:
            raise self._fail(error) from None
        self._release("closed")
        return self.meta

    def abort(self, reason: str = "aborted") -> None:
        """Stop here and leave a recoverable trace: what is held back is still written if the disk allows.

        A `live` trace gets an unknown loss: what its source had not handed over yet, and losses that it had
        counted and not told.
        """
        try:
            if self._state == "open":
                self._flush(everything=True, all_ripe=True)
                if self._live:
                    self._journal.add("loss", self._not_handed_over(reason))
                self._journal.add("end", {"reason": reason})
                self._journal.flush()
        except (OSError, TracekitError):
            pass  # what is on the disk is what there is to recover
        finally:
            if self._state == "open":
                self._release("aborted")

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        """Finalise, or after an exception leave a recoverable trace."""
        if kind is None:
            self.close()
        else:
            self.abort(f"stopped by {kind.__name__}")

    def _not_handed_over(self, reason: str) -> dict[str, Any]:
        """Return the unknown loss of a live trace that ends here.

        It begins with the last row or one flush before the last that `flush` was asked for, whichever is
        older: the counters that make the ledger are read a little before they are flushed.
        """
        now, told = time.monotonic_ns(), self._told_ns - FLUSH_NS
        start = min(told, now if self._last_ts is None else self._last_ts)
        bounds = {"cpu": None, "t0_ns": max(start, self.meta.start_ns or 0), "t1_ns": now}
        return {**bounds, "lost": None, "reason": f"not written: {reason}"}

    def _note(self, table: str, row: dict[str, Any]) -> None:
        self._must_be_open()
        self._journal.add(table, row)

    def _flush(self, *, everything: bool, all_ripe: bool = False) -> None:
        groups: list[list[pa.RecordBatch]] = []
        before = self._rows_put()
        due = time.monotonic_ns() - self._flushed_ns >= FLUSH_NS
        try:
            if self._folder.removed():
                raise FileNotFoundError(errno.ENOENT, "the folder was removed")
            ripe = self._held.take(everything=everything, at_least=self._held.rows - _MOST_HELD_ROWS)
            groups = frames(ripe, most=FRAME_ROWS)
            if not (everything or all_ripe or due) and groups and rows_of(groups[-1]) < FRAME_ROWS:
                # Large frames compress best; the rest waits for the next flush.
                self._held.put_back(groups.pop())
            self._write(groups)
            groups = []
            self._journal.flush()
            for role in list(self._parts):
                self._rotate(role)
        except OSError as error:
            rest = concat([batch for group in groups for batch in group]).slice(self._rows_put() - before)
            raise self._fail(error, rest) from None
        except BaseException:
            # Interrupted half-way (Ctrl-C): rows may be in neither place, so `recover` must not hear of an
            # orderly end; it then enters an unknown loss.
            self._release("interrupted")
            raise
        self._flushed_ns = time.monotonic_ns()

    def _rows_put(self) -> int:
        return sum(part.rows for part in self._parts.values()) + sum(line.rows for line in self._lines)

    def _write(self, groups: list[list[pa.RecordBatch]]) -> None:
        """Late rows, older than the last one written, go to a second part: each stays in time order."""
        for group in groups:
            halves = [split_at(batch, self._last_ts) for batch in group]
            late, rest = ([batch for batch in half if batch.num_rows] for half in zip(*halves, strict=True))
            self.meta.late_rows += rows_of(late)
            for role, rows in (("late", late), ("main", rest)):
                if rows:
                    part = self._part_for(role, int(times(rows[0])[0]))
                    before = part.bytes
                    part.write(rows, self._lost)
                    self.bytes_written += part.bytes - before
                    self._rotate(role)
            if rest:
                self._last_ts = int(times(rest[-1])[-1])
        for part in self._parts.values():
            self.rows_durable += part.sync()

    def _part_for(self, role: str, first_ts: int) -> PartWriter:
        part = self._parts.get(role)
        if part is not None and (part.last_ts is None or part.last_ts <= first_ts):
            return part
        if part is not None:
            self._close_part(role)
        part = self._parts[role] = PartWriter(self._folder, self._next_part)
        self._opened_ns[role] = time.monotonic_ns()
        self._next_part += 1
        return part

    def _close_part(self, role: str) -> None:
        part = self._parts[role]
        self.rows_durable += part.sync()
        self._lines.append(self._log(part.close()))
        del self._parts[role]

    def _rotate(self, role: str) -> None:
        old = time.monotonic_ns() - self._opened_ns[role] >= self._max_part_ns
        if old or self._parts[role].bytes >= self._max_part_bytes:
            self._close_part(role)

    def _log(self, line: PartLine) -> PartLine:
        os.write(self._manifest, line.to_json().encode())
        os.fdatasync(self._manifest)
        return line

    def _finalise(self, tables: dict[str, Any]) -> None:
        times_seen = [t for line in self._lines for t in (line.first_ts_ns, line.last_ts_ns) if t is not None]
        meta = self.meta
        if times_seen:
            meta.start_ns = min(times_seen) if meta.start_ns is None else meta.start_ns
            meta.stop_ns = max(times_seen) if meta.stop_ns is None else meta.stop_ns
        meta.rows, meta.parts = sum(line.rows for line in self._lines), len(self._lines)
        meta.tables = tables
        meta.finalised = True
        self._folder.replace("meta.json", meta.to_json().encode())

    def _must_be_open(self) -> None:
        if self._state != "open":
            raise FailedError(f"the trace {self.path} is {self._state}: nothing more can be written to it")

    def _fail(self, error: OSError, unwritten: pa.RecordBatch | None = None) -> FailedError:
        """Ledger what can no longer be written, if the disk takes that much, and give up."""
        why = os.strerror(error.errno or errno.EIO)
        try:
            for part in self._parts.values():
                self.rows_durable += part.sync()
            for rows in (unwritten, *self._held.take(everything=True)):
                if rows is not None and rows.num_rows:
                    t0, t1 = int(times(rows)[0]), int(times(rows)[-1])
                    loss = {"cpu": None, "t0_ns": t0, "t1_ns": t1, "lost": rows.num_rows}
                    self._journal.add("loss", {**loss, "reason": f"not written: {why}"})
            if error.errno == errno.ENOSPC and not self._live:
                # Only here is it known that nothing else is missing; `recover` then adds no unknown loss.
                self._journal.add("end", {"reason": why})
            self._journal.flush()
        except OSError:
            pass
        self._release("broken")
        return self._failure(error)

    def _failure(self, error: OSError) -> FailedError:
        what = error.strerror or str(error)
        if error.errno == errno.ENOSPC:
            what = "the disk is full"
        safe = f"{self.rows_durable:,} events are safe in {self.path}"
        hint = f"tracekit recover {self.path}"
        if error.errno == errno.ENOENT:
            safe, hint = "what was recorded went with it", ""
        return FailedError(f"cannot write the trace: {what}; {safe}", hint=hint)

    def _release(self, state: str) -> None:
        for part in self._parts.values():
            part.abandon()
        os.close(self._manifest)
        if state != "closed":
            self._journal.close()
        self.path = self._folder.where()
        self._folder.close()
        self._state = state
