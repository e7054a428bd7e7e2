"""What the charts draw from a trace, against figures worked out by hand and a slow reference."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.report_example import MS, START, write_example
from tracekit.report.outline import GFN_BINS, TIME_BINS, Outline
from tracekit.trace import Trace, events_batch


def test_absurd_gfns_and_sizes_draw_without_overflow() -> None:
    batch = events_batch(
        ts_ns=[1, 2, 2**64 - 1],
        kind=["ept_violation", "balloon_inflate", "balloon_inflate"],
        gfn=np.array([2**64 - 1, 2**63, 0], np.uint64),
        pages=[2**32 - 1, 2**32 - 1, 2**32 - 1],
    )
    heat = Outline(in_memory(batch)).heat
    sums = dict(heat.group_by("what").agg(pl.col("pages").sum()).iter_rows())
    assert sums == {"fault": 2**32 - 1, "discard": 2 * (2**32 - 1)}


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    return write_example(tmp_path_factory.mktemp("outline") / "example.trace")


def in_memory(batch: Any) -> Any:
    """A trace of one batch that was never on disk."""
    frame = pl.from_arrow(batch)
    assert isinstance(frame, pl.DataFrame)
    meta = SimpleNamespace(start_ns=None, stop_ns=None)
    return SimpleNamespace(
        meta=meta, events=frame.lazy(), batches=lambda columns: iter([batch.select(columns)])
    )


def test_extent_is_the_box_of_all_located_events(trace: Trace) -> None:
    extent = Outline(trace).extent
    assert extent is not None
    assert (extent.start_ns, extent.stop_ns) == (START, START + 4000 * MS)
    # 40 faults of 2 MiB from gfn 4096 on: the last page is 4096 + 40 * 512 - 1.
    assert (extent.first_gfn, extent.last_gfn) == (0, 4096 + 40 * 512 - 1)


def test_heat_counts_every_page_once_by_what_happened(trace: Trace) -> None:
    heat = Outline(trace).heat
    sums = dict(heat.group_by("what").agg(pl.col("pages").sum()).iter_rows())
    # 1,000 pages + 40 x 512; 100 touched again; 100 by madvise(DONTNEED) + 64 by balloon.
    assert sums == {"first touch": 1000 + 40 * 512, "refault": 100, "discard": 164}
    late = heat.filter(pl.col("what") == "refault")
    # 3.000 .. 3.099 s of 4 s in 160 bins of 25 ms (and 1 ns): bins 119 to 123.
    assert late["time_bin"].is_between(119, 123).all()
    assert late["gfn_bin"].unique().to_list() == [0]


def test_stall_and_events_over_time_add_up_to_the_trace(trace: Trace) -> None:
    outline = Outline(trace)
    own = outline.tally.filter(pl.col("kind") == "ept_violation")
    # 1,100 x 3 us + 40 x 200 us
    assert own["latency_ns"].sum() == 1100 * 3_000 + 40 * 200_000
    assert own["events"].sum() == 1140
    assert outline.extent is not None
    assert outline.tally["events"].sum() == outline.extent.events == 1140 + 100 + 1
    assert outline.touch_kind == "ept_violation"


def test_latency_bins_hold_their_latency(trace: Trace) -> None:
    bins = (
        Outline(trace)
        .tally.drop_nulls("latency_bin")
        .group_by("level", "latency_bin")
        .agg(pl.col("events").sum())
    )
    found = {(level, at): events for level, at, events in bins.iter_rows()}
    # floor(50 * log10(3,000)) = 173, floor(50 * log10(200,000)) = 265
    assert found == {(1, 173): 1100, (2, 265): 40}


def test_empty_trace_has_no_extent_and_no_heat() -> None:
    outline = Outline(in_memory(events_batch(ts_ns=np.array([], np.uint64), kind="map")))
    assert outline.extent is None
    assert outline.heat.height == 0
    assert outline.tally.height == 0


def test_events_without_a_place_are_counted_but_not_drawn() -> None:
    outline = Outline(in_memory(events_batch(ts_ns=[5, 6], kind="ept_violation", latency_ns=7)))
    assert outline.tally["events"].sum() == 2
    assert outline.heat.height == 0


def test_a_range_over_many_bins_is_shared_out_among_them() -> None:
    pages = GFN_BINS * 10
    batch = events_batch(
        ts_ns=[0, 1, 2],
        kind=["ept_violation", "ept_violation", "balloon_inflate"],
        gfn=[0, pages - 1, 5],
        pages=[1, 1, pages - 10],
    )
    heat = Outline(in_memory(batch)).heat.filter(pl.col("what") == "discard").sort("gfn_bin")
    # Bins of 10 pages: the range 5 .. 634 of 640 leaves out 5 pages at either end.
    assert heat["pages"].to_list() == [5, *[10] * (GFN_BINS - 2), 5]


def test_only_advice_that_drops_memory_is_a_discard() -> None:
    kinds = ["madvise"] * 4 + ["fallocate"] * 2 + ["map"]
    args = [
        4,
        14,
        3,
        21,
        3,
        1,
        4,
    ]  # DONTNEED, HUGEPAGE, WILLNEED, PAGEOUT; PUNCH_HOLE | KEEP_SIZE, KEEP_SIZE; -
    batch = events_batch(ts_ns=range(7), kind=kinds, gfn=range(7), arg=args)
    heat = Outline(in_memory(batch)).heat
    assert heat.filter(pl.col("what") == "discard")["pages"].sum() == 3


def test_a_fault_on_a_present_entry_is_no_touch() -> None:
    batch = events_batch(ts_ns=[1, 2], kind="ept_violation", gfn=[1, 1], flags=[0, 4])
    assert Outline(in_memory(batch)).heat["pages"].to_list() == [1]


@pytest.mark.parametrize("gfn", [2**64 - 1, 2**63])
def test_a_fault_beyond_what_can_be_addressed_is_not_written_anywhere(gfn: int) -> None:
    batch = events_batch(ts_ns=[1, 2], kind="ept_violation", vcpu=0, gfn=[gfn, gfn], level=1)
    heat = Outline(in_memory(batch)).heat
    assert heat.filter(pl.col("what") != "discard").is_empty()


def test_a_span_too_wide_for_a_page_bitmap_still_draws() -> None:
    batch = events_batch(ts_ns=[1, 2, 3], kind="ept_violation", gfn=[0, 1 << 40, 0])
    heat = Outline(in_memory(batch)).heat
    assert dict(heat.group_by("what").agg(pl.col("pages").sum()).iter_rows()) == {"fault": 3}


touches = st.lists(st.tuples(st.integers(0, 40), st.sampled_from([1, 2, 512])), min_size=1, max_size=80)


@settings(deadline=None, max_examples=40)
@given(touches)
def test_heat_agrees_with_a_slow_reference(touched: list[tuple[int, int]]) -> None:
    gfn = np.array([page for page, _ in touched]) * 1000
    pages = np.array([count for _, count in touched])
    ts_ns = np.arange(len(touched)) * 7
    outline = Outline(in_memory(events_batch(ts_ns=ts_ns, kind="ept_violation", gfn=gfn, pages=pages)))
    extent = outline.extent
    assert extent is not None
    seen: set[int] = set()
    cells: dict[tuple[str, int, int], int] = {}
    for when, page, count in zip(ts_ns.tolist(), gfn.tolist(), pages.tolist(), strict=True):
        what = "refault" if page in seen else "first touch"
        seen.add(page)
        cell = (what, (page - extent.first_gfn) // extent.gfn_step, when // extent.time_step_ns)
        cells[cell] = cells.get(cell, 0) + count
    drawn = {(w, g, t): n for w, g, t, n in outline.heat.iter_rows()}
    assert drawn == cells
    assert max(t for _, _, t in drawn) < TIME_BINS
    assert max(g for _, g, _ in drawn) < GFN_BINS
