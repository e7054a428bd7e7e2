"""What an earlier run teaches: which pages were touched first when, by gfn and offset from its start."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

__all__ = ["first_touches"]


def first_touches(path: str | Path) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return (vm, gfn) rows and the start of each one's first fault (ns since that trace's start), in order.

    A fault that maps more than a page teaches its first page. Raises the reader's errors.
    """
    from tracekit.trace import open_trace

    trace = open_trace(path)
    faults = (
        trace.events.filter(
            pl.col("kind").is_in(["ept_violation", "host_fault"]) & pl.col("gfn").is_not_null()
        )
        .with_columns(start=pl.col("ts_ns").cast(pl.Int64) - pl.col("latency_ns").fill_null(0).cast(pl.Int64))
        .group_by("vm", "gfn")
        .agg(pl.col("start").min())
        .sort("start", "vm", "gfn")
        .collect()
    )
    begin = int(trace.meta.start_ns or 0) or int(faults["start"].min() or 0)  # type: ignore[arg-type]
    gfns = faults.select(pl.col("vm").cast(pl.Int64), pl.col("gfn").cast(pl.Int64)).to_numpy()
    return gfns, np.maximum(faults["start"].to_numpy() - begin, 0)
