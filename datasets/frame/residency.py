"""Questions about what the host holds: resident memory, pages zeroed twice, what comes back after a drop."""

from __future__ import annotations

import numpy as np
import polars as pl

from tracekit.datasets.frame.columns import (
    BACKS,
    DROPS,
    keys_of,
    nanoseconds,
    page_events,
    page_key,
    question,
    same_page,
)
from tracekit.trace.schema import PAGE_BYTES

__all__ = ["double_zeroed_bytes", "refault_distance", "resident_curve", "reuse_after_discard"]

_BATCH_ROWS = 1 << 18
_VMS = 1 << 16
_NOTHING = [np.zeros(0, np.int64), np.zeros(0, np.uint64), np.zeros(0, np.int64)]


@question
def resident_curve(events: pl.LazyFrame, every: str | int | None) -> pl.LazyFrame:
    """Return resident pages over time; see `EventsNamespace.resident_curve`."""
    keys = keys_of(events)
    width_ns = 0 if every is None else nanoseconds(every)
    # One number for a VM (of a trace): compiled code goes through the events once, in their order.
    vm = (
        pl.col("vm") if keys == ["vm"] else pl.col("trace").to_physical().cast(pl.Int64) * _VMS + pl.col("vm")
    )
    chosen = events.filter(pl.col("gfn").is_not_null() & (BACKS | DROPS)).select(
        vm, "ts_ns", pl.col("gfn").reinterpret(signed=True), "pages", backs=BACKS
    )
    schema = {**events.select(*keys, "ts_ns").collect_schema()}
    schema |= dict.fromkeys(("resident_pages", "resident_bytes"), pl.Int64())
    chosen.collect_schema()
    return pl.defer(lambda: _curve(chosen, width_ns, schema), schema=schema)


def _curve(chosen: pl.LazyFrame, width_ns: int, schema: dict[str, pl.DataType]) -> pl.DataFrame:
    from tracekit.datasets.frame.holding import Events, Holding  # numba: only who asks waits for it

    held = Holding()
    batches = chosen.collect_batches(chunk_size=_BATCH_ROWS, maintain_order=True)
    found = [held.change(Events(*(column.to_numpy() for column in batch)), width_ns) for batch in batches]
    vm, ts_ns, resident = (np.concatenate(column) for column in zip(_NOTHING, *found, strict=True))
    if not ((vm[1:] == vm[:-1]) & (ts_ns[1:] >= ts_ns[:-1])).all():
        order = np.lexsort((ts_ns, vm))
        vm, ts_ns, resident = vm[order], ts_ns[order], resident[order]
    np.cumsum(resident, out=resident)
    ends = np.flatnonzero(np.append(vm[1:] != vm[:-1], True)[: vm.size])  # the last row of each VM
    before = np.append(0, resident[ends[:-1]])[: ends.size]
    for begin, end, other_vms in zip(np.append(0, ends[:-1] + 1), ends + 1, before, strict=False):
        resident[begin:end] -= other_vms
    last = np.append(ts_ns[1:] != ts_ns[:-1], True)[: vm.size]
    last[ends] = True
    columns = [vm, ts_ns, resident] if last.all() else [vm[last], ts_ns[last], resident[last]]
    curve = pl.DataFrame(columns, schema=["vm", "ts_ns", "resident_pages"])
    names = {"resident_bytes": pl.col("resident_pages") * PAGE_BYTES}
    if "trace" in schema:
        names["trace"] = (pl.col("vm") // _VMS).cast(pl.UInt32).cat.to(schema["trace"])
        names["vm"] = pl.col("vm") % _VMS
    return curve.select(
        names.get(name, pl.col(name)).cast(dtype).alias(name) for name, dtype in schema.items()
    )


@question
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


@question
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


@question
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
