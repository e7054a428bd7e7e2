"""Resident memory over time: the baseline in ink, each scenario's counterfactual in its colour."""

from __future__ import annotations

from typing import Final

import altair as alt
import polars as pl

from tracekit.report.charts.axes import HEIGHT, WIDTH, byte_scale, most, seconds, series
from tracekit.report.figure import inline

__all__ = ["BASELINE", "SAMPLED", "chart"]

BASELINE: Final = "baseline"
SAMPLED: Final = "RSS of the VMM, sampled"


def chart(curves: pl.DataFrame, span_s: float | None = None) -> alt.LayerChart:
    """Draw resident memory over time.

    `curves` has the columns series (str), time_s (float, since the start) and resident_bytes; `span_s`
    ends the time axis. Each series is a step line, as memory stays until the next point, but for the one
    named SAMPLED: those are points, and nobody knows what was between them. BASELINE is drawn in ink.

    >>> curves = pl.DataFrame({"series": ["baseline"] * 2, "time_s": [0.0, 1.0], "resident_bytes": [0, 4096]})
    >>> chart(curves).to_dict()["layer"][0]["mark"]["type"]
    'line'
    """
    scale = byte_scale(most(curves, "resident_bytes"))
    shown = curves.with_columns((pl.col("resident_bytes") / scale.divisor).round(4).alias("resident"))
    names = shown["series"].unique(maintain_order=True).to_list()
    names.sort(key=lambda name: name != BASELINE)
    base = alt.Chart(inline(shown)).encode(
        x=seconds(span_s),
        y=alt.Y("resident:Q", title=f"resident memory ({scale.suffix})", axis=alt.Axis(tickCount=5)),
        tooltip=[
            alt.Tooltip("series:N"),
            alt.Tooltip("time_s:Q", title="time (s)", format=".4~g"),
            alt.Tooltip("resident:Q", title=scale.suffix, format=",.4~g"),
        ],
        **series(names, ink_first=BASELINE in names),
    )
    modelled = base.transform_filter(alt.datum.series != SAMPLED).mark_line(
        interpolate="step-after", strokeWidth=2, clip=True
    )
    sampled = base.transform_filter(alt.datum.series == SAMPLED).mark_line(
        strokeWidth=1, point={"size": 36, "filled": True}
    )
    drawn: alt.LayerChart = (modelled + sampled).properties(width=WIDTH, height=HEIGHT)
    return drawn
