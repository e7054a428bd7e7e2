"""gfn x time: where in guest-physical memory pages were first touched, refaulted and discarded."""

from __future__ import annotations

from typing import Final

import altair as alt
import polars as pl

from tracekit.report.charts.axes import TIME, WIDTH, byte_scale, least, most
from tracekit.report.figure import inline

__all__ = ["chart"]

_ORDER: Final = ("first touch", "refault", "discard", "fault")
_HEIGHT: Final = 150


def chart(heat: pl.DataFrame, span_s: float | None = None) -> alt.VConcatChart:
    """Draw one panel per thing that happened; darker means more pages, on a logarithmic scale.

    `heat` has the columns what, time_s and time_end_s (the cell's bounds), gpa_bytes and gpa_end_bytes,
    pages (4 KiB pages in the cell); `span_s` ends the time axis.

    >>> cell = {"what": ["first touch"], "time_s": [0.0], "time_end_s": [0.1], "gpa_bytes": [0],
    ...         "gpa_end_bytes": [1 << 20], "pages": [12]}
    >>> len(chart(pl.DataFrame(cell)).to_dict()["vconcat"])
    1
    """
    present = [what for what in _ORDER if what in set(heat["what"])]
    fullest = max(2.0, most(heat, "pages"))
    time = alt.Scale(domain=[0, span_s or most(heat, "time_end_s")], nice=False)
    unit = byte_scale(most(heat, "gpa_end_bytes"))
    shown = heat.select(
        "what",
        "time_s",
        "time_end_s",
        (pl.col("gpa_bytes") / unit.divisor).round(6).alias("gpa"),
        (pl.col("gpa_end_bytes") / unit.divisor).round(6).alias("gpa_end"),
        "pages",
    )
    space = alt.Scale(domain=[least(shown, "gpa"), most(shown, "gpa_end")], nice=False)
    base = alt.Chart(inline(shown))
    panels = []
    for what in present:
        last = what == present[-1]
        axis = alt.Axis(
            tickCount=8,
            labels=last,
            ticks=last,
            title=TIME if last else None,
        )
        panels.append(
            base.transform_filter(alt.datum.what == what)
            .mark_rect(stroke=None, strokeWidth=0)
            .encode(
                x=alt.X("time_s:Q", scale=time, axis=axis),
                x2="time_end_s:Q",
                y=alt.Y(
                    "gpa:Q", scale=space, axis=alt.Axis(title=f"gpa ({unit.suffix})", tickCount=4, grid=False)
                ),
                y2="gpa_end:Q",
                color=alt.Color("what:N", scale=alt.Scale(domain=present), legend=None),
                opacity=alt.Opacity(
                    "pages:Q", scale=alt.Scale(type="log", domain=[1, fullest], range=[0.18, 1]), legend=None
                ),
                tooltip=[
                    alt.Tooltip("what:N", title="what"),
                    alt.Tooltip("pages:Q", title="pages", format=","),
                    alt.Tooltip("time_s:Q", title="from (s)", format=".4~g"),
                    alt.Tooltip("gpa:Q", title=f"gpa ({unit.suffix})", format=".4~g"),
                ],
            )
            .properties(width=WIDTH, height=_HEIGHT, title=what)
        )
    return alt.vconcat(*panels, spacing=10)
