"""What every question shares: the keys of a VM, the kinds that back or drop pages, spans of time."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Concatenate, Final, ParamSpec

import polars as pl

from tracekit.errors import UsageError
from tracekit.trace.schema import ACCESS_WRITE, EVENTS, FLAG_ZEROED

__all__ = [
    "BACKS",
    "DROPS",
    "FAULT_KINDS",
    "TOUCH_KINDS",
    "bucket_ns",
    "by_vm",
    "keys_of",
    "nanoseconds",
    "page_events",
    "page_key",
    "question",
    "same_page",
]

Arguments = ParamSpec("Arguments")

FAULT_KINDS: Final = ("ept_violation", "host_fault")
"""Faults that give a guest page a host page."""

TOUCH_KINDS: Final = ("ept_violation", "host_fault", "swap_in", "access", "page_alloc")
"""Rows that say a guest page was touched."""

_MADV_DONTNEED, _MADV_REMOVE, _MADV_PAGEOUT = 4, 9, 21
_PUNCH_HOLE = 2  # FALLOC_FL_PUNCH_HOLE
_ADVICES: Final = ("madvise", "process_madvise")

DROPS: Final = (
    pl.col("kind").is_in(["balloon_inflate", "free_page_report", "swap_out"])
    | (
        pl.col("kind").is_in(list(_ADVICES))
        & pl.col("arg").is_in([_MADV_DONTNEED, _MADV_REMOVE, _MADV_PAGEOUT])
    )
    | ((pl.col("kind") == "fallocate") & (pl.col("arg") & _PUNCH_HOLE != 0))
)
"""Rows after which the host no longer has the pages."""

BACKS: Final = pl.col("kind").is_in([*FAULT_KINDS, "map", "swap_in"])
"""Rows after which the host has the pages."""

_UNITS: Final = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}


def question(
    answer: Callable[Concatenate[pl.LazyFrame, Arguments], pl.LazyFrame],
) -> Callable[Concatenate[pl.LazyFrame, Arguments], pl.LazyFrame]:
    """Make a question say at once, and in our words, that a frame is not one of events (UsageError).

    >>> question(lambda events: events.select("gfn"))(pl.LazyFrame({"page": [1]}))
    Traceback (most recent call last):
    tracekit.errors.UsageError: the frame has no column gfn
    """

    @functools.wraps(answer)
    def asked(events: pl.LazyFrame, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> pl.LazyFrame:
        try:
            answered = answer(events, *args, **kwargs)
            answered.collect_schema()
        except pl.exceptions.PolarsError as error:
            have = events.collect_schema().names()
            missing = [name for name in EVENTS.names if name not in have and f'"{name}"' in str(error)]
            what = (
                f"no column {missing[0]}"
                if missing
                else f"not the columns of events: {error}".splitlines()[0]
            )
            hint = "tracekit.open(PATH).events has them all; keep those that the question needs"
            raise UsageError(f"the frame has {what}", hint=hint) from None
        return answered

    return asked


def nanoseconds(span: str | int) -> int:
    """Return nanoseconds of "250ms", "1s", or of a plain number of them; UsageError for anything else.

    >>> nanoseconds("250ms"), nanoseconds("1.5s"), nanoseconds(7)
    (250000000, 1500000000, 7)
    """
    if isinstance(span, int) and span > 0:
        return span
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]+)", str(span))
    if not match or match[2] not in _UNITS or float(match[1]) <= 0:
        raise UsageError(f"{span!r} is not a span of time", hint="250ms, 1s, 5m")
    return round(float(match[1]) * _UNITS[match[2]])


def bucket_ns(every: str | int) -> pl.Expr:
    """Return the start of the `every` long bucket that `ts_ns` is in."""
    width = nanoseconds(every)
    return (pl.col("ts_ns") // width * width).alias("ts_ns")


def keys_of(events: pl.LazyFrame) -> list[str]:
    """Return the columns that name a VM: `vm`, and `trace` where there are several."""
    return ["trace", "vm"] if "trace" in events.collect_schema() else ["vm"]


def page_key(keys: list[str]) -> pl.Expr:
    """Return one integer `page` that stands for a page of a VM (of a trace): one key sorts quickest.

    A gfn has at most 40 bits on today's machines (52 bits of physical address); 48 are kept for it.
    """
    vm_page = pl.col("vm").cast(pl.UInt64) * (1 << 48) + pl.col("gfn")
    if "trace" in keys:  # wider, and so slower: only where it must be
        vm_page = pl.col("trace").to_physical().cast(pl.Int128) * (1 << 64) + vm_page.cast(pl.Int128)
    return vm_page.alias("page")


def page_events(events: pl.LazyFrame, keys: list[str], *, only: pl.Expr | None = None) -> pl.LazyFrame:
    """Return one row per 4 KiB page and event that backs, drops or allocates it, sorted by page, then time.

    Columns: keys, page (see `page_key`), gfn, ts_ns, kind, backs, drops, write (or not known), zeroed (by the
    guest). Rows whose gfn is not known are left out; `only` keeps some rows.
    """
    what = pl.col("gfn").is_not_null() & (BACKS | DROPS | (pl.col("kind") == "page_alloc"))
    chosen = events.filter(what if only is None else what & only).select(
        *keys,
        "ts_ns",
        "kind",
        gfn=pl.int_ranges("gfn", pl.col("gfn") + pl.col("pages").clip(1), dtype=pl.UInt64),
        backs=BACKS,
        drops=DROPS.fill_null(False),
        write=(pl.col("access") == 0) | (pl.col("access") & ACCESS_WRITE != 0),
        zeroed=pl.col("flags") & FLAG_ZEROED != 0,
    )
    # Events are in time order already: a stable sort by one integer keeps it inside each page.
    return chosen.explode("gfn").with_columns(page_key(keys)).sort("page", maintain_order=True)


def by_vm(events: pl.LazyFrame, keys: list[str]) -> pl.LazyFrame:
    """Sort by the keys and leave the order inside each as it is: a stable pass per key, the last first."""
    for name in reversed(keys):
        events = events.sort(name, maintain_order=True)
    return events


def same_page(step: int) -> pl.Expr:
    """Say whether the row `step` before (negative: after) is of the same page; needs rows sorted by page."""
    return (pl.col("page") == pl.col("page").shift(step)).fill_null(False)
