"""The same quantity over time on several sides, one line each."""

from __future__ import annotations

import altair as alt
import polars as pl

from tracekit.report.charts.axes import HEIGHT, WIDTH, most, seconds, series
from tracekit.report.figure import inline
from tracekit.report.units import scale_for

__all__ = ["chart"]


def chart(curves: pl.DataFrame, unit: str, title: str) -> alt.Chart:
    """Draw step lines; `curves` has the columns side, time_s (since its own start) and value (in `unit`).

    >>> curves = pl.DataFrame({"side": ["a", "b"], "time_s": [0.0, 0.0], "value": [1.0, 2.0]})
    >>> chart(curves, "ns", "stall").to_dict()["encoding"]["y"]["title"]
    'stall (ns)'
    """
    scale = scale_for(most(curves, "value"), unit)
    shown = curves.with_columns((pl.col("value") / scale.divisor).round(4).alias("shown"))
    suffix = f" ({scale.suffix})" if scale.suffix else ""
    drawn: alt.Chart = (
        alt.Chart(inline(shown))
        .mark_line(interpolate="step-after", strokeWidth=2)
        .encode(
            x=seconds(most(curves, "time_s") or None),
            y=alt.Y("shown:Q", title=f"{title}{suffix}", axis=alt.Axis(tickCount=5)),
            tooltip=[
                "side:N",
                alt.Tooltip("time_s:Q", format=".4~g"),
                alt.Tooltip("shown:Q", format=",.4~g"),
            ],
            **series(curves["side"].unique(maintain_order=True).to_list(), "side"),
        )
        .properties(width=WIDTH, height=HEIGHT)
    )
    return drawn
