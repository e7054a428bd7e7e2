"""What both viewers' formats show: which process and threads there are, their names, the sampled counters."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from tracekit.trace import Trace

__all__ = ["ARGUMENTS", "process_name", "samples_by_vm", "threads"]

ARGUMENTS = ("gfn", "pages", "level", "access", "flags", "hva", "gva", "rip", "arg")
"""Event columns that a viewer shows as an event's details."""


def process_name(trace: Trace, vm: int) -> str:
    """Return a VM's name: its number and, where known, its program."""
    facts = trace.meta.vms[vm]
    program = facts.get("argv") or []
    name = program[0].rpartition("/")[2] if program else ""
    return f"vm {vm} {name}".strip()


def threads(trace: Trace) -> list[tuple[int, int, str]]:
    """Return (vm, tid, name) of every thread that has events."""
    found = (
        trace.events.group_by("vm", "tid")
        .agg(vcpu=pl.col("vcpu").drop_nulls().first())
        .sort("vm", "tid")
        .collect(engine="streaming")
    )
    return [
        (vm, tid, f"vCPU {vcpu}" if vcpu is not None else f"thread {tid}")
        for vm, tid, vcpu in found.iter_rows()
    ]


def samples_by_vm(trace: Trace) -> Iterator[tuple[int, int, str, float]]:
    """Yield (ts_ns, vm, metric, value) in time order."""
    yield from trace.samples.sort("ts_ns").select("ts_ns", "vm", "metric", "value").iter_rows()
