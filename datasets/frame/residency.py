"""Questions about what the host holds: resident memory, pages zeroed twice, what comes back after a drop."""

from __future__ import annotations

import polars as pl

from tracekit.datasets.frame.columns import by_vm, keys_of, nanoseconds, page_events, page_key, same_page
from tracekit.trace.schema import PAGE_BYTES

__all__ = ["double_zeroed_bytes", "refault_distance", "resident_curve", "reuse_after_discard"]


def resident_curve(events: pl.LazyFrame, every: str | int | None) -> pl.LazyFrame:
    """Return resident pages over time; see `EventsNamespace.resident_curve`."""
    keys = keys_of(events)
    pages = page_events(events, keys, only=pl.col("kind") != "page_alloc")
    was = pl.col("backs").shift().fill_null(False) & same_page(1)
    change = (pl.col("backs") & ~was).cast(pl.Int64) - (pl.col("drops") & was).cast(pl.Int64)
    changes = pages.select(*keys, "ts_ns", change=change).filter(pl.col("change") != 0)
    if every is not None:
        width = nanoseconds(every)
        changes = changes.with_columns(ts_ns=(pl.col("ts_ns") // width + 1) * width)
    # Sorting by one column at a time, then keeping the last row of a time, is quicker than grouping by time.
    in_order = by_vm(changes.sort("ts_ns"), keys).with_columns(
        resident_pages=pl.col("change").cum_sum().over(keys)
    )
    last = pl.any_horizontal(pl.col(name) != pl.col(name).shift(-1) for name in [*keys, "ts_ns"])
    return in_order.filter(last.fill_null(True)).select(
        *keys, "ts_ns", "resident_pages", resident_bytes=pl.col("resident_pages") * PAGE_BYTES
    )


def double_zeroed_bytes(events: pl.LazyFrame) -> pl.LazyFrame:
    """Return the bytes zeroed by host and guest; see `EventsNamespace.double_zeroed_bytes`."""
    keys = keys_of(events)
    pages = page_events(events, keys, only=~pl.col("kind").is_in(["map", "swap_in"]))
    allocs = pl.col("kind") == "page_alloc"
    # What the host holds before a row: an allocation changes nothing, and a page's first row finds nothing.
    held = pl.when(~allocs).then(pl.col("backs")).when(~same_page(1)).then(False)
    before = held.fill_null(strategy="forward").shift().fill_null(False) & same_page(1)
    state = pages.with_columns(
        fresh=pl.col("backs") & ~before,
        then_zeroed=(allocs & pl.col("zeroed")).shift(-1).fill_null(False) & same_page(-1),
    )
    counted = state.group_by(keys).agg(
        guest_seen=allocs.any(),
        exact=(pl.col("fresh") & pl.col("then_zeroed")).sum(),
        most=(pl.col("fresh") & pl.col("write")).sum(),
    )
    seen = pl.col("guest_seen")
    return counted.select(
        *keys,
        low_bytes=pl.when(seen).then(pl.col("exact")).otherwise(0).cast(pl.Int64) * PAGE_BYTES,
        high_bytes=pl.when(seen).then(pl.col("exact")).otherwise(pl.col("most")).cast(pl.Int64) * PAGE_BYTES,
        label=pl.when(seen).then(pl.lit("measured")).otherwise(pl.lit("bounded")),
    ).sort(keys)


def reuse_after_discard(events: pl.LazyFrame) -> pl.LazyFrame:
    """Return discards of backed pages and their reuse; see `EventsNamespace.reuse_after_discard`."""
    keys = keys_of(events)
    pages = page_events(events, keys, only=~pl.col("kind").is_in(["map", "swap_in", "page_alloc"]))
    was = pl.col("backs").shift().fill_null(False) & same_page(1)
    after = pl.when(same_page(-1) & pl.col("backs").shift(-1)).then(pl.col("ts_ns").shift(-1))
    # Dropping what is not there changes nothing: such rows must not end the wait for a fault.
    effective = pages.with_columns(was=was).filter(pl.col("backs") | pl.col("was"))
    return (
        effective.with_columns(reuse_ns=after)
        .filter("drops")
        .select(
            *keys,
            "gfn",
            "kind",
            discard_ns="ts_ns",
            reuse_ns="reuse_ns",
            gap_ns=pl.col("reuse_ns") - pl.col("ts_ns"),
        )
        .sort(*keys, "discard_ns", "gfn")
    )


def refault_distance(events: pl.LazyFrame) -> pl.LazyFrame:
    """Return for how many evictions pages were away; see `EventsNamespace.refault_distance`."""
    keys = keys_of(events)
    out = pl.col("kind") == "swap_out"
    swaps = (
        events.filter(pl.col("kind").is_in(["swap_out", "swap_in"]) & pl.col("gfn").is_not_null())
        .select(*keys, "gfn", "ts_ns", "kind", page_key(keys), evictions=out.cum_sum().over(keys))
        .sort("page", maintain_order=True)
    )
    before = same_page(1) & out.shift()
    return (
        swaps.with_columns(
            known=before & ~out,
            out_ns=pl.col("ts_ns").shift(),
            distance=pl.col("evictions").cast(pl.Int64) - pl.col("evictions").shift().cast(pl.Int64),
        )
        .filter("known")
        .select(
            *keys,
            "gfn",
            "out_ns",
            in_ns="ts_ns",
            gap_ns=pl.col("ts_ns") - pl.col("out_ns"),
            distance="distance",
        )
        .sort(*keys, "in_ns", "gfn")
    )
