"""How long faults took: one histogram per cause on logarithmic axes, so that the tail stays visible."""

from __future__ import annotations

import altair as alt
import polars as pl

from tracekit.report.charts.axes import HEIGHT, WIDTH, least, most, series
from tracekit.report.figure import inline

__all__ = ["chart", "quantile"]

# Vega's own SI prefixes would write 1 us as "1k ns": the axis is in ns and labelled in words.
_NS_LABEL = (
    "datum.value >= 1e9 ? datum.value / 1e9 + ' s' : datum.value >= 1e6 ? datum.value / 1e6 + ' ms' : "
    "datum.value >= 1e3 ? datum.value / 1e3 + ' us' : datum.value + ' ns'"
)


def chart(latency: pl.DataFrame) -> alt.Chart:
    """Draw the distribution of service times.

    `latency` has the columns cause (str), latency_bin (int, consecutive bins differ by 1), from_ns and
    to_ns (the bin's bounds) and events; bins that no fault fell in may be left out.

    >>> bins = {"cause": "fault", "latency_bin": 150, "from_ns": 1e3, "to_ns": 1047.0, "events": 3}
    >>> chart(pl.from_dicts([bins])).to_dict()["encoding"]["x"]["scale"]["type"]
    'log'
    """
    causes = latency["cause"].unique(maintain_order=True).to_list()
    drawn: alt.Chart = (
        alt.Chart(inline(_gapless(latency)))
        .mark_line(interpolate="step-after", strokeWidth=2)
        .encode(
            x=alt.X(
                "from_ns:Q",
                title="time to serve the fault (logarithmic)",
                scale=alt.Scale(type="log", nice=False),
                axis=alt.Axis(labelExpr=_NS_LABEL, tickCount=6, values=_decades(latency)),
            ),
            y=alt.Y(
                "events:Q",
                title="faults (logarithmic)",
                scale=alt.Scale(type="symlog", constant=1, domainMin=0),
                axis=alt.Axis(values=[10**n for n in range(12)], format=",d"),
            ),
            **series(causes, "cause"),
            tooltip=[
                alt.Tooltip("cause:N"),
                alt.Tooltip("from_ns:Q", title="from (ns)", format=",.3~r"),
                alt.Tooltip("to_ns:Q", title="to (ns)", format=",.3~r"),
                alt.Tooltip("events:Q", title="faults", format=",d"),
            ],
        )
        .properties(width=WIDTH, height=HEIGHT)
    )
    return drawn


def _gapless(latency: pl.DataFrame) -> pl.DataFrame:
    """Add empty bins: a line must fall to zero where no fault was, not run over the gap."""
    width = float(latency["to_ns"][0]) / float(latency["from_ns"][0])
    first, last = int(least(latency, "latency_bin")), int(most(latency, "latency_bin"))
    bins = pl.DataFrame({"latency_bin": range(first - 1, last + 2)}, schema={"latency_bin": pl.Int64})
    at, start = int(latency["latency_bin"][0]), float(latency["from_ns"][0])
    every = (
        latency.select(pl.col("cause").unique(maintain_order=True))
        .join(bins, how="cross")
        .with_columns((start * width ** (pl.col("latency_bin") - at)).round(1).alias("from_ns"))
        .with_columns((pl.col("from_ns") * width).round(1).alias("to_ns"))
    )
    counted = latency.select("cause", pl.col("latency_bin").cast(pl.Int64), "events")
    return every.join(counted, on=["cause", "latency_bin"], how="left", maintain_order="left").with_columns(
        pl.col("events").fill_null(0)
    )


def _decades(latency: pl.DataFrame) -> list[float]:
    low, high = least(latency, "from_ns"), most(latency, "to_ns")
    return [10.0**n for n in range(20) if low <= 10.0**n <= high]


def quantile(latency: pl.DataFrame, share: float) -> float | None:
    """Return the upper bound of the bin in which the `share` quantile lies, in ns; None without rows.

    >>> bins = pl.DataFrame({"from_ns": [1.0, 10.0], "to_ns": [10.0, 100.0], "events": [99, 1]})
    >>> quantile(bins, 0.5), quantile(bins, 0.999)
    (10.0, 100.0)
    """
    ordered = latency.sort("from_ns").with_columns(pl.col("events").cum_sum().alias("below"))
    if not ordered.height:
        return None
    wanted = share * ordered["below"][-1]
    return float(ordered.filter(pl.col("below") >= wanted)["to_ns"][0])
