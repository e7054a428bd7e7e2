"""Makes a whole trace of what a crash, a full disk or a damaged file left, and ledgers what is missing."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from tracekit.errors import DamagedError, UsageError
from tracekit.trace.folder import EVENTS_DIR, Folder, part_name
from tracekit.trace.journal import JOURNAL, SIDE_TABLES, Side, fold_journal, read_table, write_table
from tracekit.trace.meta import Meta, tool_version
from tracekit.trace.part import PartLine, PartWriter
from tracekit.trace.reader import open_folder, read_meta
from tracekit.trace.resync import Gap
from tracekit.trace.salvage import Salvaged, salvage_part

__all__ = ["CRASH_NS", "RecoverReport", "recover"]

CRASH_NS: Final = 1_000_000_000
"""What a crash can cost: the recorder flushes at least this often, and samples once a second."""

_MOST_MISSING: Final = 1000
"""Parts that may be missing: each gets an empty one in its place."""

_PART_FILE: Final = re.compile(EVENTS_DIR + r"/(\d{5,})\.(arrow|parquet)(\.part|\.damaged)?")
_LOSS_FIELDS: Final = ("cpu", "t0_ns", "t1_ns", "lost", "reason")


@dataclass
class RecoverReport:
    """What `recover` found and did.

    `rows` events are in the trace now, `from_unfinished` of them out of parts that were never closed
    or were damaged. `missing` are the ledger's rows that tell of damage (not of full buffers); `lost`
    is the ledger's sum, None = unknown. `changed` is False when the trace was in order already.
    """

    path: str
    rows: int = 0
    from_unfinished: int = 0
    lost: int | None = 0
    changed: bool = True
    missing: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        """True when nothing is known to be missing through a crash or damage."""
        return not self.missing


def recover(path: Path | str) -> RecoverReport:
    """Close every part of a trace, rebuild its manifest and side tables, ledger what is missing.

    Only rows whose checksum is right are kept; the original of a part with unexplained bytes stays
    beside it as `.damaged`. Doing it again changes nothing. Raises UsageError when there is no trace,
    a newer tracekit made it or it is still being recorded.
    """
    folder = open_folder(Path(path))
    try:
        if not folder.lock():
            raise UsageError(f"{path} is still being recorded", hint="stop the recording first")
        return _Recovery(folder).run()
    except OSError as error:
        raise DamagedError(
            f"cannot recover {path}: {error.strerror or error}; nothing was removed",
            hint="check space and rights",
        ) from None
    finally:
        folder.close()


class _Recovery:
    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self.report = RecoverReport(str(folder.path))
        self.losses: list[dict[str, Any]] = []
        self.newest = 0

    def run(self) -> RecoverReport:
        meta = self._meta()
        was_finalised = meta.finalised
        names = self.folder.names()
        numbers = {int(found[1]) for name in names if (found := _PART_FILE.fullmatch(name))}
        stated = self._stated_lines()
        numbers |= {int(line.part.split(".")[0]) for line in stated.values()}
        if max(numbers, default=0) > len(numbers) + _MOST_MISSING:
            raise DamagedError(
                f"{self.folder.path}: the parts' numbers leave a gap of more than {_MOST_MISSING:,}",
                hint="it is not a trace that tracekit wrote; its events/*.arrow may be readable one by one",
            )
        parts = [self._part(n, stated.get(n)) for n in range(max(numbers, default=-1) + 1)]
        parts = parts or [self._empty_part(0)]
        lines = [part.line for part in parts]
        ends = [line.last_ts_ns for line in lines if line.last_ts_ns is not None]
        starts = [line.first_ts_ns for line in lines if line.first_ts_ns is not None]
        self.newest = max(ends, default=meta.start_ns or 0)
        self.oldest = min(starts, default=meta.start_ns or 0)
        self.start = self.oldest if meta.start_ns is None else meta.start_ns
        self._part_losses(parts, stated)
        self._unlisted_losses(meta, lines)
        side = self._side_tables(meta, parts)
        in_order = was_finalised and not self.losses and self._manifest_text(lines) == self._manifest_now()
        self.report.rows = sum(line.rows for line in lines)
        if in_order and meta.rows == self.report.rows and side.tables == meta.tables:
            self.folder.remove(JOURNAL)
            self.report.changed = False
            return self._summed()
        self.folder.replace("manifest.jsonl", self._manifest_text(lines))
        self._finalise(meta, lines, side)
        self.folder.remove(JOURNAL)
        return self._summed()

    def _meta(self) -> Meta:
        try:
            return read_meta(self.folder)
        except DamagedError as error:
            if self.folder.exists("meta.json"):
                self.folder.rename("meta.json", "meta.json.damaged")
            note = "meta.json was lost: host, VM, probes and clock are not known"
            self.report.notes += [error.message, note]
            return Meta(source="imported", notes=[note])

    def _stated_lines(self) -> dict[int, PartLine]:
        """Every line of the manifest that can be read, by part number."""
        stated = {}
        if self.folder.exists("manifest.jsonl"):
            for text in self.folder.read("manifest.jsonl").decode(errors="replace").splitlines():
                try:
                    line = PartLine.from_json(text)
                    stated[int(line.part.split(".")[0])] = line
                except (DamagedError, ValueError):
                    self.report.notes.append("manifest.jsonl has an unreadable line")
        return stated

    def _part(self, number: int, stated: PartLine | None) -> Salvaged:
        part = salvage_part(self.folder, number, stated)
        if part is None:
            return self._empty_part(number, "the file is missing")
        if part.was_open or part.trouble:
            self.report.from_unfinished += part.line.rows
        return part

    def _empty_part(self, number: int, trouble: str = "") -> Salvaged:
        self.folder.remove(f"{EVENTS_DIR}/{part_name(number)}.tmp")
        line = PartWriter(self.folder, number, suffix=".tmp").close()
        return Salvaged(line, trouble, (), 0, was_open=False)

    def _part_losses(self, parts: Iterable[Salvaged], stated: dict[int, PartLine]) -> None:
        for number, part in enumerate(parts):
            told = stated.get(number)
            if told is None:
                bounds = (self.start, self.newest + CRASH_NS)
                self._gap_losses(part.gaps, f"torn part {number:05d}", bounds)
            elif told.rows > part.line.rows:
                self._told_losses(part, told, f"damaged part {number:05d}")

    def _gap_losses(self, gaps: Iterable[Gap], what: str, bounds: tuple[int | None, int | None]) -> None:
        for gap in gaps:
            t0 = bounds[0] if gap.before_ns is None else gap.before_ns
            t1 = bounds[1] if gap.after_ns is None else gap.after_ns
            self._loss(t0, t1, gap.rows, f"{what}: {gap.trouble}")

    def _told_losses(self, part: Salvaged, told: PartLine, what: str) -> None:
        """Ledger a part of which the manifest told how many rows it had: all that are missing are counted."""
        missing = told.rows - part.line.rows
        counted = [gap for gap in part.gaps if gap.rows is not None]
        found = sum(gap.rows or 0 for gap in counted)
        if found > missing:  # the manifest is the one to believe
            counted, found = [], 0
        self._gap_losses(counted, what, (told.first_ts_ns, told.last_ts_ns))
        if missing > found:
            # How many are missing in the other places is known only of all together.
            others = [gap for gap in part.gaps if gap not in counted]
            t0 = others[0].before_ns if others else part.line.last_ts_ns
            t1 = others[-1].after_ns if others else None
            trouble = others[0].trouble if others else part.trouble
            start, end = (told.first_ts_ns if t0 is None else t0), (told.last_ts_ns if t1 is None else t1)
            self._loss(start, end, missing - found, f"{what}: {trouble}")

    def _unlisted_losses(self, meta: Meta, lines: list[PartLine]) -> None:
        """Ledger what `meta.json` counts and neither the parts nor their manifest lines account for."""
        short = (
            (meta.rows or 0)
            - sum(line.rows for line in lines)
            - sum(loss["lost"] or 0 for loss in self.losses)
        )
        if meta.finalised and short > 0:
            self._loss(self.oldest, self.newest, short, "damaged: parts are missing")

    def _side_tables(self, meta: Meta, parts: list[Salvaged]) -> Side:
        if meta.finalised:
            return self._checked_tables(meta)
        side = fold_journal(self.folder, partial(self._crash_losses, parts))
        meta.marks += [mark for mark in side.marks if mark not in meta.marks]
        return side

    def _crash_losses(self, parts: list[Salvaged], side: Side) -> list[dict[str, Any]]:
        """Ledger what neither parts nor journal tell: the end, and loss reports that went down with it."""
        self.newest = max(self.newest, side.newest_ns)
        told = [part.lost_so_far for part in parts if part.line.rows]
        if not side.end:
            self._loss(self.newest, self.newest + CRASH_NS, None, "crash: the recording was never finished")
        if side.torn:
            self.report.notes.append("journal.ndjson has damaged lines: samples or memslots may be missing")
            self._loss(self.oldest, self.newest, None, "damaged journal: loss reports may be missing")
        elif side.lost is not None:
            known = [count for count in told if count is not None]
            short = None if None in told else max(known, default=0) - side.lost
            if short is None or short > 0:
                self._loss(self.oldest, self.newest, short, "loss report lost in the crash")
        return self.losses

    def _checked_tables(self, meta: Meta) -> Side:
        side = Side(tables=dict(meta.tables))
        for name in SIDE_TABLES:
            try:
                rows = read_table(self.folder, name, meta.tables.get(name)).to_pylist()
            except DamagedError as error:
                self.report.notes.append(error.message)
                if self.folder.exists(name):
                    self.folder.rename(name, f"{name}.damaged")
                rows = []
                if name == "losses.arrow":
                    self._loss(self.oldest, self.newest, None, "damaged ledger: loss reports are missing")
                side.tables[name] = write_table(self.folder, name, rows)
            if name == "losses.arrow":
                new = [loss for loss in self.losses if loss not in rows]
                if new:
                    side.tables[name] = write_table(self.folder, name, rows + new)
        return side

    def _finalise(self, meta: Meta, lines: list[PartLine], side: Side) -> None:
        meta.start_ns = self.oldest if meta.start_ns is None else meta.start_ns
        meta.stop_ns = self.newest if meta.stop_ns is None else meta.stop_ns
        meta.rows, meta.parts, meta.tables = self.report.rows, len(lines), side.tables
        meta.finalised = meta.recovered = True
        reasons = "; ".join(loss["reason"] for loss in self.losses) or side.end or "files were repaired"
        note = f"recovered by tracekit {tool_version()}: {reasons}"
        meta.notes += [] if note in meta.notes else [note]
        self.folder.replace("meta.json", meta.to_json().encode())

    def _summed(self) -> RecoverReport:
        ledger = read_table(self.folder, "losses.arrow", None).to_pylist()
        damage = ("crash", "torn part", "damaged", "not written", "loss report lost")
        self.report.missing = [row for row in ledger if row["reason"].startswith(damage)]
        counts = [row["lost"] for row in ledger]
        self.report.lost = None if None in counts else sum(counts)
        return self.report

    def _loss(self, t0: int | None, t1: int | None, lost: int | None, reason: str) -> None:
        start = t0 or 0
        self.losses.append(
            dict(zip(_LOSS_FIELDS, (None, start, max(start, t1 or 0), lost, reason), strict=True))
        )

    def _manifest_now(self) -> bytes:
        return self.folder.read("manifest.jsonl") if self.folder.exists("manifest.jsonl") else b""

    @staticmethod
    def _manifest_text(lines: list[PartLine]) -> bytes:
        return "".join(line.to_json() for line in lines).encode()
