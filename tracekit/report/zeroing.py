"""How long zeroing memory takes on a host: the chart of `tracekit calibrate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import altair as alt
import polars as pl

from tracekit.report.figure import inline, theme

__all__ = ["zeroing_chart"]


def zeroing_chart(rows: Sequence[Mapping[str, Any]]) -> alt.TopLevelMixin:
    """Return the chart of a calibration's `zeroing` rows (side, size_bytes, zero_ns, low_ns, high_ns).

    Time over size, both logarithmic, one line for the guest and one for the host, with their spread.
    """
    data = pl.DataFrame(list(rows)).select(
        "side",
        MiB=pl.col("size_bytes") / (1 << 20),
        ms=pl.col("zero_ns") / 1e6,
        low=pl.col("low_ns") / 1e6,
        high=pl.col("high_ns") / 1e6,
    )
    sizes = sorted(data["MiB"].unique())
    size = alt.X("MiB:Q", scale=alt.Scale(type="log", base=2), axis=alt.Axis(values=sizes))
    time = alt.Scale(type="log")
    at = alt.Chart(inline(data)).encode(x=size, color=alt.Color("side:N", title=None))
    chart = alt.layer(
        at.mark_line(point=True).encode(y=alt.Y("ms:Q", scale=time, title="ms to zero it")),
        at.mark_rule().encode(y=alt.Y("low:Q", scale=time), y2="high:Q"),
    )
    sized = chart.properties(width=420, height=260, title="Zeroing memory")
    return cast("alt.TopLevelMixin", sized.configure(**theme("light")))
