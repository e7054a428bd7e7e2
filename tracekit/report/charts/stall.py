"""Where the waiting comes from: total stall by cause, and the same over time."""

from __future__ import annotations

import altair as alt
import polars as pl

from tracekit.report.charts.axes import WIDTH, most, seconds
from tracekit.report.figure import INK, inline
from tracekit.report.units import human, scale_for

__all__ = ["chart"]


def chart(stall: pl.DataFrame, span_s: float | None = None) -> alt.VConcatChart:
    """Draw how long vCPUs waited, by cause and over time.

    `stall` has the columns cause, time_s and time_end_s (the bin), events and latency_ns (sum in the bin);
    `span_s` ends the time axis.

    >>> row = {"cause": "fault", "time_s": 0.0, "time_end_s": 0.1, "events": 2, "latency_ns": 4000}
    >>> len(chart(pl.from_dicts([row])).to_dict()["vconcat"])
    2
    """
    total = (
        stall.group_by("cause").agg(pl.col("events", "latency_ns").sum()).sort("latency_ns", descending=True)
    )
    causes = total["cause"].to_list()
    total = total.with_columns(
        pl.struct("events", "latency_ns")
        .map_elements(
            lambda r: f"{human(r['latency_ns'], 'ns')}, {r['events']:,} faults", return_dtype=pl.String
        )
        .alias("shown")
    )
    scale = scale_for(most(stall.group_by("time_s").agg(pl.col("latency_ns").sum()), "latency_ns"), "ns")
    color = alt.Color("cause:N", sort=causes, scale=alt.Scale(domain=causes), legend=None)
    bars = alt.Chart(inline(total)).encode(
        y=alt.Y("cause:N", sort=causes, title=None),
        x=alt.X("latency_ns:Q", axis=None, scale=alt.Scale(domainMin=0, padding=0)),
    )
    labels = bars.mark_text(align="left", dx=6, style=INK).encode(text="shown:N")
    whole = (bars.mark_bar(height={"band": 0.7}).encode(color=color) + labels).properties(
        width=WIDTH - 240, height=alt.Step(28)
    )
    rank = {cause: place for place, cause in enumerate(causes)}
    bins = stall.with_columns(
        (pl.col("latency_ns") / scale.divisor).round(4).alias("stall"),
        pl.col("cause").replace_strict(rank, return_dtype=pl.Int32).alias("rank"),
    )
    over_time = (
        alt.Chart(inline(bins))
        .mark_bar(stroke=None, binSpacing=0)
        .encode(
            x=seconds(span_s).bin("binned"),
            x2="time_end_s:Q",
            y=alt.Y(
                "stall:Q", stack="zero", title=f"stall per bin ({scale.suffix})", axis=alt.Axis(tickCount=4)
            ),
            color=color,
            order=alt.Order("rank:Q"),
            tooltip=[
                "cause:N",
                alt.Tooltip("time_s:Q", title="from (s)", format=".4~g"),
                alt.Tooltip("stall:Q", title=scale.suffix, format=",.4~g"),
            ],
        )
        .properties(width=WIDTH, height=150)
    )
    return alt.vconcat(whole, over_time, spacing=18)
