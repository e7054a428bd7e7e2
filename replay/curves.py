"""Resident memory over time, recorded and counterfactual, thinned to what a chart can show."""

from __future__ import annotations

from typing import Final

import numpy as np
import polars as pl

from tracekit.replay import pages as pg
from tracekit.replay.state import Replay
from tracekit.replay.timeline import Timeline
from tracekit.trace.schema import PAGE_BYTES

__all__ = ["BASELINE", "CURVES", "resident_curve"]

BASELINE: Final = "baseline"
POINTS: Final = 512

CURVES: Final = pl.Schema({"scenario": pl.String(), "ts_ns": pl.Int64(), "resident_bytes": pl.Float64()})
"""Columns of a curve; memory stays as it is until the next point; `ts_ns` is on the trace's clock."""


def resident_curve(replay: Replay, timeline: Timeline, world: int, name: str) -> pl.DataFrame:
    """Return the resident memory of one world (0 = baseline, 1 = counterfactual) as `scenario` = `name`.

    At most `POINTS` points; each is the most that was resident until the next, so that no peak is lost.
    """
    changes = replay.world.curve.reshape(2, -1)[world]
    shift = int(replay.world.clock[pg.CLOCK_BIN_SHIFT])
    used = min(len(changes), (max(timeline.span_ns, 1) >> shift) + 1)
    pages = np.maximum(changes[:used].cumsum(), 0)
    step = -(-used // POINTS)
    starts = np.arange(0, used, step)
    return pl.DataFrame(
        {
            "scenario": [name] * len(starts),
            "ts_ns": timeline.start_ns + (starts << shift),
            "resident_bytes": np.maximum.reduceat(pages, starts) * float(PAGE_BYTES),
        },
        schema=CURVES,
    )
