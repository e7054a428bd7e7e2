"""Synthetic traces: what the generators say they made is what an independent look at the events finds."""

from __future__ import annotations

from collections import Counter, OrderedDict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracekit.datasets.synthetic import GENERATORS
from tracekit.datasets.synthetic.make import make_trace
from tracekit.datasets.synthetic.places import Permutation, scattered_runs
from tracekit.errors import UsageError
from tracekit.trace import Trace, open_trace

SMALL = {
    "scan": {"pages": 61, "limit": 17},
    "swap-thrash": {"pages": 211, "limit": 101},
    "working-set": {"pages": 509},
    "fork-bomb": {"wave_pages": 307},
    "fleet": {"size": 7},
}


def make(tmp_path: Path, name: str, **more: Any) -> tuple[Trace, dict[str, Any]]:
    values = {"events": 5_003, "seed": 11, "block_rows": 1024, **SMALL.get(name, {}), **more}
    path = tmp_path / f"{name}-{len(list(tmp_path.iterdir()))}.trace"
    make_trace(GENERATORS[name](**values), path)
    trace = open_trace(path)
    return trace, trace.meta.extra["truth"]


@pytest.mark.parametrize("name", GENERATORS)
def test_rows_latencies_and_order_are_as_the_truth_says(tmp_path: Path, name: str) -> None:
    trace, truth = make(tmp_path, name)
    assert trace.meta.source == "synthetic"
    assert trace.meta.late_rows == 0
    events = trace.events.collect()
    assert events["ts_ns"].is_sorted()
    by_kind = events.group_by("kind").agg(rows=pl.len(), latency=pl.col("latency_ns").sum())
    rows = {kind: rows for kind, rows, _ in by_kind.cast({"kind": pl.String}).iter_rows()}
    latency = {kind: total for kind, _, total in by_kind.cast({"kind": pl.String}).iter_rows() if total}
    assert rows == truth["rows"]
    assert latency == truth.get("latency_ns", {})
    assert trace.memslots.height == events["vm"].n_unique() == len(trace.meta.vms)
    inside = events.join(trace.memslots.select("vm", "size_bytes"), on="vm")
    assert (inside["gfn"] * 4096 < inside["size_bytes"]).all()
    assert events["latency_ns"].min() != 0


@pytest.mark.parametrize("name", GENERATORS)
def test_a_thread_is_never_in_two_faults_at_once(tmp_path: Path, name: str) -> None:
    trace, _ = make(tmp_path, name)
    faults = trace.events.filter(pl.col("kind") == "ept_violation").sort("vm", "tid", "ts_ns")
    overlap = faults.with_columns(
        before=pl.col("ts_ns").shift().over("vm", "tid"), start=pl.col("ts_ns") - pl.col("latency_ns")
    ).filter(pl.col("start") < pl.col("before"))
    assert overlap.collect().height == 0


@pytest.mark.parametrize("name", GENERATORS)
def test_the_seed_decides_everything(tmp_path: Path, name: str) -> None:
    first, again, other = (make(tmp_path, name, seed=seed)[0].events.collect() for seed in (4, 4, 5))
    assert first.equals(again)
    assert not first.equals(other)


def test_boot_linux_touches_each_page_once(tmp_path: Path) -> None:
    trace, truth = make(tmp_path, "boot-linux")
    events = trace.events.collect()
    assert events.height == 5_003 == truth["first_touches"] == events["gfn"].n_unique()
    top = int(trace.memslots["size_bytes"][0]) // 4096
    assert events.filter(pl.col("gfn") >= top - truth["struct_pages"]).height == truth["struct_pages"]
    assert truth["kernel_pages"] + truth["struct_pages"] + truth["user_pages"] == 5_003
    for ts, pages in truth["resident_curve"]:
        assert events.filter(pl.col("ts_ns") <= ts).height == pages


def test_boot_windows_zeroes_all_memory_before_using_part_of_it(tmp_path: Path) -> None:
    trace, truth = make(tmp_path, "boot-windows")
    events = trace.events.collect()
    memory = int(trace.memslots["size_bytes"][0])
    zeroed = events.filter(pl.col("kind") == "ept_violation")
    used = events.filter(pl.col("kind") == "access")
    assert truth["double_zeroed_bytes"] == memory == zeroed["gfn"].n_unique() * 4096
    assert used["gfn"].n_unique() == used.height == truth["used_pages"]
    assert zeroed["ts_ns"].max() < used["ts_ns"].min()
    assert used["latency_ns"].null_count() == used.height
    host_only, _ = make(tmp_path, "boot-windows", accesses=0)
    assert host_only.events.filter(pl.col("kind") == "access").collect().height == 0


def test_working_set_phases_have_the_distinct_pages_and_hottest_page_counted(tmp_path: Path) -> None:
    trace, truth = make(tmp_path, "working-set")
    accesses = trace.events.filter(pl.col("kind") == "access").collect()
    faults = trace.events.filter(pl.col("kind") == "ept_violation").collect()
    assert accesses.height == 5_003
    assert truth["first_touches"] == accesses["gfn"].n_unique() == faults.height
    start = 0
    for phase in truth["phases"]:
        rows = accesses.filter(pl.col("ts_ns").is_between(start + 1, phase["end_ns"]))
        assert rows.height == phase["accesses"]
        assert rows["gfn"].n_unique() == phase["distinct_pages"]
        assert rows.filter(pl.col("gfn") == phase["hottest_gfn"]).height == phase["hottest_accesses"]
        assert phase["hottest_accesses"] == rows["gfn"].value_counts()["count"].max()
        start = phase["end_ns"]
    first = accesses.group_by("gfn").agg(first=pl.col("ts_ns").min()).join(faults, on="gfn")
    assert (first["first"] > first["ts_ns"]).all()


def test_scan_is_what_lru_does(tmp_path: Path) -> None:
    """A plain LRU cache, simulated page by page, evicts and reloads exactly what the generator says."""
    trace, truth = make(tmp_path, "scan")
    pages, limit = 61, 17
    cache: OrderedDict[int, None] = OrderedDict()
    expected: list[tuple[str, int]] = []
    seen: set[int] = set()
    for access in range(5_003):
        page = access % pages
        assert page not in cache
        if len(cache) == limit:
            expected.append(("swap_out", cache.popitem(last=False)[0]))
        if page in seen:
            expected.append(("swap_in", page))
        expected.append(("ept_violation", page))
        seen.add(page)
        cache[page] = None
    events = trace.events.select(pl.col("kind").cast(pl.String), "gfn").collect()
    assert list(events.iter_rows()) == expected
    assert Counter(kind for kind, _ in expected) == truth["rows"]
    assert truth["refault_distance_pages"] == pages - limit


def gaps(pairs: list[int], still_open: int) -> dict[str, Any]:
    log2 = Counter(gap.bit_length() - 1 for gap in pairs)
    return {
        "count": len(pairs),
        "sum_ns": sum(pairs),
        "log2_ns": {str(b): n for b, n in sorted(log2.items())},
        "open": still_open,
    }


def test_swap_thrash_swaps_consistently_and_its_gaps_are_right(tmp_path: Path) -> None:
    trace, truth = make(tmp_path, "swap-thrash")
    resident: set[int] = set()
    left: dict[int, int] = {}
    closed: list[int] = []
    counts: Counter[str] = Counter()
    most = 0
    for kind, gfn, ts in (
        trace.events.select(pl.col("kind").cast(pl.String), "gfn", "ts_ns").collect().iter_rows()
    ):
        counts[kind] += 1
        if kind == "swap_out":
            resident.remove(gfn)
            left[gfn] = ts
        elif kind == "swap_in":
            assert gfn in left
        else:
            assert gfn not in resident
            resident.add(gfn)
            if gfn in left:
                closed.append(ts - left.pop(gfn))
        most = max(most, len(resident))
    assert most == 101
    assert (counts["swap_in"], counts["swap_out"]) == (truth["swap_ins"], truth["swap_outs"])
    assert truth["swapped_gap"] == gaps(closed, len(left))


def test_balloon_storm_discards_and_reuses_as_counted(tmp_path: Path) -> None:
    trace, truth = make(tmp_path, "balloon-storm")
    backed: set[int] = set()
    since: dict[int, int] = {}
    closed: list[int] = []
    discarded = refaults = 0
    curve = dict(map(tuple, truth["resident_curve"]))
    for kind, gfn, ts in (
        trace.events.select(pl.col("kind").cast(pl.String), "gfn", "ts_ns").collect().iter_rows()
    ):
        if kind == "balloon_inflate" and gfn in backed:
            backed.remove(gfn)
            since[gfn] = ts
            discarded += 1
        elif kind == "ept_violation":
            refaults += gfn in since
            backed.add(gfn)
            if gfn in since:
                closed.append(ts - since.pop(gfn))
        if ts in curve and kind != "balloon_deflate":
            assert curve.pop(ts) == len(backed)
    assert not curve
    assert discarded == truth["discarded_backed"]
    assert truth["reuse_gap"] == gaps(closed, len(since))


def test_fork_bomb_zeroes_twice_what_it_says(tmp_path: Path) -> None:
    trace, truth = make(tmp_path, "fork-bomb")
    events = trace.events.collect()
    live: set[int] = set()
    faulted: set[int] = set()
    fresh: set[int] = set()
    twice = zeroed = 0
    for kind, gfn, flags in events.select(pl.col("kind").cast(pl.String), "gfn", "flags").iter_rows():
        if kind == "page_alloc":
            assert gfn not in live
            assert gfn in faulted
            live.add(gfn)
            zeroed += bool(flags & 2)
            twice += bool(flags & 2) and gfn in fresh
            fresh.discard(gfn)
        elif kind == "page_free":
            live.remove(gfn)
        else:
            faulted.add(gfn)
            fresh.add(gfn)
    assert not live
    assert truth["double_zeroed_bytes"] == twice * 4096
    assert truth["zeroed_allocs"] == zeroed
    assert truth["first_touches"] == len(faulted)


def test_serverless_restore_has_the_published_shape() -> None:
    from tracekit.datasets.synthetic.truth import Truth

    truth = Truth()
    blocks = list(GENERATORS["serverless-restore"]().blocks(truth))
    facts = truth.facts
    vm = np.concatenate([b["vm"] for b in blocks])
    ts = np.concatenate([b["ts_ns"] for b in blocks])
    gfn = np.concatenate([b["gfn"] for b in blocks])
    sets = [set(gfn[vm == clone].tolist()) for clone in range(8)]
    jaccard = np.median([len(a & b) / len(a | b) for i, a in enumerate(sets) for b in sets[:i]])
    assert facts["jaccard_median"] == pytest.approx(jaccard, abs=1e-12)
    assert jaccard == pytest.approx(0.927, abs=0.003)
    assert facts["union_pages"] == len(set.union(*sets))
    assert facts["pages_hit_by_all"] == len(set.intersection(*sets))
    assert facts["pages_hit_by_all"] / facts["union_pages"] == pytest.approx(0.822, abs=0.005)
    for clone, own in enumerate(facts["clones"]):
        pages = gfn[vm == clone].tolist()
        assert own["faults"] == len(pages) == len(set(pages))
        assert len(pages) == pytest.approx(56_300, rel=0.01)
        assert own["next_page_faults"] == sum(b == a + 1 for a, b in pairwise(pages))
        assert own["next_page_faults"] / len(pages) == pytest.approx(0.086, abs=0.004)
        half, most = np.quantile(ts[vm == clone] - own["start_ns"], [0.5, 0.98]) / 1e6
        assert half == pytest.approx(300, rel=0.03)
        assert most == pytest.approx(750, rel=0.05)


def test_fleet_members_have_their_own_truth(tmp_path: Path) -> None:
    trace, truth = make(tmp_path, "fleet")
    events = trace.events.collect()
    for vm, own in enumerate(truth["vms"]):
        rows = events.filter(pl.col("vm") == vm)["kind"].cast(pl.String).value_counts()
        assert dict(rows.iter_rows()) == own["rows"]
    assert {own["generator"] for own in truth["vms"]} == {
        "boot-linux",
        "boot-windows",
        "working-set",
        "balloon-storm",
        "swap-thrash",
    }


@given(st.integers(1, 2_000), st.integers(0, 2**64 - 1))
@settings(max_examples=60, deadline=None)
def test_a_permutation_takes_every_value_once(size: int, seed: int) -> None:
    shuffled = Permutation(size, seed)(np.arange(size))
    assert np.array_equal(np.sort(shuffled), np.arange(size))


@given(st.integers(1, 700), st.data())
@settings(max_examples=60, deadline=None)
def test_scattered_runs_give_every_page_at_most_once(region: int, data: st.DataObject) -> None:
    pages = data.draw(st.integers(0, region))
    runs = scattered_runs(
        region, pages, slot_pages=8, mean_run=3.0, seed=data.draw(st.integers(0, 9)), block=64
    )
    every = np.concatenate([np.zeros(0, np.uint64), *runs])
    assert every.size == pages == np.unique(every).size
    assert pages == 0 or every.max() < region


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"pagez": "3"}, "no parameter 'pagez'"),
        ({"pages": "many"}, "not a whole number"),
        ({"pages": "2.5"}, "not a whole number"),
        ({"pages": "25e-1"}, "not a whole number"),
        ({"events": "1e999"}, "not a whole number"),
        ({"sigma": "nan"}, "not a number"),
        ({"sigma": "1e9"}, "outside"),
        ({"pages": "0"}, "outside"),
    ],
)
def test_bad_parameters_are_usage_errors(values: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        GENERATORS["scan"].from_text(values)


def test_whole_numbers_may_be_written_with_an_exponent() -> None:
    assert GENERATORS["scan"].from_text({"events": "1e9", "sigma": "1"}).parameters()["events"] == 10**9
