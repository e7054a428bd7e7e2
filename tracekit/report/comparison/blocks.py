"""A recording as blocks of equal progress: what every statistic of a comparison is computed from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import polars as pl

from tracekit.report.outline import BINS_PER_DECADE, DISCARD, FAULT_KINDS, latency_bin
from tracekit.trace import Trace

__all__ = ["BINS", "BLOCKS", "GIVEN_BACK", "Floats", "Tally", "tallies"]

BLOCKS: Final = 24
"""Blocks per recording. Neighbouring faults depend on each other, blocks much longer than that far less.

Resampling single events covers the truth in 28 % of cases where 95 % is claimed; blocks of at least ten
correlation lengths in 91 % (measured on AR(1) series with rho = 0.9).
"""

BINS: Final = 12 * BINS_PER_DECADE
"""Latency bins: 1 ns to 1,000 s."""

GIVEN_BACK: Final = "memory given back"

Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Tally:
    """One recording, by fault class (such as "MMU fault 4 KiB"): counts, pages, and by block.

    A block is one of BLOCKS equal shares of the recording's faults in time order, so that block k is the
    same point of the guest's own progress on both sides, however fast each went. Shapes: `stall_ns`
    [BLOCKS], `latency` (counts) [BLOCKS, BINS]. `given_back` counts discarded pages.
    """

    events: dict[str, float] = field(default_factory=dict)
    pages: dict[str, float] = field(default_factory=dict)
    stall_ns: dict[str, Floats] = field(default_factory=dict)
    latency: dict[str, Floats] = field(default_factory=dict)
    given_back: float = 0.0


def tallies(runs: Sequence[Trace]) -> list[Tally]:
    """Tally each recording."""
    return [_tally(run) for run in runs]


def _tally(trace: Trace) -> Tally:
    faults = trace.events.filter(pl.col("kind").is_in(list(FAULT_KINDS)) & pl.col("gfn").is_not_null())
    latency = pl.col("latency_ns")
    count, given_back = pl.collect_all(
        [
            faults.select(pl.len()),
            trace.events.filter(DISCARD).select(pl.col("pages").cast(pl.Float64).sum()),
        ],
        engine="streaming",
    )
    tally = Tally(given_back=float(given_back.item()))
    rows = (
        faults.select("kind", "level", "pages", "latency_ns")
        .with_row_index("progress")
        .group_by(
            pl.col("kind").cast(pl.String),
            "level",
            (pl.col("progress").cast(pl.Int64) * BLOCKS // max(1, count.item())).alias("block"),
            latency_bin().clip(0, BINS - 1).alias("bin"),
        )
        .agg(
            pl.len().cast(pl.Float64).alias("events"),
            pl.col("pages").cast(pl.Float64).sum(),
            latency.cast(pl.Float64).sum().alias("stall_ns"),
        )
        .collect(engine="streaming")
    )
    for (kind, level), part in rows.group_by("kind", "level"):
        name = _class(str(kind), level)
        timed = part.drop_nulls("bin")
        block, bins = timed["block"].to_numpy(), timed["bin"].to_numpy()
        counts = np.zeros((BLOCKS, BINS))
        np.add.at(counts, (block, bins), timed["events"].to_numpy())
        tally.latency[name] = counts
        tally.stall_ns[name] = np.bincount(block, timed["stall_ns"].to_numpy(), BLOCKS).astype(np.float64)
        tally.events[name] = float(part["events"].sum())
        tally.pages[name] = float(part["pages"].sum())
    return tally


def _class(kind: str, level: Any) -> str:
    size = {1: " 4 KiB", 2: " 2 MiB", 3: " 1 GiB"}.get(level, "")
    return {"ept_violation": "MMU fault", "host_fault": "host fault"}[kind] + size
