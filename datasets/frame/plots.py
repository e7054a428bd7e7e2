"""A chart for each answer (Altair), from the collected frame that the question of its name returned."""

from __future__ import annotations

from typing import Any

import altair as alt
import polars as pl

__all__ = [
    "double_zeroed_bytes",
    "faults_per_second",
    "first_touches",
    "heatmap",
    "hot_cold_regions",
    "latency_quantiles",
    "refault_distance",
    "resident_curve",
    "reuse_after_discard",
    "working_set_curve",
]

MAX_POINTS = 4_000
"""Points in a scatter chart: more are thinned evenly, as a page with all of them would not open."""

_MIB = 1 << 20


def first_touches(frame: pl.DataFrame) -> alt.Chart:
    """Draw which page was touched first when: gfn over time."""
    drawn: alt.Chart = (
        _chart(_thin(_seconds(frame, "ts_ns")))
        .mark_circle(size=8)
        .encode(_x("time (s)"), alt.Y("gfn:Q", title="gfn"), _vm())
    )
    return drawn


def faults_per_second(frame: pl.DataFrame) -> alt.Chart:
    """Draw the rate of faults over time, by kind."""
    drawn: alt.Chart = (
        _chart(_seconds(frame, "ts_ns"))
        .mark_line(interpolate="step-after")
        .encode(_x("time (s)"), alt.Y("faults_per_s:Q", title="faults per second"), alt.Color("kind:N"))
    )
    return drawn


def latency_quantiles(frame: pl.DataFrame) -> alt.Chart:
    """Draw the latency quantiles of each kind and level."""
    names = [name for name in frame.columns if name.startswith("p") and name.endswith("_ns")]
    shown = frame.with_columns(
        what=pl.format("{} {}", pl.col("kind").cast(pl.String), pl.col("level").cast(pl.String).fill_null(""))
    ).unpivot(names, index="what", variable_name="quantile", value_name="ns")
    drawn: alt.Chart = (
        _chart(shown.with_columns(pl.col("quantile").str.strip_suffix("_ns")))
        .mark_point(filled=True)
        .encode(
            alt.X("ns:Q", title="latency (ns)", scale=alt.Scale(type="log")),
            alt.Y("what:N", title=None),
            alt.Color("quantile:N"),
        )
    )
    return drawn


def resident_curve(frame: pl.DataFrame) -> alt.Chart:
    """Draw resident memory over time."""
    shown = _thin(_seconds(frame, "ts_ns")).with_columns(mib=pl.col("resident_bytes") / _MIB)
    drawn: alt.Chart = (
        _chart(shown)
        .mark_line(interpolate="step-after")
        .encode(_x("time (s)"), alt.Y("mib:Q", title="resident (MiB)"), _vm())
    )
    return drawn


def working_set_curve(frame: pl.DataFrame) -> alt.Chart:
    """Draw the working set per window."""
    shown = _seconds(frame, "ts_ns").with_columns(mib=pl.col("working_set_bytes") / _MIB)
    drawn: alt.Chart = (
        _chart(shown)
        .mark_line(interpolate="step-after")
        .encode(_x("time (s)"), alt.Y("mib:Q", title="working set (MiB)"), _vm())
    )
    return drawn


def heatmap(frame: pl.DataFrame) -> alt.Chart:
    """Draw touches by time and place."""
    shown = _seconds(frame, "ts_ns").with_columns(
        until=pl.col("seconds") + pl.col("bin_ns") / 1e9, gfn_until=pl.col("gfn") + pl.col("bin_pages")
    )
    drawn: alt.Chart = (
        _chart(shown)
        .mark_rect()
        .encode(
            _x("time (s)"),
            alt.X2("until:Q"),
            alt.Y("gfn:Q", title="gfn"),
            alt.Y2("gfn_until:Q"),
            alt.Color("touches:Q", scale=alt.Scale(type="symlog", scheme="viridis")),
        )
    )
    return drawn


def hot_cold_regions(frame: pl.DataFrame) -> alt.Chart:
    """Draw how often each region was touched, hot ones marked."""
    drawn: alt.Chart = (
        _chart(_thin(frame))
        .mark_bar()
        .encode(
            alt.X("gfn:Q", title="gfn of the region"), alt.Y("touches:Q"), alt.Color("hot:N", title="hot")
        )
    )
    return drawn


def double_zeroed_bytes(frame: pl.DataFrame) -> alt.Chart:
    """Draw the bytes zeroed twice by each VM: a bar from low to high."""
    shown = frame.with_columns(low=pl.col("low_bytes") / _MIB, high=pl.col("high_bytes") / _MIB)
    drawn: alt.Chart = (
        _chart(shown)
        .mark_bar(minBandSize=2)
        .encode(
            alt.X("low:Q", title="zeroed twice (MiB)"), alt.X2("high:Q"), alt.Y("vm:N"), alt.Color("label:N")
        )
    )
    return drawn


def reuse_after_discard(frame: pl.DataFrame) -> alt.Chart:
    """Draw how long discarded pages stayed away, as a histogram; pages that never came back are not in it."""
    return _gaps(frame.filter(pl.col("gap_ns").is_not_null()), "gap_ns", "away (s)", 1e9)


def refault_distance(frame: pl.DataFrame) -> alt.Chart:
    """Draw the distances of refaults as a histogram."""
    return _gaps(frame, "distance", "evictions while away", 1.0)


def _gaps(frame: pl.DataFrame, column: str, title: str, divisor: float) -> alt.Chart:
    # Counted here, in powers of two: a million rows make some thirty bars.
    power = pl.col(column).clip(lower_bound=1).log(2).floor()
    counted = frame.group_by(from_value=2**power / divisor, to_value=2 ** (power + 1) / divisor).len("pages")
    drawn: alt.Chart = (
        _chart(counted.sort("from_value"))
        .mark_bar()
        .encode(
            alt.X("from_value:Q", title=title, scale=alt.Scale(type="log")),
            alt.X2("to_value:Q"),
            alt.Y("pages:Q", title="pages"),
        )
    )
    return drawn


def _chart(frame: pl.DataFrame) -> alt.Chart:
    # Rows as values in the chart itself: it works offline, in a notebook and in a saved page.
    names = [name for name, dtype in frame.schema.items() if isinstance(dtype, pl.Enum)]
    data: Any = alt.Data(values=frame.with_columns(pl.col(names).cast(pl.String)).to_dicts())  # type: ignore[no-untyped-call]
    return alt.Chart(data)


def _seconds(frame: pl.DataFrame, column: str) -> pl.DataFrame:
    start = frame[column].min() if frame.height else 0
    return frame.with_columns(seconds=(pl.col(column) - start) / 1e9)


def _thin(frame: pl.DataFrame) -> pl.DataFrame:
    return frame if frame.height <= MAX_POINTS else frame.gather_every(-(-frame.height // MAX_POINTS))


def _x(title: str) -> Any:
    return alt.X("seconds:Q", title=title)


def _vm() -> Any:
    return alt.Color("vm:N", title="vm")
