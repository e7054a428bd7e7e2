"""The questions of `.tk` on traces whose answers are known, and against plain Python that goes row by row."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracekit.datasets.catalog import trace_path
from tracekit.datasets.frame import plots, scan
from tracekit.datasets.frame.columns import nanoseconds, page_events, same_page
from tracekit.datasets.frame.namespace import EventsNamespace, EventsPlots
from tracekit.datasets.synthetic import GENERATORS
from tracekit.datasets.synthetic.make import make_trace
from tracekit.errors import UsageError
from tracekit.trace import events_batch, open_trace
from tracekit.trace.schema import KIND_CODE

SMALL: dict[str, dict[str, Any]] = {
    "scan": {"pages": 61, "limit": 17},
    "swap-thrash": {"pages": 211, "limit": 101},
    "working-set": {"pages": 509},
    "fork-bomb": {"wave_pages": 307},
}
QUESTIONS = [name for name in vars(EventsPlots) if not name.startswith("_")]


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[EventsNamespace, dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("questions")
    out = {}
    for name, generator in GENERATORS.items():
        make_trace(generator(events=5_003, seed=11, block_rows=1024, **SMALL.get(name, {})), folder / name)
        trace = open_trace(folder / name)
        out[name] = (EventsNamespace(trace.events), trace.meta.extra["truth"])
    return out


Traces = dict[str, tuple[EventsNamespace, dict[str, Any]]]

ONE_VM = ("boot-linux", "boot-windows", "working-set", "scan", "swap-thrash", "balloon-storm", "fork-bomb")


def test_first_touches_are_as_many_as_the_truth_says(traces: Traces) -> None:
    for name in ONE_VM:
        ask, truth = traces[name]
        answer = ask.first_touches().collect()
        assert answer.height == truth["first_touches"], name
        assert answer["ts_ns"].is_sorted()
    _, truth = traces["serverless-restore"]
    by_vm = traces["serverless-restore"][0].first_touches().collect().group_by("vm").len().sort("vm")
    assert by_vm["len"].to_list() == [clone["faults"] for clone in truth["clones"]]


def test_faults_per_second_counts_each_fault_once_and_empty_spans_as_zero(traces: Traces) -> None:
    ask, truth = traces["balloon-storm"]
    answer = ask.faults_per_second("10ms").collect()
    assert answer["faults"].sum() == truth["rows"]["ept_violation"]
    assert answer["stall_ns"].sum() == truth["latency_ns"]["ept_violation"]
    assert answer["ts_ns"].diff().drop_nulls().unique().to_list() == [10_000_000]
    assert (answer["faults"] == 0).any()  # the storm rests between its steps
    assert (answer["faults_per_s"] == answer["faults"] * 100).all()


def test_latency_quantiles_are_latencies_that_occurred(traces: Traces) -> None:
    ask, truth = traces["scan"]
    answer = ask.latency_quantiles([0, 0.5, 0.99]).collect()
    rows = traces["scan"][0]._events.filter(pl.col("kind") == "swap_in").collect()["latency_ns"].sort()
    swap = answer.row(by_predicate=pl.col("kind") == "swap_in", named=True)
    assert swap["count"] == truth["swap_ins"]
    assert swap["total_ns"] == truth["latency_ns"]["swap_in"]
    assert swap["p0_ns"] == rows[0]
    assert swap["max_ns"] == rows[-1]
    assert swap["p50_ns"] == rows[round(0.5 * (rows.len() - 1))]
    assert swap["p99_ns"] == rows[round(0.99 * (rows.len() - 1))]


def test_resident_curve_passes_through_every_point_of_the_truth(traces: Traces) -> None:
    for name in ONE_VM:
        ask, truth = traces[name]
        curve = ask.resident_curve().collect()
        at = curve["ts_ns"].to_numpy()
        for ts, pages in truth["resident_curve"]:
            index = int(np.searchsorted(at, ts, "right")) - 1
            assert curve["resident_pages"][index] == pages, (name, ts)
        assert (curve["resident_bytes"] == curve["resident_pages"] * 4096).all()
        thinned = ask.resident_curve("1ms").collect()
        assert thinned["resident_pages"][-1] == curve["resident_pages"][-1]
        assert thinned.height <= curve.height


def test_refault_distance_of_a_scan_is_what_does_not_fit(traces: Traces) -> None:
    ask, truth = traces["scan"]
    answer = ask.refault_distance().collect()
    assert answer.height == truth["swap_ins"]
    assert set(answer["distance"]) == {truth["refault_distance_pages"]}


def test_swap_gaps_are_those_of_the_truth(traces: Traces) -> None:
    ask, truth = traces["swap-thrash"]
    assert ask.refault_distance().collect().height == truth["swap_ins"]
    assert gaps(ask.reuse_after_discard().collect()) == truth["swapped_gap"]


def test_reuse_after_a_balloon_is_that_of_the_truth(traces: Traces) -> None:
    ask, truth = traces["balloon-storm"]
    answer = ask.reuse_after_discard().collect()
    assert answer.height == truth["discarded_backed"]
    assert gaps(answer) == truth["reuse_gap"]
    assert set(answer["kind"]) == {"balloon_inflate"}


def gaps(answer: pl.DataFrame) -> dict[str, Any]:
    closed = answer["gap_ns"].drop_nulls().to_list()
    log2: dict[str, int] = defaultdict(int)
    for gap in sorted(closed):
        log2[str(gap.bit_length() - 1)] += 1
    return {
        "count": len(closed),
        "sum_ns": sum(closed),
        "log2_ns": dict(log2),
        "open": answer["gap_ns"].null_count(),
    }


def test_working_set_of_each_phase_is_that_of_the_truth(traces: Traces) -> None:
    ask, truth = traces["working-set"]
    start = 0
    for phase in truth["phases"]:
        only = ask._events.filter(pl.col("ts_ns").is_between(start + 1, phase["end_ns"]))
        answer = EventsNamespace(only).working_set_curve("1h").collect()
        assert answer["working_set_pages"].to_list() == [phase["distinct_pages"]]
        start = phase["end_ns"]


def test_of_sampled_regions_a_window_has_the_largest_snapshot() -> None:
    rows = events_batch(
        ts_ns=[10, 10, 20, 20, 20, 1_000_000_010],
        kind="access",
        gfn=[0, 100, 0, 50, 200, 0],
        pages=[50, 7, 50, 150, 8, 9],
        arg=[1, 2, 3, 0, 1, 1],
    )
    ask = EventsNamespace(pl.DataFrame(rows).lazy())
    answer = ask.working_set_curve("1s").collect()
    assert answer.select("ts_ns", "working_set_pages").rows() == [(0, 58), (1_000_000_000, 9)]


def test_heatmap_puts_every_touch_in_its_bin(traces: Traces) -> None:
    ask, truth = traces["working-set"]
    answer = ask.heatmap(7, 5).collect()
    assert answer["touches"].sum() == truth["rows"]["access"] + truth["rows"]["ept_violation"]
    width, pages = answer["bin_ns"][0], answer["bin_pages"][0]
    events = ask._events.collect()
    start, low = events["ts_ns"].min(), events["gfn"].min()
    expected: dict[tuple[int, int], int] = defaultdict(int)
    for ts, gfn in events.select("ts_ns", "gfn").iter_rows():
        expected[(ts - start) // width * width + start, (gfn - low) // pages * pages + low] += 1
    assert {(ts, gfn): n for ts, gfn, n in answer.select("ts_ns", "gfn", "touches").iter_rows()} == expected
    assert answer["ts_ns"].n_unique() == 7
    assert answer["gfn"].n_unique() == 5


def test_a_wide_region_heats_all_its_bins() -> None:
    rows = events_batch(ts_ns=[0, 9], kind="access", gfn=[0, 0], pages=[100, 10], arg=[3, 1])
    answer = EventsNamespace(pl.DataFrame(rows).lazy()).heatmap(1, 10).collect()
    assert answer.select("gfn", "touches").rows() == [(0, 4), *((10 * n, 3) for n in range(1, 10))]


def test_hot_regions_are_the_fewest_that_have_the_share(traces: Traces) -> None:
    ask, _ = traces["working-set"]
    answer = ask.hot_cold_regions(region_pages=16, share=0.5).collect()
    touches = answer["touches"].to_list()
    assert touches == sorted(touches, reverse=True)
    hot = int(answer["hot"].sum())
    total = sum(touches)
    assert sum(touches[: hot - 1]) < 0.5 * total <= sum(touches[:hot])
    assert answer["idle_ns"].min() == 0
    assert answer["pages_touched"].max() <= 16


def test_double_zeroed_bytes_are_exact_with_guest_rows_and_bounds_without(traces: Traces) -> None:
    ask, truth = traces["fork-bomb"]
    assert ask.double_zeroed_bytes().collect().row(0) == (
        0,
        truth["double_zeroed_bytes"],
        truth["double_zeroed_bytes"],
        "measured",
    )
    host_only = EventsNamespace(ask._events.filter(pl.col("kind") == "ept_violation"))
    bound = host_only.double_zeroed_bytes().collect().row(0, named=True)
    assert bound["low_bytes"] == 0
    assert bound["high_bytes"] == truth["first_touches"] * 4096 >= truth["double_zeroed_bytes"]
    windows, truth = traces["boot-windows"]
    assert windows.double_zeroed_bytes().collect()["high_bytes"].to_list() == [truth["double_zeroed_bytes"]]


CODES = [
    KIND_CODE[k]
    for k in ("ept_violation", "balloon_inflate", "swap_in", "swap_out", "page_alloc", "page_free")
]


@given(
    st.lists(
        st.tuples(st.sampled_from(CODES), st.integers(0, 5), st.integers(1, 3), st.booleans()), max_size=40
    )
)
@settings(max_examples=200, deadline=None)
def test_page_states_are_those_of_a_plain_automaton(rows: list[tuple[int, int, int, bool]]) -> None:
    """Residency, reuse and double zeroing, page by page in plain Python, on any order of events."""
    kind, gfn, pages, zeroed = (
        (list(column) for column in zip(*rows, strict=True)) if rows else ([], [], [], [])
    )
    batch = events_batch(
        ts_ns=np.arange(1, len(rows) + 1, dtype=np.uint64),
        kind=np.array(kind, np.uint8),
        gfn=np.array(gfn, np.uint64),
        pages=np.array(pages, np.uint32),
        access=2,
        flags=np.array(zeroed, np.uint32) * 2,
    )
    ask = EventsNamespace(pl.DataFrame(batch).lazy())
    fault, inflate, swap_in, swap_out, alloc = CODES[:5]
    held: set[int] = set()
    curve = {}
    for ts, (code, first, count, _) in enumerate(rows, start=1):
        for page in range(first, first + count):
            if code in (fault, swap_in):
                held.add(page)
            if code in (inflate, swap_out) and page in held:
                held.discard(page)
        curve[ts] = len(held)
    got = ask.resident_curve().collect()
    changes = dict(got.select("ts_ns", "resident_pages").iter_rows())
    last = 0
    for ts, count in curve.items():
        last = changes.get(ts, last)
        assert last == count

    # Reuse and double zeroing look at faults only: a page that swap-in brought back is not discarded again.
    known: set[int] = set()
    fresh: set[int] = set()
    discards: list[tuple[int, int, int | None]] = []
    open_at: dict[int, int] = {}
    twice = most = 0
    for ts, (code, first, count, zero) in enumerate(rows, start=1):
        for page in range(first, first + count):
            if code == fault:
                if page in open_at:
                    discards[open_at.pop(page)] = (page, discards_ts(discards, page), ts)
                if page not in known:
                    most += 1
                    fresh.add(page)
                else:
                    fresh.discard(page)
                known.add(page)
            elif code in (inflate, swap_out):
                if page in known:
                    open_at[page] = len(discards)
                    discards.append((page, ts, None))
                known.discard(page)
                fresh.discard(page)
            elif code == alloc:
                twice += zero and page in fresh
                fresh.discard(page)
    answer = ask.reuse_after_discard().collect()
    assert sorted(answer.select("gfn", "discard_ns", "reuse_ns").rows(), key=str) == sorted(discards, key=str)
    zeros = ask.double_zeroed_bytes().collect()
    if zeros.height:
        seen = any(code == alloc for code, *_ in rows)
        expected = (twice * 4096, twice * 4096) if seen else (0, most * 4096)
        assert zeros.select("low_bytes", "high_bytes").row(0) == expected


def discards_ts(discards: list[tuple[int, int, int | None]], page: int) -> int:
    return next(ts for gfn, ts, reuse in reversed(discards) if gfn == page and reuse is None)


def test_a_filter_on_an_answer_does_not_change_the_question(traces: Traces) -> None:
    for name in ("swap-thrash", "fleet"):
        for question in ("first_touches", "resident_curve", "reuse_after_discard"):
            answer = getattr(traces[name][0], question)()
            whole = answer.collect()
            at = whole.columns.index("vm") + 1
            late = pl.col(next(c for c in whole.columns[at:] if c.endswith("_ns"))) > 10_000_000
            for engine in ("streaming", "in-memory"):
                assert answer.filter(late).collect(engine=engine).equals(whole.filter(late)), (name, question)


def test_pages_of_several_traces_and_vms_are_told_apart(tmp_path: Path) -> None:
    for seed in (1, 2):
        make_trace(GENERATORS["fleet"](events=997, size=3, seed=seed), tmp_path / f"f{seed}.trace")
    both = scan(str(tmp_path / "*.trace"))
    for question in ("first_touches", "resident_curve", "reuse_after_discard"):
        together = getattr(EventsNamespace(both), question)().collect()
        for name in ("f1", "f2"):
            alone = getattr(EventsNamespace(open_trace(tmp_path / f"{name}.trace").events), question)()
            mine = together.filter(pl.col("trace") == name).drop("trace")
            assert mine.equals(alone.collect()), (question, name)


def test_a_real_recording_answers_too() -> None:
    ask = EventsNamespace(open_trace(trace_path("small-guest-zero-then-use")).events)
    touched = ask.first_touches().collect()
    # The guest's own, and the few pages that the VMM wrote to build it.
    assert set(range(512, 512 + 4 * 16_411)) <= set(touched["gfn"])
    assert 4 * 16_411 < touched.height < 4 * 16_411 + 16
    assert ask.resident_curve().collect()["resident_pages"][-1] == touched.height
    bounds = ask.double_zeroed_bytes().collect().row(0, named=True)
    assert (bounds["low_bytes"], bounds["label"]) == (0, "bounded")
    assert bounds["high_bytes"] >= 4 * 16_411 * 4096


@pytest.mark.parametrize("question", QUESTIONS)
def test_every_question_has_a_chart_that_renders(traces: Traces, question: str) -> None:
    import vl_convert

    for name in ("swap-thrash", "fleet"):
        chart = getattr(traces[name][0].plot, question)()
        svg = vl_convert.vegalite_to_svg(chart.to_json())
        assert svg.startswith("<svg")
        assert len(chart.to_dict()["data"]["values"]) <= plots.MAX_POINTS


def test_scan_joins_traces_by_name_and_pattern(tmp_path: Path) -> None:
    for seed in (1, 2):
        make_trace(GENERATORS["boot-linux"](events=101 * seed, seed=seed), tmp_path / f"boot-{seed}.trace")
    both = scan(str(tmp_path / "*.trace"))
    rows = both.group_by("trace").len().sort("trace").collect()
    assert dict(rows.cast({"trace": pl.String}).iter_rows()) == {"boot-1": 101, "boot-2": 202}
    touches = EventsNamespace(both).first_touches().collect()
    assert touches.columns[:3] == ["trace", "vm", "gfn"]
    assert touches.height == 303
    assert scan(open_trace(tmp_path / "boot-1.trace")).collect().height == 101
    pushed = both.filter(pl.col("trace") == "boot-2", pl.col("gfn") < 3).select("gfn").collect()
    assert sorted(pushed["gfn"]) == [0, 1, 2]


def test_scan_says_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no trace matches"):
        scan(str(tmp_path / "*.trace"))
    with pytest.raises(UsageError, match="no trace at"):
        scan(tmp_path / "x.trace")
    with pytest.raises(UsageError, match="no traces to scan"):
        scan([])
    make_trace(GENERATORS["boot-linux"](events=101), tmp_path / "x.trace")
    with pytest.raises(UsageError, match="meant twice"):
        scan([tmp_path / "x.trace", tmp_path / "x.trace"])


def test_bad_parameters_are_usage_errors(traces: Traces) -> None:
    ask, _ = traces["scan"]
    for call in (
        lambda: ask.faults_per_second("often"),
        lambda: ask.faults_per_second("0s"),
        lambda: ask.heatmap(0, 1),
        lambda: ask.hot_cold_regions(share=2),
        lambda: nanoseconds("-1s"),
    ):
        with pytest.raises(UsageError):
            call()


def sorted_curve(events: pl.LazyFrame, every: int | None) -> pl.DataFrame:
    """The resident curve by its definition: page by page, what each row finds, then summed up in time."""
    pages = page_events(events, ["vm"], only=pl.col("kind") != "page_alloc")
    was = pl.col("backs").shift().fill_null(False) & same_page(1)
    change = (pl.col("backs") & ~was).cast(pl.Int64) - (pl.col("drops") & was).cast(pl.Int64)
    changes = pages.select("vm", "ts_ns", change=change).filter(pl.col("change") != 0)
    if every is not None:
        changes = changes.with_columns(ts_ns=(pl.col("ts_ns") // every + 1) * every)
    summed = changes.group_by("vm", "ts_ns").agg(pl.col("change").sum()).sort("vm", "ts_ns")
    resident = pl.col("change").cum_sum().over("vm")
    return summed.select("vm", "ts_ns", resident_pages=resident, resident_bytes=4096 * resident).collect()


@given(
    st.lists(
        st.tuples(
            st.sampled_from([KIND_CODE[k] for k in ("ept_violation", "map", "free_page_report", "madvise")]),
            st.integers(0, 2),
            st.sampled_from([0, 1, 62, 32_767, 32_768, 1 << 30, (1 << 40) - 1]),
            st.sampled_from([1, 2, 3, 64, 65, 512, 40_000]),
            st.sampled_from([3, 4, 9]),
            st.integers(0, 40),
        ),
        max_size=30,
    ),
    st.sampled_from([None, 7]),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_the_resident_curve_is_that_of_its_definition(
    rows: list[tuple[int, ...]], every: int | None, in_order: bool
) -> None:
    columns = [list(column) for column in zip(*rows, strict=True)] if rows else [[]] * 6
    times = sorted(columns[5]) if in_order else columns[5]
    batch = events_batch(
        ts_ns=np.array(times, np.uint64),
        kind=np.array(columns[0], np.uint8),
        vm=np.array(columns[1], np.uint16),
        gfn=np.array(columns[2], np.uint64),
        pages=np.array(columns[3], np.uint32),
        arg=np.array(columns[4], np.uint64),
    )
    events = pl.DataFrame(batch).lazy()
    assert EventsNamespace(events).resident_curve(every).collect().equals(sorted_curve(events, every))


def test_absurd_pages_cost_what_they_name_or_are_refused() -> None:
    rows = events_batch(
        ts_ns=[1, 2, 3, 4],
        kind=["map", "map", "free_page_report", "map"],
        gfn=[0, 2**64 - 5, 5, 2**63 - 2],
        pages=[1 << 24, 4, 10, 100],
    )
    curve = EventsNamespace(pl.DataFrame(rows).lazy()).resident_curve().collect()
    assert curve["resident_pages"].to_list()[:3] == [1 << 24, (1 << 24) + 4, (1 << 24) - 6]
    assert curve["resident_pages"][3] - curve["resident_pages"][2] == 2  # the rest is beyond all pages


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_frame_that_lacks_a_column_is_refused_in_our_words(traces: Traces, question: str) -> None:
    events = traces["scan"][0]._events
    with pytest.raises(UsageError, match="the frame has no column kind"):
        getattr(EventsNamespace(events.drop("kind")), question)()
    with pytest.raises(UsageError, match="the frame has no column vm"):
        getattr(EventsNamespace(events.drop("vm")), question)()
    with pytest.raises(UsageError, match="the frame has not the columns of events"):
        getattr(EventsNamespace(events.with_columns(kind=pl.lit(1.5), latency_ns=pl.lit("x"))), question)()
