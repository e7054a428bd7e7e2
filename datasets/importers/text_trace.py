"""The way of every trace text into a trace: blocks -> lines -> records -> rows, with losses and bad lines."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import IO

import numpy as np

from tracekit.datasets.importers.assemble import Assembler
from tracekit.datasets.importers.blocks import line_blocks
from tracekit.datasets.importers.layouts import LAYOUTS, Op, Slot
from tracekit.datasets.importers.scan import BAD_HEADER, BAD_TEXT, EVENT, OTHER_EVENT, QUIET, Scanned, scan
from tracekit.datasets.importers.sink import Sink

__all__ = ["read_text"]

_LOST_LAYOUT = next(index for index, layout in enumerate(LAYOUTS) if layout.op == Op.LOST)
# ftrace: CPU:0 [LOST 123 EVENTS]; trace-cmd: CPU:0 [123 EVENTS DROPPED], or [EVENTS DROPPED] if it can't say
# A number of more digits than these is no count of events, and would not fit its column.
_LOST = re.compile(rb"CPU:\s?(?P<cpu>\d{1,5}) \[(?:LOST )?(?:(?P<lost>\d{1,18}) )?EVENTS(?: DROPPED)?\]")
_OVERWRITTEN = re.compile(
    rb"^#\s+entries-in-buffer/entries-written:\s*(?P<kept>\d{1,18})/(?P<written>\d{1,18})\b"
)
# What tools write around the events, besides comments.
_FURNITURE = re.compile(rb"^\s*(?:cpus=\d+|version = \S+|CPU \d+ is empty)\s*$")
_MAX_BAD_LOOKED_AT = 10_000


@dataclass
class _Loss:
    """A loss whose end is not known yet: the next line of that CPU."""

    cpu: int
    t0_ns: int
    lost: int | None


def read_text(stream: IO[bytes], sink: Sink) -> None:
    """Read trace text of perf, trace-cmd or ftrace to its end."""
    reader = _Reader(sink)
    for block in line_blocks(stream):
        reader.feed(block)
    reader.finish()


class _Reader:
    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._assembler = Assembler(sink.options.mmu)
        self._line = 1
        self._last: dict[int, int] = {}
        self._open: list[_Loss] = []
        self._last_any = 0

    def feed(self, block: bytes) -> None:
        lines = scan(block)
        strange = np.flatnonzero((lines.status == BAD_HEADER) | (lines.status == BAD_TEXT))
        if strange.size:
            self._sort_out(block, lines, strange)
        if self._line == 1:
            self._overwritten(block, lines)
        others = np.flatnonzero(lines.status == OTHER_EVENT)
        if others.size:
            _, first, counts = np.unique(lines.name[others], return_index=True, return_counts=True)
            for row, count in zip(others[first], counts, strict=True):
                name = block[lines.name_begin[row] : lines.name_end[row]].decode(errors="replace")
                self._sink.report.other_events[name.rstrip("(")] += int(count)
        self._sink.records(self._assembler.feed(lines), self._assembler.mode)
        self._losses(lines)
        self._line += lines.status.size
        self._sink.report.lines = self._line - 1

    def finish(self) -> None:
        self._sink.records(self._assembler.finish(), self._assembler.mode)
        for loss in self._open:
            self._sink.loss(loss.cpu, loss.t0_ns, max(loss.t0_ns, self._last_any), loss.lost, "in the file")
        mode = self._assembler.mode
        self._sink.report.mmu_mode = mode
        if mode in ("ept", "npt", "shadow"):
            self._sink.writer.meta.host["mmu_mode"] = mode
        elif self._sink.report.rows["ept_violation"]:
            self._sink.report.notes.append(
                "no line tells how KVM maps memory, so accesses are not known: give --mmu ept, npt or shadow"
            )
        self._sink.vms(self._assembler.pids)

    def _sort_out(self, block: bytes, lines: Scanned, strange: np.ndarray) -> None:
        """Turn lines about losses into losses, drop the tools' furniture, report the rest as bad."""
        for row in strange[:_MAX_BAD_LOOKED_AT].tolist():
            text = block[lines.begin[row] : lines.end[row]]
            if lines.status[row] == BAD_HEADER and (match := _LOST.search(text)):
                lines.status[row] = EVENT
                lines.layout[row] = _LOST_LAYOUT
                lines.cpu[row] = int(match["cpu"])
                lines.values[row, Slot.ARG] = int(match["lost"]) if match["lost"] else -1
            elif lines.status[row] == BAD_HEADER and _FURNITURE.match(text):
                lines.status[row] = QUIET
            else:
                name = block[lines.name_begin[row] : lines.name_end[row]].decode(errors="replace")
                why = "not an event" if lines.status[row] == BAD_HEADER else f"{name} in a form not known"
                self._sink.bad(self._line + row, text.decode(errors="replace").strip(), why)
        rest = strange[_MAX_BAD_LOOKED_AT:]
        if rest.size:
            first = block[lines.begin[rest[0]] : lines.end[rest[0]]].decode(errors="replace").strip()
            self._sink.bad(self._line + int(rest[0]), first, "not an event", int(rest.size))

    def _overwritten(self, block: bytes, lines: Scanned) -> None:
        """Note what ftrace's ring overwrote before the file was read: its header says how much."""
        events = np.flatnonzero(lines.status == EVENT)
        for row in np.flatnonzero(lines.status == QUIET)[:20].tolist():
            match = _OVERWRITTEN.match(block[lines.begin[row] : lines.end[row]])
            if match and int(match["written"]) > int(match["kept"]) and events.size:
                lost = int(match["written"]) - int(match["kept"])
                self._sink.loss(None, 0, int(lines.ts_ns[events[0]]), lost, "overwritten in the ring")

    def _losses(self, lines: Scanned) -> None:
        """Bound each loss by the events of its CPU before and after it."""
        rows = np.flatnonzero((lines.status == EVENT) | (lines.status == OTHER_EVENT))
        is_loss = np.zeros(rows.size, bool)
        known = lines.status[rows] == EVENT
        ops = np.array([layout.op for layout in LAYOUTS])
        is_loss[known] = ops[lines.layout[rows[known]]] == Op.LOST
        timed, lost = rows[~is_loss], rows[is_loss]
        for cpu in np.unique(lines.cpu[timed]).tolist():
            mine = timed[lines.cpu[timed] == cpu]
            still = []
            for loss in self._open:
                if loss.cpu == cpu:
                    self._close(loss, int(lines.ts_ns[mine[0]]))
                else:
                    still.append(loss)
            self._open = still
        for row in lost.tolist():
            cpu, count = int(lines.cpu[row]), int(lines.values[row, Slot.ARG])
            mine = timed[lines.cpu[timed] == cpu]
            at = int(np.searchsorted(mine, row))
            before = int(lines.ts_ns[mine[at - 1]]) if at else self._last.get(cpu, 0)
            loss = _Loss(cpu, before, None if count < 0 else count)
            if at < mine.size:
                self._close(loss, int(lines.ts_ns[mine[at]]))
            else:
                self._open.append(loss)
        for cpu in np.unique(lines.cpu[timed]).tolist():
            mine = timed[lines.cpu[timed] == cpu]
            self._last[cpu] = int(lines.ts_ns[mine[-1]])
            self._last_any = max(self._last_any, self._last[cpu])

    def _close(self, loss: _Loss, t1_ns: int) -> None:
        self._sink.loss(loss.cpu, loss.t0_ns, max(loss.t0_ns, t1_ns), loss.lost, "in the file")
