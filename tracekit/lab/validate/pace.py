"""How fast this machine was while a run was recorded, beside how fast it was when its prices were measured.

A shared machine's speed drifts by tens of per cent within minutes, and the same fault, recorded, tells: when
it takes 1.2 times as long, so does the machine's other work, about. Prices are then taken to be dearer by
that factor. Only baselines are looked at, and only their faults on 4 KiB pages: what calibration recorded as
`fault_4k`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import polars as pl

from tracekit.lab.validate.case import Recording
from tracekit.replay import Profile
from tracekit.trace.schema import FLAG_MAJOR

__all__ = ["at_pace", "fault_ns", "reference_ns"]


def reference_ns(profile: Path | str | None) -> float | None:
    """Return the recorded fault's latency of a calibration; None where the profile knows none."""
    if profile is None or not Path(profile).is_file():
        return None
    beside = tomllib.loads(Path(profile).read_text()).get("beside", {})
    return float(beside["fault_4k"]["ns"]) if "fault_4k" in beside else None


def fault_ns(recording: Recording) -> float | None:
    """Return the median latency of a recording's faults on 4 KiB pages; None where it has none."""
    faults = recording.trace.events.filter(
        pl.col("kind") == "ept_violation", pl.col("level") == 1, pl.col("flags") & FLAG_MAJOR == 0
    )
    middle = faults.select(pl.col("latency_ns").median()).collect().item()
    return None if middle is None else float(middle)


def at_pace(profile: Profile, baselines: Iterable[Recording], reference: float | None) -> Profile:
    """Return the prices as they were while the baselines ran; without a reference, as they are."""
    seen = [ns for one in baselines if (ns := fault_ns(one))]
    if not (reference and seen):
        return profile
    factor = sum(seen) / len(seen) / reference
    costs = {
        name: replace(cost, ns=cost.ns * factor, low=cost.low * factor, high=cost.high * factor)
        for name, cost in profile.costs.items()
    }
    return replace(profile, costs=costs)
