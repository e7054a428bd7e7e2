"""Questions about where and when memory is used: working set, heat, hot and cold regions."""

from __future__ import annotations

import polars as pl

from tracekit.datasets.frame.columns import TOUCH_KINDS, bucket_ns, keys_of, nanoseconds, question
from tracekit.errors import UsageError
from tracekit.trace.schema import PAGE_BYTES

__all__ = ["heatmap", "hot_cold_regions", "working_set_curve"]

_TOUCHED = (
    pl.col("kind").is_in(TOUCH_KINDS)
    & pl.col("gfn").is_not_null()
    & ((pl.col("kind") != "access") | (pl.col("arg").fill_null(1) > 0))
)
_TIMES = pl.when(pl.col("kind") == "access").then(pl.col("arg").fill_null(1)).otherwise(1)


@question
def working_set_curve(events: pl.LazyFrame, window: str | int) -> pl.LazyFrame:
    """Return the pages touched per window; see `EventsNamespace.working_set_curve`."""
    keys = keys_of(events)
    nanoseconds(window)
    touched = events.filter(_TOUCHED)
    sampled = (pl.col("kind") == "access") & (pl.col("pages") > 1)
    single = (
        touched.filter(~sampled)
        .group_by(*keys, bucket_ns(window), "gfn")
        .agg(pl.col("pages").max())
        .group_by(*keys, "ts_ns")
        .agg(pl.col("pages").sum())
    )
    # Regions of one snapshot (one instant) don't overlap, those of the next are cut anew: so not a union.
    regions = (
        touched.filter(sampled)
        .group_by(*keys, bucket_ns(window), instant="ts_ns")
        .agg(pl.col("pages").sum())
        .group_by(*keys, "ts_ns")
        .agg(pl.col("pages").max())
    )
    both = pl.concat([single, regions]).group_by(*keys, "ts_ns").agg(working_set_pages=pl.col("pages").sum())
    return both.with_columns(working_set_bytes=pl.col("working_set_pages").cast(pl.Int64) * PAGE_BYTES).sort(
        *keys, "ts_ns"
    )


@question
def heatmap(events: pl.LazyFrame, time_bins: int, gfn_bins: int) -> pl.LazyFrame:
    """Return touches by time and place; see `EventsNamespace.heatmap`."""
    if time_bins < 1 or gfn_bins < 1:
        raise UsageError("a heatmap needs at least one bin each way", hint="time_bins=64, gfn_bins=64")
    keys = keys_of(events)
    touched = events.filter(_TOUCHED).select(*keys, "ts_ns", "gfn", "pages", times=_TIMES)
    bounds = touched.select(
        t0=pl.col("ts_ns").min(),
        t1=pl.col("ts_ns").max(),
        g0=pl.col("gfn").min(),
        g1=(pl.col("gfn") + pl.col("pages")).max() - 1,
    )
    per_bin = ((pl.col("g1") - pl.col("g0")) // gfn_bins + 1).alias("per_bin")
    width = ((pl.col("t1") - pl.col("t0")) // time_bins + 1).alias("width")
    placed = touched.join(bounds.with_columns(per_bin, width), how="cross").with_columns(
        time_bin=(pl.col("ts_ns") - pl.col("t0")) // pl.col("width"),
        gfn_bin=(pl.col("gfn") - pl.col("g0")) // pl.col("per_bin"),
        last_bin=(pl.col("gfn") + pl.col("pages") - 1 - pl.col("g0")) // pl.col("per_bin"),
    )
    # A region that spans bins heats each of them.
    wide = placed.filter(pl.col("last_bin") > pl.col("gfn_bin")).with_columns(
        gfn_bin=pl.int_ranges("gfn_bin", pl.col("last_bin") + 1, dtype=pl.UInt64)
    )
    every = pl.concat([placed.filter(pl.col("last_bin") <= pl.col("gfn_bin")), wide.explode("gfn_bin")])
    return (
        every.group_by(*keys, "time_bin", "gfn_bin")
        .agg(
            ts_ns=(pl.col("t0") + pl.col("time_bin") * pl.col("width")).first(),
            gfn=(pl.col("g0") + pl.col("gfn_bin") * pl.col("per_bin")).first(),
            bin_ns=pl.col("width").first(),
            bin_pages=pl.col("per_bin").first(),
            touches=pl.col("times").sum(),
        )
        .sort(*keys, "time_bin", "gfn_bin")
        .drop("time_bin", "gfn_bin")
    )


@question
def hot_cold_regions(events: pl.LazyFrame, region_pages: int, share: float) -> pl.LazyFrame:
    """Return how hot each region is; see `EventsNamespace.hot_cold_regions`."""
    if region_pages < 1 or not 0 < share <= 1:
        raise UsageError(
            "region_pages must be at least 1 and share in (0, 1]", hint="region_pages=512, share=0.8"
        )
    keys = keys_of(events)
    touched = events.filter(_TOUCHED)
    # A DAMON region counts where it begins; rows of single pages where they are.
    regions = touched.group_by(*keys, gfn=pl.col("gfn") // region_pages * region_pages).agg(
        touches=_TIMES.sum(),
        pages_touched=pl.col("gfn").n_unique(),
        first_ns=pl.col("ts_ns").min(),
        last_ns=pl.col("ts_ns").max(),
    )
    before = pl.col("touches").cum_sum().over(keys) - pl.col("touches")
    return (
        regions.sort(*keys, "touches", "gfn", descending=[*[False] * len(keys), True, False])
        .with_columns(
            idle_ns=pl.col("last_ns").max().over(keys) - pl.col("last_ns"),
            hot=before < share * pl.col("touches").sum().over(keys),
        )
        .select(*keys, "gfn", "touches", "pages_touched", "first_ns", "last_ns", "idle_ns", "hot")
    )
