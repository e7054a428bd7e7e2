"""What matters most: how far each parameter alone moves the saving, the widest first."""

from __future__ import annotations

import altair as alt
import polars as pl

from tracekit.report.charts.axes import WIDTH
from tracekit.report.figure import inline
from tracekit.report.units import scale_for

__all__ = ["by_swing", "chart"]


def by_swing(swings: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of `chart`, the widest first, with `swing`: largest less least of the three savings."""
    three = ("saved", "saved_at_low", "saved_at_high")
    swing = pl.max_horizontal(*three) - pl.min_horizontal(*three)
    return swings.with_columns(swing.alias("swing")).sort("swing", descending=True, maintain_order=True)


def chart(swings: pl.DataFrame, unit: str, title: str) -> alt.LayerChart:
    """Draw one bar per parameter between the savings at the ends of its range, around the nominal saving.

    `swings` has the columns parameter, at_low, at_high (the parameter's ends, as text), saved,
    saved_at_low, saved_at_high (in `unit`); `title` names the metric.

    >>> row = {"parameter": "lead_ms", "at_low": "1", "at_high": "100", "saved": 5.0, "saved_at_low": 1.0,
    ...        "saved_at_high": 9.0}
    >>> chart(pl.from_dicts([row]), "ns", "guest stall").to_dict()["layer"][0]["encoding"]["y"]["sort"]
    ['lead_ms']
    """
    ends = ["saved_at_low", "saved_at_high"]
    ordered = by_swing(swings)
    order = ordered["parameter"].to_list()
    largest = ordered.select(pl.max_horizontal(pl.col("saved", *ends).abs()).max()).item() or 0
    scale = scale_for(float(largest), unit)
    long = pl.concat(
        ordered.select(
            "parameter",
            pl.lit(side).alias("end"),
            (pl.col("saved") / scale.divisor).alias("nominal"),
            (pl.col(f"saved_at_{side}") / scale.divisor).alias("saved"),
            (pl.lit("= ") + pl.col(f"at_{side}").cast(pl.String)).alias("at"),
        )
        for side in ("low", "high")
    )
    suffix = f" ({scale.suffix})" if scale.suffix else ""
    base = alt.Chart(inline(long)).encode(
        y=alt.Y("parameter:N", sort=order, title=None, axis=alt.Axis(labelLimit=220)),
        tooltip=["parameter:N", alt.Tooltip("at:N"), alt.Tooltip("saved:Q", format=",.4~g")],
    )
    bars = base.mark_bar(height={"band": 0.62}).encode(
        x=alt.X("nominal:Q", title=f"{title} saved{suffix}", scale=alt.Scale(zero=False)),
        x2="saved:Q",
        color=alt.Color(
            "end:N",
            scale=alt.Scale(domain=["low", "high"]),
            legend=alt.Legend(title="parameter at its", orient="top"),
        ),
    )
    nominal = alt.Chart(inline(long.head(1))).mark_rule(strokeDash=[4, 3]).encode(x="nominal:Q")
    drawn: alt.LayerChart = (bars + nominal).properties(width=WIDTH - 160, height=alt.Step(26))
    return drawn
