"""How memory came back to the host: balloon and free page reports over time, beside what was resident."""

from __future__ import annotations

from typing import Final

import altair as alt
import polars as pl

from tracekit.report.charts.axes import HEIGHT, WIDTH, byte_scale, most, seconds, series
from tracekit.report.figure import inline

__all__ = ["SERIES", "chart"]

SERIES: Final = ("resident", "balloon target", "balloon", "free page reports", "other discards")
"""Series in drawing order; what was resident is drawn in ink."""


def chart(curves: pl.DataFrame, span_s: float | None = None) -> alt.Chart:
    """Draw the balloon's size, its target, and what reports and other discards returned so far.

    `curves` has the columns series (one of SERIES), time_s and bytes; `span_s` ends the time axis.

    >>> curves = pl.DataFrame({"series": ["balloon", "balloon"], "time_s": [0.0, 1.0], "bytes": [0, 1 << 30]})
    >>> chart(curves).to_dict()["encoding"]["color"]["scale"]["domain"]
    ['balloon']
    """
    scale = byte_scale(most(curves, "bytes"))
    shown = curves.with_columns((pl.col("bytes") / scale.divisor).round(4).alias("size"))
    names = [name for name in SERIES if name in set(curves["series"])]
    drawn: alt.Chart = (
        alt.Chart(inline(shown))
        .mark_line(interpolate="step-after", strokeWidth=2)
        .encode(
            x=seconds(span_s),
            y=alt.Y("size:Q", title=f"memory ({scale.suffix})", axis=alt.Axis(tickCount=5)),
            tooltip=[
                "series:N",
                alt.Tooltip("time_s:Q", title="time (s)", format=".4~g"),
                alt.Tooltip("size:Q", title=scale.suffix, format=",.4~g"),
            ],
            **series(names, ink_first=names[:1] == ["resident"]),
        )
        .properties(width=WIDTH, height=HEIGHT)
    )
    return drawn
