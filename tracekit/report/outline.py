"""Boils a trace down to what the charts draw: three streamed passes, no Python per event.

Whatever a trace's size, what leaves here has at most a few tens of thousands of rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import polars as pl

from tracekit.report.touches import Grid, count_touches
from tracekit.trace.schema import FLAG_MAJOR, FLAG_PRESENT, KIND_CODE, KINDS

if TYPE_CHECKING:
    from tracekit.trace import Trace

__all__ = [
    "BINS_PER_DECADE",
    "DISCARD",
    "FAULT_KINDS",
    "GFN_BINS",
    "TIME_BINS",
    "Extent",
    "Outline",
    "latency_bin",
]

TIME_BINS: Final = 160
GFN_BINS: Final = 64
BINS_PER_DECADE: Final = 50
"""Latency bins: each is 10^(1/50) wide, so a quantile read off them is right to 4.7 %."""

# MADV_DONTNEED, _FREE, _REMOVE, _COLD, _PAGEOUT and _DONTNEED_LOCKED (asm-generic/mman-common.h)
_DROPPING_ADVICE: Final = (4, 8, 9, 20, 21, 24)
_PUNCH_HOLE: Final = 0x02  # FALLOC_FL_PUNCH_HOLE (linux/falloc.h)


def _kind(*names: str) -> pl.Expr:
    """Whether an event is of one of these kinds: compared by code, which is ten times as quick as by name."""
    code = pl.col("kind").to_physical()
    return pl.any_horizontal(code == KIND_CODE[name] for name in names)


Ints = np.ndarray[Any, np.dtype[np.int64]]

# Guests are told apart from garbage here: above 64 TiB of guest-physical span a page bitmap would not fit.
_MOST_PAGES: Final = 1 << 34
_LONGEST: Final = 1 << 32  # pages is a 32-bit number
_LAST_GFN: Final = 1 << 52  # more than any x86 guest can have; what lies beyond is drawn there
DISCARD: Final = (
    _kind("balloon_inflate", "free_page_report", "swap_out")
    | (_kind("madvise", "process_madvise") & pl.col("arg").fill_null(0).is_in(list(_DROPPING_ADVICE)))
    | (_kind("fallocate") & ((pl.col("arg").fill_null(0) & _PUNCH_HOLE) != 0))
)
"""Whether an event takes memory away from the guest; madvise and fallocate do with some arguments only."""

FAULT_KINDS: Final = ("ept_violation", "host_fault")
"""Faults that a VM waits for, where they are on guest memory (as the replay counts them)."""

_TOUCH_KINDS: Final = ("ept_violation", "host_fault", "guest_fault")


@dataclass(frozen=True)
class Extent:
    """The box that all charts share: time and guest-physical bounds, both inclusive."""

    start_ns: int
    stop_ns: int
    first_gfn: int
    last_gfn: int
    vms: int = 1
    events: int = 0

    @property
    def span_s(self) -> float:
        """Length in seconds."""
        return (self.stop_ns - self.start_ns) / 1e9

    @property
    def pages(self) -> int:
        """Pages from the first gfn to the last, both counted."""
        return self.last_gfn - self.first_gfn + 1

    @property
    def time_step_ns(self) -> int:
        """Width of a time bin in ns."""
        return (self.stop_ns - self.start_ns) // TIME_BINS + 1

    @property
    def gfn_step(self) -> int:
        """Height of a gfn bin in pages."""
        return (self.pages - 1) // GFN_BINS + 1

    @property
    def grid(self) -> Grid:
        """The cells that this box is cut into."""
        return Grid(
            self.start_ns, self.time_step_ns, TIME_BINS, self.first_gfn, self.gfn_step, GFN_BINS, self.pages
        )

    def time_bin(self) -> pl.Expr:
        """The event's time bin, 0 .. TIME_BINS - 1."""
        return ((pl.col("ts_ns") - self.start_ns) // self.time_step_ns).cast(pl.Int32).alias("time_bin")


class Outline:
    """What the charts need to know of one trace; each part is computed once, when first asked for."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace

    @cached_property
    def extent(self) -> Extent | None:
        """The box of the recording: from its start to its stop, and all gfns; None for an empty trace."""
        time, gfn = pl.col("ts_ns"), pl.col("gfn")
        box = self.trace.events.select(
            time.min().alias("start"),
            time.max().alias("stop"),
            gfn.min().alias("first_gfn"),
            gfn.max().alias("last_start"),
            (gfn + pl.col("pages")).max().alias("end_gfn"),
            pl.col("vm").max(),
            pl.len().alias("events"),
        )
        found = box.collect(engine="streaming").row(0, named=True)
        if not found["events"]:
            return None
        meta = self.trace.meta
        last_start = min(found["last_start"] or 0, _LAST_GFN)
        return Extent(
            start_ns=min(found["start"], found["start"] if meta.start_ns is None else meta.start_ns),
            stop_ns=max(found["stop"], meta.stop_ns or 0),
            first_gfn=min(found["first_gfn"] or 0, _LAST_GFN),
            last_gfn=max(last_start, min((found["end_gfn"] or 1) - 1, _LAST_GFN + _LONGEST)),
            vms=found["vm"] + 1,
            events=found["events"],
        )

    @cached_property
    def tally(self) -> pl.DataFrame:
        """Events by what they are, time bin and latency bin.

        Columns: kind, level (null = not known), major, present, returned (took memory away), located (of
        known guest memory), time_bin, latency_bin (see `latency_bin`; null = no latency is known), events,
        pages, latency_ns (sums).
        """
        if self.extent is None:
            return pl.DataFrame(schema=_TALLY)
        # One integer for all keys: grouping by it costs a fraction of grouping by eight columns.
        key = _packed(
            (pl.col("kind").to_physical(), _KIND_BITS),
            (pl.col("level").fill_null(0), _LEVEL_BITS),
            (pl.col("flags") & (FLAG_MAJOR | FLAG_PRESENT), _FLAG_BITS),
            (DISCARD, 1),
            (pl.col("gfn").is_not_null(), 1),
            (self.extent.time_bin(), _TIME_BITS),
            (latency_bin().fill_null(_NO_LATENCY), _LATENCY_BITS),
        )
        rows = (
            self.trace.events.group_by(key.alias("key"))
            .agg(
                pl.len().cast(pl.Int64).alias("events"),
                pl.col("pages").cast(pl.Int64).sum().alias("pages"),
                pl.col("latency_ns").sum().alias("latency_ns"),
            )
            .collect(engine="streaming")
        )
        return _unpacked(rows)

    @property
    def touch_kind(self) -> str | None:
        """The kind whose rows are the guest's touches: the MMU fault where recorded, else the host fault."""
        kinds = set(self.tally["kind"])
        return next((kind for kind in _TOUCH_KINDS if kind in kinds), None)

    @cached_property
    def heat(self) -> pl.DataFrame:
        """Pages by what happened, gfn bin and time bin: what, gfn_bin, time_bin, pages.

        `what` is "first touch" (the page's first fault in the trace), "refault" (a later one) or "discard";
        where the gfn span is too wide for a bitmap, first touches and refaults stay one: "fault".
        """
        extent, kind = self.extent, self.touch_kind
        if extent is None:
            return pl.DataFrame()
        parts = []
        if kind is not None:
            if extent.vms * extent.pages < _MOST_PAGES:
                first, every = count_touches(self.trace, kind, extent.grid, extent.vms)
                parts += [_cells(first, "first touch"), _cells(every - first, "refault")]
            else:
                faults = (pl.col("kind") == kind) & ((pl.col("flags") & FLAG_PRESENT) == 0)
                parts.append(_spread(self.trace.events.filter(faults), extent, "fault"))
        parts.append(_spread(self.trace.events.filter(DISCARD), extent, "discard"))
        return pl.concat(parts).sort("what", "gfn_bin", "time_bin")


_KIND_BITS, _LEVEL_BITS, _FLAG_BITS, _TIME_BITS, _LATENCY_BITS = 8, 8, 3, 8, 10
_NO_LATENCY: Final = (1 << _LATENCY_BITS) - 1
_TALLY: Final = pl.Schema(
    {
        "kind": pl.String(),
        "level": pl.UInt8(),
        "major": pl.Boolean(),
        "present": pl.Boolean(),
        "returned": pl.Boolean(),
        "located": pl.Boolean(),
        "time_bin": pl.Int32(),
        "latency_bin": pl.Int32(),
        "events": pl.Int64(),
        "pages": pl.Int64(),
        "latency_ns": pl.UInt64(),
    }
)


def latency_bin() -> pl.Expr:
    """Return floor(log10(ns) * BINS_PER_DECADE); null where no latency is known."""
    # 1,000 ns is the start of its bin, whatever the last bit of its logarithm.
    exact = pl.col("latency_ns").clip(1).log(10) * BINS_PER_DECADE + 1e-9
    return exact.floor().cast(pl.Int32).alias("latency_bin")


def _packed(*parts: tuple[pl.Expr, int]) -> pl.Expr:
    """Put several small numbers into one, each in its number of bits, the last one lowest."""
    key = pl.lit(0, pl.Int64)
    for part, bits in parts:
        key = key * (1 << bits) + part.cast(pl.Int64)
    return key


def _unpacked(rows: pl.DataFrame) -> pl.DataFrame:
    """Turn the keys of a tally back into its columns."""
    rest = pl.col("key")
    fields = {}
    for name, bits in (
        ("latency_bin", _LATENCY_BITS),
        ("time_bin", _TIME_BITS),
        ("located", 1),
        ("returned", 1),
        ("flags", _FLAG_BITS),
        ("level", _LEVEL_BITS),
        ("kind", _KIND_BITS),
    ):
        fields[name] = rest % (1 << bits)
        rest = rest // (1 << bits)
    opened = rows.with_columns(**fields).with_columns(
        pl.col("kind").replace_strict(dict(enumerate(KINDS)), return_dtype=pl.String),
        ((pl.col("flags") & FLAG_MAJOR) != 0).alias("major"),
        ((pl.col("flags") & FLAG_PRESENT) != 0).alias("present"),
        pl.when(pl.col("level") > 0).then("level").alias("level"),
        pl.when(pl.col("latency_bin") != _NO_LATENCY).then("latency_bin").alias("latency_bin"),
    )
    return opened.select(pl.col(name).cast(dtype) for name, dtype in _TALLY.items()).sort(list(_TALLY)[:8])


def _gfn() -> pl.Expr:
    return pl.col("gfn").clip(upper_bound=_LAST_GFN).cast(pl.Int64)


def _cells(pages: np.ndarray[Any, np.dtype[np.int64]], what: str) -> pl.DataFrame:
    cell = np.flatnonzero(pages)
    return pl.DataFrame(
        {"gfn_bin": cell // TIME_BINS, "time_bin": cell % TIME_BINS, "pages": pages[cell]},
        schema={"gfn_bin": pl.Int32, "time_bin": pl.Int32, "pages": pl.Int64},
    ).select(pl.lit(what).alias("what"), pl.all())


def _spread(events: pl.LazyFrame, extent: Extent, what: str) -> pl.DataFrame:
    """Sum pages per cell, a range that crosses gfn bins shared out among them."""
    step = extent.gfn_step
    start = _gfn() - extent.first_gfn
    ranges = (
        events.filter(pl.col("gfn").is_not_null())
        .select(
            extent.time_bin(), start.alias("start"), (start + pl.col("pages").cast(pl.Int64)).alias("end")
        )
        .with_columns(
            pl.col("start").clip(0), pl.col("end").clip(upper_bound=extent.last_gfn - extent.first_gfn + 1)
        )
        .filter(pl.col("end") > pl.col("start"))
    )
    low, high = pl.col("start") // step, (pl.col("end") - 1) // step
    whole = ranges.filter(low == high).select("start", "end", "time_bin", low.alias("gfn_bin"))
    across = (
        ranges.filter(low != high)
        .select("start", "end", "time_bin", pl.int_ranges(low, high + 1).alias("gfn_bin"))
        .explode("gfn_bin")
    )
    covered = pl.min_horizontal("end", (pl.col("gfn_bin") + 1) * step) - pl.max_horizontal(
        "start", pl.col("gfn_bin") * step
    )
    return (
        pl.concat([whole, across])
        .group_by(pl.col("gfn_bin").cast(pl.Int32), "time_bin")
        .agg(covered.sum().alias("pages"))
        .select(pl.lit(what).alias("what"), "gfn_bin", "time_bin", "pages")
        .collect(engine="streaming")
    )
