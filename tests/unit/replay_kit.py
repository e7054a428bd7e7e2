"""Tiny traces in memory, and short ways to replay them: what the replay tests share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import polars as pl
import pyarrow as pa

from tracekit.replay import Mechanism, Profile, load_profile, run
from tracekit.replay.costs import COSTS, Cost
from tracekit.replay.result import Result
from tracekit.trace.batch import events_batch
from tracekit.trace.schema import (
    EVENTS,
    FLAG_MAJOR,
    FLAG_PRESENT,
    FLAG_ZEROED,
    LOSSES,
    MEMSLOTS,
    PAGE_BYTES,
    SAMPLES,
)

__all__ = [
    "Tiny",
    "alloc",
    "costs",
    "drop",
    "fault",
    "figure",
    "free",
    "metrics",
    "ranged",
    "replayed",
    "saved",
]

US = 1_000


@dataclass
class Tiny:
    """A trace of a few rows: dicts of event columns, times in microseconds from its start.

    `sampled`: (time, VM, metric, value).
    """

    rows: list[dict[str, Any]]
    memory_pages: int | None = 4096
    span_us: int | None = None
    lost: int | None = 0
    losses_of: list[tuple[int | None, str]] = field(default_factory=list)
    vms: int = 1
    source: str = "synthetic"
    marks: list[Any] = field(default_factory=list)
    batch_rows: int = 1 << 20
    start_ns: int = 1_000_000_000
    filters: dict[str, Any] = field(default_factory=dict)
    host: dict[str, Any] = field(default_factory=dict)
    rss_bytes: float | None = None
    sampled: list[tuple[float, int, str, float]] = field(default_factory=list)
    hva: int = 1 << 40
    known_by: str = "synthetic"
    slots_from_ns: int = 0
    vcpus: int | None = None

    @property
    def meta(self) -> Any:
        stop = None if self.span_us is None else self.start_ns + self.span_us * US
        return SimpleNamespace(
            start_ns=self.start_ns,
            stop_ns=stop,
            vms=[{} if self.vcpus is None else {"vcpus": self.vcpus}] * self.vms,
            source=self.source,
            marks=self.marks,
            filters=self.filters,
            host=self.host,
        )

    @property
    def samples(self) -> pl.DataFrame:
        frame = pl.DataFrame(schema=pl.from_arrow(SAMPLES.empty_table()).schema)  # type: ignore[union-attr]
        rows = [(self.start_ns + round(us * US), vm, metric, value) for us, vm, metric, value in self.sampled]
        if self.rss_bytes is not None:
            rows += [(self.start_ns + 5 * US, vm, "rss_bytes", self.rss_bytes) for vm in range(self.vms)]
        return pl.DataFrame(rows, schema=frame.schema, orient="row")

    @property
    def memslots(self) -> pl.DataFrame:
        frame = pl.DataFrame(schema=pl.from_arrow(MEMSLOTS.empty_table()).schema)  # type: ignore[union-attr]
        if self.memory_pages is None:
            return frame
        rows = [
            {
                "vm": vm,
                "slot": 0,
                "gpa": 0,
                "size_bytes": self.memory_pages * PAGE_BYTES,
                "hva": self.hva,
                "flags": 0,
                "from_ns": self.slots_from_ns,
                "to_ns": None,
                "known_by": self.known_by,
            }
            for vm in range(self.vms)
        ]
        return pl.DataFrame(rows, schema=frame.schema)

    @property
    def losses(self) -> pl.DataFrame:
        """`losses_of`: how many (None = an unknown number), and why."""
        rows = [{"t0_ns": 0, "t1_ns": 0, "lost": lost, "reason": reason} for lost, reason in self.losses_of]
        return pl.DataFrame(rows, schema=pl.from_arrow(LOSSES.empty_table()).schema)  # type: ignore[union-attr]

    def batches(
        self, columns: Sequence[str] | None = None, batch_rows: int = 1 << 20
    ) -> Iterator[pa.RecordBatch]:
        rows = sorted(self.rows, key=lambda row: row["us"])
        size = min(batch_rows or self.batch_rows, self.batch_rows)
        for at in range(0, len(rows), size):
            yield self._batch(rows[at : at + size])

    def _batch(self, rows: list[dict[str, Any]]) -> pa.RecordBatch:
        given: dict[str, Any] = {
            "ts_ns": [self.start_ns + round(row["us"] * US) for row in rows],
            "kind": [row["kind"] for row in rows],
        }
        valid: dict[str, list[bool]] = {}
        for column in EVENTS:
            if column.name in given:
                continue
            values = [row.get(column.name) for row in rows]
            if column.nullable:
                valid[column.name] = [value is not None for value in values]
                given[column.name] = [0 if value is None else value for value in values]
            elif any(value is not None for value in values):
                default = 1 if column.name == "pages" else 0
                given[column.name] = [default if value is None else value for value in values]
        return events_batch(valid=valid, **given)


def fault(
    us: float,
    gfn: int | None,
    latency_us: float | None = 4,
    *,
    vcpu: int | None = 0,
    write: bool = True,
    level: int | None = 1,
    major: bool = False,
    present: bool = False,
    **more: Any,
) -> dict[str, Any]:
    """A fault that was complete at `us`."""
    return {
        "us": us,
        "kind": "ept_violation",
        "gfn": gfn,
        "vcpu": vcpu,
        "level": level,
        "access": 2 if write else 1,
        "pages": {None: 1, 1: 1, 2: 512, 3: 512 * 512}[level],
        "flags": FLAG_MAJOR * major | FLAG_PRESENT * present,
        "latency_ns": None if latency_us is None else round(latency_us * US),
        **more,
    }


def drop(
    us: float, gfn: int, pages: int = 1, *, kind: str = "balloon_inflate", **more: Any
) -> dict[str, Any]:
    """A discard by the VMM."""
    return {"us": us, "kind": kind, "gfn": gfn, "pages": pages, **more}


def alloc(us: float, gfn: int, *, zeroed: bool = False, vcpu: int = 0, pages: int = 1) -> dict[str, Any]:
    """A page_alloc in the guest."""
    flags = FLAG_ZEROED * zeroed
    return {"us": us, "kind": "page_alloc", "gfn": gfn, "vcpu": vcpu, "pages": pages, "flags": flags}


def free(us: float, gfn: int, *, vcpu: int = 0, pages: int = 1) -> dict[str, Any]:
    """A page_free in the guest."""
    return {"us": us, "kind": "page_free", "gfn": gfn, "vcpu": vcpu, "pages": pages}


BESIDE = ("exit", "cold_touch_4k", "guest_zero_4k", "worker_wake", "map_ahead")


def _usual(name: str) -> float:
    return 0.0 if name in BESIDE else 1000.0


def costs(**ns: float) -> Profile:
    """A cost profile with round numbers: every cost 1 us unless given (ns), all without spread.

    What is beside the stall (`BESIDE`) costs nothing unless given.
    """
    table = {name: Cost(*(ns.get(name, _usual(name)),) * 3, "the test") for name in COSTS}
    assert ns.keys() <= table.keys()
    return Profile("test", "test", table)


def ranged(**given: tuple[float, float, float]) -> Profile:
    """A cost profile of 1 us each, but for those given as (ns, low, high)."""
    table = {name: Cost(*given.get(name, (_usual(name),) * 3), "the test") for name in COSTS}
    assert given.keys() <= table.keys()
    return Profile("test", "test", table)


def replayed(
    trace: Tiny,
    *scenarios: str,
    profile: Profile | None = None,
    mechanisms: Sequence[Mechanism] = (),
    plain: bool | None = True,
    closed_loop: bool = True,
) -> Result:
    """Replay through scenarios as plain Python (no compiler)."""
    return run(
        trace,
        scenarios or ("baseline",),
        profile=profile or load_profile(),
        mechanisms=mechanisms,
        plain=plain,
        closed_loop=closed_loop,
    )


def metrics(result: Result, scenario: str, mechanism: str | None = None) -> dict[str, dict[str, Any]]:
    """Return the rows of a scenario by metric (of the whole, unless a mechanism is named)."""
    rows = result.rows.filter(pl.col("scenario") == scenario)
    names = rows["mechanism"].unique().to_list()
    name = mechanism or ("all" if "all" in names else names[0])
    return {row["metric"]: row for row in rows.filter(pl.col("mechanism") == name).to_dicts()}


def figure(trace: Tiny, scenario: str, metric: str, **more: Any) -> dict[str, Any]:
    """Return one row: replay, pick the metric."""
    return metrics(replayed(trace, scenario, **more), scenario)[metric]


def saved(trace: Tiny, scenario: str, metric: str, **more: Any) -> float:
    """Return what a scenario saves of a metric."""
    return float(figure(trace, scenario, metric, **more)["saved"])
