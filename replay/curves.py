"""Resident memory over time, recorded and counterfactual, thinned to what a chart can show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import polars as pl

from tracekit.replay.events import BLOCK_PAGES
from tracekit.replay.residency import Residency
from tracekit.replay.timeline import Timeline
from tracekit.trace.schema import PAGE_BYTES

__all__ = ["BASELINE", "CURVES", "banded", "resident_curve"]

BASELINE: Final = "baseline"
POINTS: Final = 512

CURVES: Final = pl.Schema(
    {
        "scenario": pl.String(),
        "ts_ns": pl.Int64(),
        "resident_bytes": pl.Float64(),
        "low_bytes": pl.Float64(),
        "high_bytes": pl.Float64(),
    }
)
"""Columns of a curve; memory stays as it is until the next point; `ts_ns` is on the trace's clock.

`low_bytes` and `high_bytes` bound `resident_bytes` by what the trace leaves open (null = no bound).
"""


def resident_curve(residency: Residency, timeline: Timeline) -> pl.DataFrame:
    """Return resident memory over time: ts_ns, resident_bytes.

    At most `POINTS` points; each is the most that was resident until the next, so that no peak is lost.
    """
    changes, shift = residency.changes, residency.bin_shift
    used = min(len(changes), (max(timeline.span_ns, 1) >> shift) + 1)
    pages = np.maximum(changes[:used].cumsum(), 0)
    step = -(-used // POINTS)
    starts = np.arange(0, used, step)
    resident = np.maximum.reduceat(pages, starts) * float(PAGE_BYTES)
    return pl.DataFrame({"ts_ns": timeline.start_ns + (starts << shift), "resident_bytes": resident})


def banded(
    name: str,
    curves: Sequence[pl.DataFrame],
    *,
    earlier_bytes: float = 0.0,
    lost: int | None = 0,
    scale: float = 1.0,
) -> pl.DataFrame:
    """Return the first of some replays' curves as `scenario` = `name`, with a band that holds all of them.

    `earlier_bytes` more may have been there before the recording (inf: nobody knows); each `lost` event may
    have backed or taken a block (None: nobody knows how many). `scale` brings a sample up to the whole guest.

    >>> replays = [pl.DataFrame({"ts_ns": [0], "resident_bytes": [size]}) for size in (5.0, 4.0, 7.0)]
    >>> banded("mine", replays, earlier_bytes=2.0).row(0)
    ('mine', 0, 5.0, 4.0, 9.0)
    """
    values = [curve["resident_bytes"].to_numpy() for curve in curves]
    step = math.inf if lost is None else lost * float(BLOCK_PAGES * PAGE_BYTES)
    high = pl.Series((np.max(values, axis=0) + step + earlier_bytes) * scale)
    return curves[0].select(
        pl.lit(name).alias("scenario"),
        pl.col("ts_ns").cast(pl.Int64),
        pl.col("resident_bytes") * scale,
        pl.Series("low_bytes", np.maximum(np.min(values, axis=0) - step, 0.0) * scale),
        pl.when(high.is_finite()).then(high).alias("high_bytes"),
    )
