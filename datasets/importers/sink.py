"""Where importers put what they read: rows and losses into a trace, everything else into a report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from tracekit.errors import DamagedError
from tracekit.probes import decode
from tracekit.probes.wire import VALID
from tracekit.trace import TraceWriter
from tracekit.trace.repeated import writable
from tracekit.trace.schema import KIND_CODE, KINDS, PAGE_BYTES

__all__ = ["ImportOptions", "ImportReport", "Memslot", "Sink"]

_EXAMPLES = 5
_TEXT_LENGTH = 120


@dataclass(frozen=True)
class Memslot:
    """A range of guest memory that the user knows of: bytes at `gpa` are at `hva` in the VMM."""

    gpa: int
    size_bytes: int
    hva: int


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """What the user says about a file.

    `mmu`: ept, npt or shadow ("" = found out from the lines). `addresses`: whether DAMON's addresses are
    physical (gpa) or virtual (gva). `columns`: event column -> SQL expression over a table's columns.
    `strict`: the first line that can't be read is an error.
    """

    mmu: str = ""
    addresses: str = "gpa"
    columns: Mapping[str, str] = field(default_factory=dict)
    memslots: tuple[Memslot, ...] = ()
    strict: bool = False


@dataclass
class ImportReport:
    """What became of a file: lines, rows by kind, lines not understood, events that have no place here."""

    source: str
    format: str
    path: str = ""
    mmu_mode: str = ""
    lines: int = 0
    rows: Counter[str] = field(default_factory=Counter)
    other_events: Counter[str] = field(default_factory=Counter)
    bad_lines: int = 0
    bad_examples: list[dict[str, Any]] = field(default_factory=list)
    lost: int = 0
    unknown_losses: int = 0
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**vars(self), "rows": dict(self.rows), "other_events": dict(self.other_events)}

    def text(self) -> list[str]:
        """Return what a user should know, a line each."""
        total = sum(self.rows.values())
        out = [f"{total:,} events from {self.lines:,} lines"]
        if self.lost or self.unknown_losses:
            more = f" and {self.unknown_losses:,} losses of unknown size" if self.unknown_losses else ""
            out.append(f"{self.lost:,} events were lost when the file was recorded{more}")
        if self.other_events:
            names = ", ".join(f"{name} ({count:,})" for name, count in self.other_events.most_common(6))
            out.append(f"{self.other_events.total():,} lines are of events that have no place here: {names}")
        if self.bad_lines:
            out.append(f"{self.bad_lines:,} lines could not be read, such as")
            out += [f"  line {bad['line']}: {bad['why']}: {bad['text']}" for bad in self.bad_examples]
        return out + self.notes


class Sink:
    """Takes rows, losses and bad lines from an importer."""

    def __init__(self, writer: TraceWriter, report: ImportReport, options: ImportOptions) -> None:
        self.writer, self.report, self.options = writer, report, options
        self._vcpus: dict[int, int] = {}
        for number, slot in enumerate(options.memslots):
            writer.add_memslot(
                vm=0,
                slot=number,
                gpa=slot.gpa,
                size_bytes=slot.size_bytes,
                hva=slot.hva,
                from_ns=0,
                known_by="assumed",
            )

    def records(self, records: np.ndarray, mmu_mode: str) -> None:
        """Take records as the recorder's programs write them (dtype RECORD)."""
        if not records.size:
            return
        out = decode.columns(records, mmu_mode)
        if self.options.addresses == "gva":
            accesses = out["kind"] == KIND_CODE["access"]
            writable(out, "gva")[accesses] = out["gfn"][accesses] * np.uint64(PAGE_BYTES)
            writable(out, "valid")[accesses] ^= np.uint8(VALID["gfn"] | VALID["gva"])
        self._fill_gfns(out)
        with_vcpu = (out["valid"] & VALID["vcpu"]) != 0
        for vm in np.unique(out["vm"][with_vcpu]).tolist():
            most = int(out["vcpu"][with_vcpu & (out["vm"] == vm)].max()) + 1
            self._vcpus[vm] = max(self._vcpus.get(vm, 0), most)
        self.batch(decode.to_batch(out))

    def batch(self, batch: pa.RecordBatch) -> None:
        """Take rows of the event table."""
        codes = batch.column("kind").indices.to_numpy(zero_copy_only=True)
        counts = np.bincount(codes, minlength=len(KINDS))
        self.report.rows.update({KINDS[code]: int(counts[code]) for code in np.flatnonzero(counts)})
        self.writer.append(batch)

    def loss(self, cpu: int | None, t0_ns: int, t1_ns: int, lost: int | None, reason: str) -> None:
        """Note lost events; `lost` None = an unknown number."""
        if lost is None:
            self.report.unknown_losses += 1
        else:
            self.report.lost += lost
        self.writer.add_loss(cpu=cpu, t0_ns=t0_ns, t1_ns=t1_ns, lost=lost, reason=reason)

    def bad(self, line: int, text: str, why: str, count: int = 1) -> None:
        """Note a line that can't be read (and `count - 1` more like it); DamagedError when strict."""
        text = text[:_TEXT_LENGTH]
        if self.options.strict:
            raise DamagedError(
                f"{self.report.source}, line {line}: {why}: {text}",
                hint="leave --strict out to skip such lines",
            )
        self.report.bad_lines += count
        if len(self.report.bad_examples) < _EXAMPLES:
            self.report.bad_examples.append({"line": line, "why": why, "text": text})

    def vms(self, pids: list[int]) -> None:
        """Describe the VMs: one per process (-1 = the file names none)."""
        self.writer.meta.vms = [
            {"page_bytes": PAGE_BYTES, "vcpus": self._vcpus.get(vm, 0), **({"pid": pid} if pid >= 0 else {})}
            for vm, pid in enumerate(pids or [-1])
        ]

    def _fill_gfns(self, out: dict[str, np.ndarray]) -> None:
        for slot in self.options.memslots:
            offset = out["hva"] - np.uint64(slot.hva)  # wraps where hva is below: then it is too large
            inside = ((out["valid"] & VALID["hva"]) != 0) & (offset < np.uint64(slot.size_bytes))
            inside &= (out["valid"] & VALID["gfn"]) == 0
            writable(out, "gfn")[inside] = (offset[inside] + np.uint64(slot.gpa)) >> np.uint64(12)
            writable(out, "valid")[inside] |= np.uint8(VALID["gfn"])
