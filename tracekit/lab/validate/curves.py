"""Resident memory at a moment, out of a result's curves."""

from __future__ import annotations

import polars as pl

from tracekit.replay import Result

__all__ = ["resident_at", "without"]


def resident_at(result: Result, ts_ns: int | None = None) -> tuple[float, float | None, float | None]:
    """Return (value, low, high) of the resident memory of a result's scenario; bytes; None: at the end.

    Of a ledger, in which nothing is on: as recorded.
    """
    return _row(result, -1, ts_ns)


def without(result: Result, ts_ns: int | None = None) -> float:
    """Return the resident memory as it was recorded, bytes."""
    return _row(result, 0, ts_ns)[0]


def _row(result: Result, which: int, ts_ns: int | None) -> tuple[float, float | None, float | None]:
    name = result.curves["scenario"].unique(maintain_order=True)[which]
    curve = result.curves.filter(pl.col("scenario") == name)
    seen = curve if ts_ns is None else curve.filter(pl.col("ts_ns") <= ts_ns)
    row = (seen if len(seen) else curve.head(1)).row(-1 if len(seen) else 0, named=True)
    return row["resident_bytes"], row["low_bytes"], row["high_bytes"]
