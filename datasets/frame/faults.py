"""Questions about faults: the first touch of each page, their rate, their latencies."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from tracekit.datasets.frame.columns import (
    FAULT_KINDS,
    bucket_ns,
    by_vm,
    keys_of,
    nanoseconds,
    page_key,
    question,
)

__all__ = ["faults_per_second", "first_touches", "latency_quantiles"]


@question
def first_touches(events: pl.LazyFrame) -> pl.LazyFrame:
    """Return the first fault of each page; see `EventsNamespace.first_touches`."""
    keys = keys_of(events)
    faults = events.filter(pl.col("kind").is_in(FAULT_KINDS) & pl.col("gfn").is_not_null())
    columns = ["ts_ns", "vcpu", "pages", "level", "access", "latency_ns"]
    # Events are in time order (by trace): the first row of a page is its first touch.
    first = faults.select(*keys, "gfn", *columns, first=page_key(keys).is_first_distinct())
    return by_vm(first.filter("first").drop("first"), keys)


@question
def faults_per_second(events: pl.LazyFrame, every: str | int) -> pl.LazyFrame:
    """Return the rate of faults over time; see `EventsNamespace.faults_per_second`."""
    keys = keys_of(events)
    width = nanoseconds(every)
    faults = events.filter(pl.col("kind").is_in(FAULT_KINDS))
    counted = faults.group_by(*keys, "kind", bucket_ns(every)).agg(
        faults=pl.len(), stall_ns=pl.col("latency_ns").sum()
    )
    # Spans without a fault are rows too: a rate of nothing is 0, not what its neighbours had.
    first, last = pl.col("ts_ns").min(), pl.col("ts_ns").max()
    all_buckets = (
        counted.group_by(*keys, "kind")
        .agg(ts_ns=pl.int_range(first, last + 1, width, dtype=pl.UInt64))
        .explode("ts_ns")
    )
    filled = all_buckets.join(counted, on=[*keys, "kind", "ts_ns"], how="left")
    return (
        filled.with_columns(pl.col("faults", "stall_ns").fill_null(0))
        .with_columns(faults_per_s=pl.col("faults") * (1e9 / width))
        .sort(*keys, "kind", "ts_ns")
    )


@question
def latency_quantiles(events: pl.LazyFrame, quantiles: Sequence[float]) -> pl.LazyFrame:
    """Return latency quantiles by kind and level; see `EventsNamespace.latency_quantiles`."""
    keys = keys_of(events)
    names = {f"p{100 * q:g}_ns".replace(".", "_"): q for q in quantiles}
    # One pass that gathers each group's latencies sorted: quantiles are then look-ups (nearest rank).
    latency = pl.col("latency_ns")
    return (
        events.filter(latency.is_not_null())
        .group_by(*keys, "kind", "level")
        .agg(
            count=pl.len(),
            mean_ns=latency.mean(),
            **{name: latency.quantile(q, "nearest") for name, q in names.items()},
            max_ns=latency.max(),
            total_ns=latency.sum(),
        )
        .with_columns(pl.col(list(names)).cast(pl.UInt64))
        .sort(*keys, "kind", "level")
    )
