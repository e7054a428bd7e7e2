"""How long it takes to zero memory of a given size, by guest and host, with the spread that was measured."""

from __future__ import annotations

import altair as alt
import polars as pl

from tracekit.report.charts.axes import HEIGHT, WIDTH, most
from tracekit.report.figure import inline
from tracekit.report.units import human, scale_for

__all__ = ["chart"]


def chart(costs: pl.DataFrame) -> alt.LayerChart:
    """Draw time to zero against size, both logarithmic.

    `costs` has the columns side (such as guest or host), size_bytes, zero_ns, low_ns and high_ns.

    >>> costs = pl.DataFrame({"side": ["guest"], "size_bytes": [32 << 20], "zero_ns": [9e6], "low_ns": [8e6],
    ...                       "high_ns": [1e7]})
    >>> chart(costs).to_dict()["layer"][0]["encoding"]["x"]["sort"]
    ['32 MiB']
    """
    sizes = costs["size_bytes"].unique().sort().to_list()
    scale = scale_for(most(costs, "high_ns"), "ns")
    sides = costs["side"].unique(maintain_order=True).to_list()
    shown = costs.with_columns(
        pl.col("size_bytes").map_elements(_whole, return_dtype=pl.String).alias("size"),
        *(pl.col(name) / scale.divisor for name in ("zero_ns", "low_ns", "high_ns")),
        pl.col("zero_ns").map_elements(lambda ns: human(ns, "ns"), return_dtype=pl.String).alias("shown"),
    )
    base = alt.Chart(inline(shown)).encode(
        x=alt.X(
            "size:N",
            sort=[_whole(size) for size in sizes],
            title="memory zeroed",
            axis=alt.Axis(labelAngle=0),
        ),
        color=alt.Color(
            "side:N", sort=sides, scale=alt.Scale(domain=sides), legend=alt.Legend(title=None, orient="top")
        ),
        tooltip=["side:N", alt.Tooltip("size:N", title="memory"), alt.Tooltip("shown:N", title="time")],
    )
    y = alt.Y(
        "zero_ns:Q",
        title=f"time to zero ({scale.suffix}, logarithmic)",
        scale=alt.Scale(type="log"),
        axis=alt.Axis(tickCount=4, format=","),
    )
    line = base.mark_line(point={"filled": True, "size": 50}, strokeWidth=2).encode(y=y)
    spread = base.mark_rule(strokeWidth=2).encode(y=alt.Y("low_ns:Q"), y2="high_ns:Q")
    drawn: alt.LayerChart = (line + spread).properties(width=WIDTH, height=HEIGHT)
    return drawn


def _whole(size_bytes: int) -> str:
    scale = scale_for(size_bytes, "bytes")
    return f"{size_bytes / scale.divisor:g} {scale.suffix}"
