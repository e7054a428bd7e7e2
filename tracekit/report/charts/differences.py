"""Differences at a glance: each metric's change in percent with its interval, beside the tolerance."""

from __future__ import annotations

import altair as alt
import polars as pl

from tracekit.report.charts.axes import WIDTH
from tracekit.report.figure import INK, inline

__all__ = ["chart"]

_VERDICTS = ["different", "same", "not shown"]


def chart(changes: pl.DataFrame, tolerance: float) -> alt.LayerChart:
    """Draw one row per metric, the band of what counts as no difference behind them.

    `changes` has the columns metric, side, change, low, high (shares of the first side) and verdict.

    >>> row = {"metric": "faults", "side": "b", "change": 0.1, "low": 0.05, "high": 0.2, "verdict": "same"}
    >>> len(chart(pl.from_dicts([row]), 0.05).to_dict()["layer"])
    4
    """
    metrics = changes["metric"].unique(maintain_order=True).to_list()
    sides = changes["side"].unique(maintain_order=True).to_list()
    verdicts = [verdict for verdict in _VERDICTS if verdict in set(changes["verdict"])]
    scale = alt.Scale(domain=[-1, 1], clamp=True) if _wide(changes) else alt.Scale(zero=True)
    percent = alt.Axis(format="+~%", tickCount=6, grid=True)
    x = alt.X("change:Q", title="change from the first side", axis=percent, scale=scale)
    band = alt.Chart(inline(pl.DataFrame({"from": [-tolerance], "to": [tolerance]})))
    base = alt.Chart(inline(changes)).encode(
        y=alt.Y("metric:N", sort=metrics, title=None, axis=alt.Axis(labelLimit=300)),
        yOffset=alt.YOffset("side:N", sort=sides),
        tooltip=[
            "metric:N",
            "side:N",
            alt.Tooltip("change:Q", format="+.2~%"),
            alt.Tooltip("low:Q", format="+.2~%"),
            alt.Tooltip("high:Q", format="+.2~%"),
            "verdict:N",
        ],
    )
    room = band.mark_rect(opacity=0.15, color="gray").encode(x=alt.X("from:Q", scale=scale), x2="to:Q")
    zero = band.mark_rule(style=INK, strokeWidth=1).encode(x=alt.datum(0))
    interval = base.mark_rule(strokeWidth=2, style=INK).encode(x=alt.X("low:Q", scale=scale), x2="high:Q")
    point = base.mark_point(filled=True, size=80, opacity=1).encode(
        x=x,
        color=alt.Color("side:N", sort=sides, scale=alt.Scale(domain=sides), legend=_legend(len(sides) > 1)),
        shape=alt.Shape(
            "verdict:N",
            scale=alt.Scale(domain=verdicts, range=[_SHAPES[verdict] for verdict in verdicts]),
            legend=alt.Legend(title=None, orient="top"),
        ),
    )
    drawn: alt.LayerChart = (room + zero + interval + point).properties(
        width=WIDTH - 260, height=alt.Step(24 if len(sides) == 1 else 16)
    )
    return drawn


_SHAPES = {"different": "diamond", "same": "circle", "not shown": "square"}


def _wide(changes: pl.DataFrame) -> bool:
    ends = [abs(float(v)) for name in ("change", "low", "high") for v in changes[name].drop_nulls()]
    return max(ends, default=0.0) > 1


def _legend(wanted: bool) -> alt.Legend | None:
    return alt.Legend(title=None, orient="top") if wanted else None
