"""The miss-ratio curve: what share of touches would fault at each limit of resident memory."""

from __future__ import annotations

import altair as alt
import polars as pl

from tracekit.report.charts.axes import HEIGHT, WIDTH, byte_scale, most
from tracekit.report.figure import INK, inline

__all__ = ["chart"]


def chart(curve: pl.DataFrame) -> alt.LayerChart:
    """Draw the curve with its band.

    `curve` has the columns resident_bytes (the limit), miss_ratio, low and high (all in 0..1).

    >>> point = {"resident_bytes": [1 << 30], "miss_ratio": [0.1], "low": [0.05], "high": [0.2]}
    >>> len(chart(pl.DataFrame(point)).to_dict()["layer"])
    2
    """
    scale = byte_scale(most(curve, "resident_bytes"))
    shown = curve.with_columns((pl.col("resident_bytes") / scale.divisor).round(4).alias("limit"))
    base = alt.Chart(inline(shown)).encode(
        x=alt.X(
            "limit:Q", title=f"resident memory limit ({scale.suffix})", scale=alt.Scale(zero=True, nice=False)
        ),
        tooltip=[
            alt.Tooltip("limit:Q", title=scale.suffix, format=",.4~g"),
            alt.Tooltip("miss_ratio:Q", title="miss ratio", format=".3~%"),
            alt.Tooltip("low:Q", format=".3~%"),
            alt.Tooltip("high:Q", format=".3~%"),
        ],
    )
    percent = alt.Axis(format="~%", tickCount=5)
    band = base.mark_area(opacity=0.2).encode(
        y=alt.Y("low:Q", title="faults that stay", axis=percent), y2="high:Q", color=alt.value(_BAND)
    )
    line = base.mark_line(strokeWidth=2.5, style=INK).encode(y=alt.Y("miss_ratio:Q", axis=percent))
    drawn: alt.LayerChart = (band + line).properties(width=WIDTH, height=HEIGHT)
    return drawn


_BAND = "gray"  # a tint that both grounds can carry
