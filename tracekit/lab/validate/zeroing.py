"""zeroing: a guest that zeroes its free memory first, against one that skips what came zeroed (0x8002)."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from tracekit.lab.validate.case import Case, Recording
from tracekit.lab.validate.small import ORDERS, enlightened, guest, with_account
from tracekit.replay import Result
from tracekit.trace.schema import PAGE_BYTES

__all__ = ["cases"]

_PAGES = 32749
_USED = 20011
_BOOT_PAGES = 8191
_ADDED_PAGES = 16381


def zeroed_twice(recording: Recording, ledger: Result) -> Mapping[str, float]:
    """Return the memory that the guest zeroed just after the host had: its faults while it zeroed."""
    spans = [
        (phase["start_ns"], phase["start_ns"] + phase["elapsed_ns"])
        for vcpu in recording.account["vcpus"]
        for name, phase in vcpu["phases"].items()
        if name.startswith("zero")
    ]
    faults = recording.trace.events.filter(
        pl.col("kind") == "ept_violation",
        pl.col("gfn") >= recording.account["first_gfn"],
        pl.any_horizontal(pl.col("ts_ns").is_between(*span) for span in spans),
    )
    return {"zeroed_twice": float(faults.select(pl.len()).collect().item() * PAGE_BYTES)}


def cases(seed: int) -> list[Case]:
    """Return the cases: with the guest's own events, from the host alone (bounds only), memory hot-added."""
    found = []
    for name, order in ORDERS.items():
        asking = guest(_PAGES, seed, *order, "--zero-first", "--use", str(_USED), *enlightened())
        for side in ("guest events", "host only"):
            found.append(
                Case(
                    mechanism="zeroing",
                    name=f"{name} use, {side}",
                    scenario="zeroing",
                    baseline=asking.plus("--unanswered"),
                    real=asking,
                    compare=("faults", "stall", "time", "zeroed_twice", "resident_peak"),
                    guest_events=with_account if side == "guest events" else None,
                    measure=zeroed_twice,
                    bound_only=side == "host only",
                    runs_of=f"{name} use, guest events",
                )
            )
    words = ("--zero-first", "--hot-add", str(_ADDED_PAGES), *enlightened())
    grows = guest(_BOOT_PAGES, seed, *words)
    found.append(
        Case(
            mechanism="zeroing",
            name="memory added at run time, guest events",
            scenario="zeroing",
            baseline=grows.plus("--unanswered"),
            real=grows,
            compare=("faults", "stall", "time", "zeroed_twice", "resident_peak"),
            guest_events=with_account,
            measure=zeroed_twice,
        )
    )
    return found
