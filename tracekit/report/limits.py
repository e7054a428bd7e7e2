"""How much memory would be enough, read off the faults and evictions of a trace."""

from __future__ import annotations

from typing import Final

import polars as pl

from tracekit.report.outline import DISCARD, Outline
from tracekit.trace.schema import FLAG_PRESENT, PAGE_BYTES

__all__ = ["fault_curve"]

_MOST_PAGES: Final = 20_000_000
"""Pages touched, evicted and discarded that are looked at; each takes 24 bytes while that is done."""

_POINTS: Final = 200


def fault_curve(outline: Outline) -> pl.DataFrame | None:
    """Return the share of the recorded faults that would stay at each size of memory.

    Columns resident_bytes, miss_ratio, low, high. None where nothing was evicted (then nothing tells what
    more memory would do), or where there is too much of it.
    """
    evicted = outline.tally.filter((pl.col("kind") == "swap_out") & pl.col("located"))
    kind = outline.touch_kind
    if not evicted.height or kind is None:
        return None
    moved = outline.tally.filter(((pl.col("kind") == kind) | pl.col("returned")) & pl.col("located"))
    if moved["pages"].sum() > _MOST_PAGES:
        return None
    from tracekit.replay.missratio import EVICT, FAULT, FORGET, more_memory

    fault = (pl.col("kind") == kind) & ((pl.col("flags") & FLAG_PRESENT) == 0)
    op = pl.when(fault).then(FAULT).when(pl.col("kind") == "swap_out").then(EVICT).otherwise(FORGET)
    gfn = pl.col("gfn")
    steps = (
        outline.trace.events.filter((fault | DISCARD) & gfn.is_not_null())
        .select(
            op.cast(pl.UInt8).alias("op"),
            pl.int_ranges(gfn, gfn + pl.col("pages"), dtype=pl.UInt64).alias("page"),
        )
        .explode("page")
        .drop_nulls()
        .collect(engine="streaming")
    )
    # Pages by number of first appearance: the curve needs small numbers, not addresses.
    page = steps["page"].rank("dense").cast(pl.Int64) - 1
    curve = more_memory(page.to_numpy(), steps["op"].to_numpy()).frame().drop_nulls()
    if not curve.height:
        return None
    step = -(-curve.height // _POINTS)
    return curve.gather_every(step).select(
        (pl.col("capacity_pages") * PAGE_BYTES).alias("resident_bytes"), "miss_ratio", "low", "high"
    )
