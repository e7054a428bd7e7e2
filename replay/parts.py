"""Figures of parts of a trace: a phase that the user names, one vCPU. Their metrics are `METRIC:PART`."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tracekit.errors import UsageError
from tracekit.replay import accounts as ac
from tracekit.replay.amounts import Amount
from tracekit.replay.ledger import Figure, Ledger
from tracekit.replay.pages import CLOCK_UNPLACED
from tracekit.replay.state import Stand, vcpu_lanes
from tracekit.replay.survey import Recorded
from tracekit.replay.timeline import TraceLike
from tracekit.trace.schema import KIND_CODE

__all__ = ["Phase", "parse_phases", "phase_figures", "vcpu_figures"]


@dataclass(frozen=True)
class Phase:
    """A stretch of the trace: events after `start_ns` up to `end_ns` (ns since the trace's start)."""

    name: str
    start_ns: int
    end_ns: int


def parse_phases(texts: Iterable[str], trace: TraceLike, start_ns: int, span_ns: int) -> list[Phase]:
    """Read `NAME=START:END`, such as `boot=0:ready`, for a trace that begins at `start_ns`, `span_ns` long.

    An end is a number of seconds since the start of the trace, a time on the trace's clock (`123456789ns`),
    the name of a mark of the trace, or a kind of event: the first of that kind (`balloon_inflate`).
    Raises UsageError for anything else, and for a phase that is empty or not within the trace.
    """
    asked: list[tuple[str, str, str, str]] = []
    for text in texts:
        name, equals, ends = text.partition("=")
        start, colon, end = ends.partition(":")
        if not (name.strip() and equals and colon and start.strip() and end.strip()):
            raise UsageError(f"a phase is NAME=START:END, not {text!r}", hint="--phase boot=0:12.5")
        asked.append((text, name.strip(), start.strip(), end.strip()))
    names = [name for _, name, _, _ in asked]
    if len(set(names)) != len(names):
        raise UsageError("a phase is named twice")
    marks = {str(mark["name"]): int(mark["ts_ns"]) - start_ns for mark in trace.meta.marks}
    words = {word for one in asked for word in one[2:]}
    points = marks | _first_of_kinds(words & KIND_CODE.keys() - marks.keys(), trace, start_ns)
    phases = []
    for text, name, start, end in asked:
        begin, stop = _point(start, points, marks, start_ns), _point(end, points, marks, start_ns)
        if not 0 <= begin < stop <= span_ns:
            raise UsageError(
                f"{text}: {begin / 1e9:g} s to {stop / 1e9:g} s is no stretch of this trace of "
                f"{span_ns / 1e9:g} s"
            )
        phases.append(Phase(name, begin, stop))
    return phases


def _point(word: str, points: Mapping[str, int], marks: Mapping[str, int], start_ns: int) -> int:
    if word in points:
        return points[word]
    digits = word.removesuffix("ns")
    if digits != word and digits.isdecimal():
        return int(digits) - start_ns
    try:
        return round(float(word) * 1e9)
    except (ValueError, OverflowError):
        pass
    if word in KIND_CODE:
        raise UsageError(f"the trace has no event {word}", hint="tracekit info TRACE")
    close = difflib.get_close_matches(word, [*marks, *KIND_CODE], n=1)
    known = f"marks of this trace: {', '.join(marks) or 'none'}; or a kind of event; or seconds"
    raise UsageError(f"no mark or kind of event called {word}", hint=close[0] if close else known)


def _first_of_kinds(kinds: set[str], trace: TraceLike, start_ns: int) -> dict[str, int]:
    """Return when the first event of each of these kinds was, ns since the trace's start."""
    found: dict[str, int] = {}
    if not kinds:
        return found
    for batch in trace.batches(["ts_ns", "kind"], 1 << 20):
        column = batch.column("kind")
        names = column.dictionary.to_pylist()
        codes = np.asarray(column.indices)
        for kind in kinds - found.keys():
            if kind in names and (rows := np.flatnonzero(codes == names.index(kind)).tolist()):
                found[kind] = int(batch.column("ts_ns")[rows[0]].as_py()) - start_ns
        if len(found) == len(kinds):
            break
    return found


def phase_figures(ledger: Ledger, phases: Sequence[Phase]) -> dict[str, Figure]:
    """Return faults, stall and critical path of each phase; the replay must have kept its stands.

    A fault belongs to the phase in which it was complete. Start-up work counts in a phase from 0 on.
    """
    figures: dict[str, Figure] = {}
    for phase in phases:
        part = _between(ledger, phase)
        found = part.figures(only=("faults", "stall", "critical_path"))
        if path := found.get("critical_path"):
            found["critical_path"] = Figure.of(phase.end_ns - phase.start_ns, path.saved, path.label)
        figures.update({f"{name}:{phase.name}": figure for name, figure in found.items()})
    return figures


def _between(ledger: Ledger, phase: Phase) -> Ledger:
    """Return the ledger of only what happened in a phase."""
    world, stands = ledger.replay.world, ledger.replay.stands
    before: Stand | None = stands.get(phase.start_ns) if phase.start_ns else None
    after = stands[phase.end_ns]
    shift, faults, added, tally = after.shift, after.faults, after.added, after.tally
    union, unplaced, recorded = after.union_ns, after.unplaced_ns, after.recorded
    if before is not None:
        shift, faults = shift - before.shift, faults - before.faults
        added, tally = added - before.added, tally - before.tally
        union -= before.union_ns
        unplaced -= before.unplaced_ns
        last = recorded.last_ns
        recorded = Recorded(*(b - a for a, b in zip(before.recorded, recorded, strict=True)))
        recorded = recorded._replace(last_ns=last)
    spans = np.zeros_like(world.spans)
    spans[0] = union
    clock = world.clock.copy()
    clock[CLOCK_UNPLACED] = unplaced
    part = world._replace(shift=shift, faults=faults, added=added, tally=tally, spans=spans, clock=clock)
    return replace(
        ledger,
        replay=replace(ledger.replay, world=part),
        facts=replace(ledger.facts, **recorded._asdict()),
        from_start=before is None,
    )


def vcpu_figures(ledger: Ledger, whole: Mapping[str, Figure]) -> dict[str, Figure]:
    """Return faults and stall of each vCPU (of each thread, where no vCPU is known); none if there is one.

    How prices move one vCPU's stall is not kept apart: its interval is as wide as that of the `whole`.
    """
    timeline = ledger.timeline
    lanes = vcpu_lanes(timeline)
    facts, cells = ledger.facts, ledger.replay.world.by_lane.reshape(-1, ac.LANE_CELLS)
    unmeasured = (facts.lane_faults - facts.lane_measured) @ ledger.prices.nominal()
    stall_ns, n_faults = facts.lane_ns + unmeasured, facts.lane_faults.sum(axis=1)
    lanes = lanes[(n_faults[lanes] != 0) | cells[lanes].any(axis=1)]
    figures: dict[str, Figure] = {}
    if len(lanes) < 2:
        return figures
    order = np.lexsort((timeline.lanes.name[lanes], timeline.lanes.vm[lanes]))
    total, faults = whole["stall"], whole["faults"]
    for lane in lanes[order].tolist():
        name = int(timeline.lanes.name[lane])
        part = f"vcpu{name}" if name >= 0 else f"thread{-1 - name}"
        if timeline.vms > 1 and name >= 0:
            part = f"vm{int(timeline.lanes.vm[lane])}.{part}"
        n_saved, ns_saved = cells[lane].tolist()
        ns = int(stall_ns[lane])
        figures[f"faults:{part}"] = Figure.of(int(n_faults[lane]), Amount.exact(n_saved), faults.label)
        low, high = (ns_saved + end - total.saved.value for end in (total.saved.low, total.saved.high))
        figures[f"stall:{part}"] = Figure.of(ns, Amount(ns_saved, low, high), total.label)
    return figures
