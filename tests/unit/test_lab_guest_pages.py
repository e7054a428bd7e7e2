"""What a guest's kernel said of its pages, as the guest side of a trace."""

from __future__ import annotations

import base64
import gzip
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tracekit.errors import FailedError
from tracekit.lab.guest_pages import GuestPages, as_trace
from tracekit.trace.schema import FLAG_ATTACH, FLAG_ZEROED

BUDDY = 1 << 10
EVENTS = """# tracer: nop
sed-9 [000] .....   1999000: mm_page_alloc: page=1 pfn=0x2 order=1 migratetype=0 gfp_flags=GFP_KERNEL
sed-9 [000] .....   1999500: mm_page_free: page=1 pfn=0x2 order=0
sh-1 [000] .....   2000000: tracing_mark_write: tracekit 0
sh-1 [000] .....   2000900: tracing_mark_write: tracekit 1
x-70-70 [000] d..2. 2001000: mm_page_alloc: page=1 pfn=0x7 order=1 migratetype=1 gfp_flags=GFP_USER|__GFP_ZERO
x-70 [000] .....   2001100: mm_page_alloc: page=0 pfn=0x0 order=0 migratetype=1 gfp_flags=GFP_KERNEL
rm-71 [000] .....   3000000: mm_page_free: page=1 pfn=0x4 order=0
sh-1 [000] .....   4000000: tracing_mark_write: tracekit 2
sh-1 [000] .....   4000900: tracing_mark_write: tracekit 3
"""
EARLY, LATE = 10_000_000, 11_000_000
MARKS = [(EARLY, EARLY + 9000), (EARLY - 70, EARLY + 950), (LATE, LATE + 9000), (LATE - 70, LATE + 950)]


def packed(content: bytes) -> str:
    return base64.b64encode(gzip.compress(content)).decode()


def pages(events: str, *, zeroes_all: bool = False) -> GuestPages:
    #                 0  1  2      3  4      5      6  7      8
    flags = np.array([0, 0, BUDDY, 0, BUDDY, BUDDY, 0, BUDDY, 0], np.uint64)
    return GuestPages(packed(flags.tobytes()), packed(events.encode()), MARKS, zeroes_all)


def test_pages_free_at_the_start_and_each_one_given_and_freed_on_the_hosts_clock(tmp_path: Path) -> None:
    trace = as_trace(pages(EVENTS), tmp_path / "guest.trace")
    rows = trace.events.select("ts_ns", "kind", "gfn", "pages", "tid", "flags").collect().rows()
    # 2 GHz; marks of an end together: the first not before EARLY, the next (450 ns on) not after EARLY + 950.
    mark = EARLY + 250
    first = mark - 500
    assert rows == [
        # Free at the start: 2, 3, 7 and 8, given out first; 5, of which nothing is told; not 4, freed first.
        (first - 1, "page_free", 2, 2, 0, FLAG_ATTACH),
        (first - 1, "page_free", 5, 1, 0, FLAG_ATTACH),
        (first - 1, "page_free", 7, 2, 0, FLAG_ATTACH),
        (first, "page_alloc", 2, 2, 9, 0),
        (first + 250, "page_free", 2, 1, 9, 0),
        (mark + 500, "page_alloc", 7, 2, 70, FLAG_ZEROED),
        (mark + 500_000, "page_free", 4, 1, 71, 0),
    ]
    assert trace.meta.clock["uncertainty_ns"] == 250


def test_a_kernel_that_zeroes_all_pages_is_believed(tmp_path: Path) -> None:
    rows = as_trace(pages(EVENTS, zeroes_all=True), tmp_path / "guest.trace").events.collect()
    assert rows.filter(pl.col("kind") == "page_alloc")["flags"].to_list() == [FLAG_ZEROED] * 2


def test_events_without_the_marks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FailedError, match="lack its marks"):
        as_trace(pages(EVENTS.replace("tracekit 2", "other").replace("tracekit 3", "other")), tmp_path / "g")
