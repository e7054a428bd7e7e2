"""What is in a trace, in one pass and bounded memory: the numbers behind `tracekit info`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np

from tracekit.trace.reader import Trace
from tracekit.trace.schema import KINDS

__all__ = ["LATENCY_RESOLUTION", "TIME_SLICES", "KindSummary", "Summary", "summarise"]

TIME_SLICES: Final = 44
"""Slices of time in `KindSummary.over_time`: what fits a line of a terminal."""

_SHIFT: Final = 52 - 7
_BASE: Final = (1023 << 7) - 1
_BUCKETS: Final = 64 * 128 + 1
LATENCY_RESOLUTION: Final = 2.0**-8
"""Largest relative error of a latency quantile: half of one of the 128 buckets per power of two."""


@dataclass(frozen=True)
class KindSummary:
    """Events of one kind; latencies in ns are null when no event had one; `p50`, `p99` to within 0.4 %.

    `over_time` counts its events in `TIME_SLICES` equal slices of the recording.
    """

    kind: str
    events: int
    per_second: float | None
    with_latency: int
    latency_p50_ns: int | None
    latency_p99_ns: int | None
    latency_max_ns: int | None
    latency_sum_ns: int
    over_time: list[int]


@dataclass(frozen=True)
class Summary:
    """A trace in numbers; `to_dict` is the JSON of `tracekit info --json`."""

    path: str
    source: str
    finalised: bool
    recovered: bool
    tool_version: str
    started: str | None
    start_ns: int | None
    span_ns: int
    host: dict[str, Any]
    vms: list[dict[str, Any]]
    command: list[str]
    address_kind: str
    clock: dict[str, Any]
    probes: dict[str, Any]
    filters: dict[str, Any]
    sampling: dict[str, Any]
    marks: list[dict[str, Any]]
    notes: list[str]
    events: int
    parts: int
    bytes: int
    late_rows: int
    kinds: list[KindSummary]
    vcpus: list[dict[str, Any]]
    memslots: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    lost: int | None
    losses: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists and dicts, with `bytes_per_event` added."""
        return {**asdict(self), "bytes_per_event": self.bytes_per_event}

    @property
    def bytes_per_event(self) -> float | None:
        """Bytes on disk per event; None without events."""
        return self.bytes / self.events if self.events else None


def summarise(trace: Trace) -> Summary:
    """Read every event once and count; raises DamagedError at a part that is not what was written."""
    counts = _Counts(trace)
    for batch in trace.batches(["ts_ns", "kind", "vm", "vcpu", "latency_ns"]):
        counts.add(batch)
    meta = trace.meta
    seconds = trace.span_ns / 1e9
    return Summary(
        path=str(trace.path),
        source=meta.source,
        finalised=meta.finalised,
        recovered=meta.recovered,
        tool_version=meta.tool_version,
        started=_started(trace),
        start_ns=meta.start_ns,
        span_ns=trace.span_ns,
        host=dict(meta.host),
        vms=[dict(vm) for vm in meta.vms],
        command=meta.command,
        address_kind=meta.address_kind,
        clock=dict(meta.clock),
        probes=dict(meta.probes),
        filters=meta.filters,
        sampling=meta.sampling,
        marks=[dict(mark) for mark in meta.marks],
        notes=meta.notes,
        events=trace.rows,
        parts=len(trace.parts),
        bytes=trace.bytes,
        late_rows=meta.late_rows,
        kinds=counts.kinds(seconds),
        vcpus=counts.vcpus(),
        memslots=trace.memslots.to_dicts(),
        samples=_samples(trace),
        lost=trace.lost,
        losses=trace.losses.to_dicts(),
    )


class _Counts:
    def __init__(self, trace: Trace) -> None:
        firsts = [part.first_ts_ns for part in trace.parts if part.first_ts_ns is not None]
        lasts = [part.last_ts_ns for part in trace.parts if part.last_ts_ns is not None]
        self.start_ns = min(firsts, default=0)
        if trace.meta.start_ns is not None:
            self.start_ns = min(self.start_ns, trace.meta.start_ns) if firsts else trace.meta.start_ns
        stop_ns = max([*lasts, trace.meta.stop_ns or 0, self.start_ns])
        self.slice_ns = (stop_ns - self.start_ns) // TIME_SLICES + 1
        self.over_time = np.zeros((len(KINDS), TIME_SLICES), np.int64)
        self.events = np.zeros(len(KINDS), np.int64)
        self.latencies = np.zeros((len(KINDS), _BUCKETS), np.int64)
        self.longest = np.zeros(len(KINDS), np.uint64)
        self.sums = [0] * len(KINDS)
        self.by_vcpu: dict[tuple[int, int | None], int] = {}

    def add(self, batch: Any) -> None:
        kinds = batch.column("kind").indices.to_numpy()
        self.events += np.bincount(kinds, minlength=len(KINDS))
        # Rows come in time order: each slice is a run of them, found by bisection instead of divisions.
        edges = self.start_ns + self.slice_ns * np.arange(1, TIME_SLICES, dtype=np.uint64)
        cuts = np.searchsorted(batch.column("ts_ns").to_numpy(), edges)
        for at, run in enumerate(np.split(kinds, cuts)):
            if len(run):
                self.over_time[:, at] += np.bincount(run, minlength=len(KINDS))
        self._add_latencies(batch.column("latency_ns"), kinds)
        self._add_vcpus(batch.column("vm").to_numpy(), batch.column("vcpu"))

    def _add_latencies(self, column: Any, kinds: np.ndarray) -> None:
        if column.null_count == len(column):
            return
        values = column.drop_null().to_numpy()
        if column.null_count:
            kinds = kinds[column.is_valid().to_numpy(zero_copy_only=False)]
        # The bits of a float sort like the number: exponent and seven bits of mantissa are the bucket.
        buckets = values.astype(np.float64).view(np.int64) >> _SHIFT
        buckets = np.maximum(buckets - _BASE, 0)
        flat = kinds.astype(np.int64) * _BUCKETS + buckets
        self.latencies += np.bincount(flat, minlength=self.latencies.size).reshape(self.latencies.shape)
        for kind in np.flatnonzero(np.bincount(kinds)):
            of_kind = values[kinds == kind]
            self.longest[kind] = max(self.longest[kind], of_kind.max())
            # Halves, so that the sum of 2**20 values near 2**64 still fits.
            self.sums[kind] += (int((of_kind >> np.uint64(32)).sum()) << 32) + int(
                (of_kind & np.uint64(0xFFFF_FFFF)).sum()
            )

    def _add_vcpus(self, vms: np.ndarray, column: Any) -> None:
        vcpus = column.fill_null(-1).to_numpy().astype(np.int64)
        unknown = column.is_null().to_numpy(zero_copy_only=False)
        for vm in np.flatnonzero(np.bincount(vms)):
            mine = (vms == vm) & ~unknown
            found = np.bincount(vcpus[mine] + (1 << 15))
            for at in np.flatnonzero(found):
                self._count(int(vm), int(at) - (1 << 15), int(found[at]))
            self._count(int(vm), None, int(((vms == vm) & unknown).sum()))

    def _count(self, vm: int, vcpu: int | None, events: int) -> None:
        if events:
            self.by_vcpu[vm, vcpu] = self.by_vcpu.get((vm, vcpu), 0) + events

    def kinds(self, seconds: float) -> list[KindSummary]:
        return [
            self._kind(code, seconds) for code in np.argsort(-self.events, kind="stable") if self.events[code]
        ]

    def _kind(self, code: int, seconds: float) -> KindSummary:
        cumulated = np.cumsum(self.latencies[code])
        timed = int(cumulated[-1])
        longest = int(self.longest[code]) if timed else None
        return KindSummary(
            kind=KINDS[code],
            events=int(self.events[code]),
            per_second=float(self.events[code]) / seconds if seconds else None,
            with_latency=timed,
            latency_p50_ns=_quantile(cumulated, 0.50, longest),
            latency_p99_ns=_quantile(cumulated, 0.99, longest),
            latency_max_ns=longest,
            latency_sum_ns=self.sums[code],
            over_time=self.over_time[code].tolist(),
        )

    def vcpus(self) -> list[dict[str, Any]]:
        order = sorted(self.by_vcpu, key=lambda at: (at[0], at[1] is None, at[1] or 0))
        return [{"vm": vm, "vcpu": vcpu, "events": self.by_vcpu[vm, vcpu]} for vm, vcpu in order]


def _quantile(cumulated: np.ndarray, share: float, longest: int | None) -> int | None:
    """Return the middle of the bucket that holds the value of that rank (nearest rank)."""
    if longest is None:
        return None
    rank = max(1, int(np.ceil(share * cumulated[-1])))
    bucket = int(np.searchsorted(cumulated, rank))
    if bucket == 0:
        return 0
    edges = (np.array([bucket, bucket + 1], np.int64) + _BASE << _SHIFT).view(np.float64)
    return min(int((edges[0] + edges[1]) / 2), longest)


def _samples(trace: Trace) -> list[dict[str, Any]]:
    import polars as pl

    value = pl.col("value")
    grouped = trace.samples.group_by("vm", "metric").agg(
        value.count().alias("count"),
        value.min().alias("min"),
        value.max().alias("max"),
        value.sort_by("ts_ns").last().alias("last"),
    )
    return grouped.sort("vm", "metric").to_dicts()


def _started(trace: Trace) -> str | None:
    offset = trace.meta.clock.get("realtime_offset_ns")
    if offset is None or trace.meta.start_ns is None:
        return None
    try:
        when = datetime.fromtimestamp((trace.meta.start_ns + offset) / 1e9, UTC)
    except (OverflowError, ValueError, OSError):
        return None
    return when.isoformat(timespec="seconds")
