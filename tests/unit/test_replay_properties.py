"""What must hold on any trace: nothing is lost or saved twice, better hints and more memory never hurt."""

from __future__ import annotations

from collections import Counter
from random import Random

import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.unit.replay_kit import Tiny, alloc, costs, fault, free, metrics, replayed
from tests.unit.test_replay_slow_model import PAGES_8, SEEDS, random_trace
from tracekit.errors import UsageError
from tracekit.trace.schema import FLAG_PRESENT

TAKING = (
    "epf,runnable=2",
    "cold_hint,policy=oracle",
    "cold_hint,policy=recorded",
    "cold_hint,order=0,delay_ms=0.03",
    "free_page_reporting,from_mib=0,order=0,delay_s=0.00002",
    "balloon,interval_s=0.001,free_mib=0",
    "balloon,policy=recorded",
    f"swap,limit_mib={PAGES_8}",
    "ksm",
    "ksm,policy=zero,sleep_ms=0.1",
    "zeroing_after_reuse",
    f"epf+swap,runnable=2,limit_mib={PAGES_8},device=hdd",
    f"zeroing+hot_hint+swap+ksm,ksm.policy=zero,limit_mib={PAGES_8},lead_ms=0.02",
)


@pytest.mark.parametrize("scenario", TAKING)
@settings(max_examples=8, deadline=None)
@given(seed=SEEDS)
def test_taking_loses_no_fault_and_its_parts_add_up(scenario: str, seed: int) -> None:
    trace = random_trace(Random(seed))
    try:
        result = replayed(trace, "baseline", scenario)
    except UsageError:  # the trace lacks what the policy needs
        return
    rows = result.rows.filter(pl.col("saved").is_not_null())
    off = (pl.col("baseline") - pl.col("counterfactual") - pl.col("saved")).abs()
    assert rows.filter(off > 1e-6).is_empty()
    assert rows.filter((pl.col("low") > pl.col("saved")) | (pl.col("high") < pl.col("saved"))).is_empty()
    base, found = metrics(result, "baseline"), metrics(result, scenario)
    for metric in ("faults", "stall"):
        assert found[metric]["baseline"] == base[metric]["baseline"]
        assert found[metric]["saved"] <= base[metric]["baseline"]
        lanes = [row["saved"] for name, row in found.items() if name.startswith(f"{metric}:vcpu")]
        if lanes and trace.vms == 1 and all(row.get("vcpu") is not None for row in trace.rows):
            assert sum(lanes) == pytest.approx(found[metric]["saved"], abs=1e-6)


@pytest.mark.parametrize(
    "scenario",
    [
        "hugepages+prealloc,prealloc.size=2m",
        f"epf+swap,runnable=2,limit_mib={PAGES_8},device=hdd",
        f"zeroing+hugepages+swap,limit_mib={PAGES_8}",
    ],
)
@settings(max_examples=4, deadline=None)
@given(seed=SEEDS)
@example(seed=2)
def test_steps_and_classes_of_faults_add_up(scenario: str, seed: int) -> None:
    try:
        rows = replayed(random_trace(Random(seed)), scenario).rows
    except UsageError:  # the trace lacks what a policy needs
        return
    whole = rows.filter(pl.col("mechanism") == "all")
    steps = rows.filter(pl.col("mechanism").str.starts_with("without").not_(), pl.col("mechanism") != "all")
    added = steps.group_by("metric").agg(pl.col("saved").sum().alias("steps"))
    both = whole.join(added, on="metric", how="full")
    assert both.filter(((pl.col("saved") - pl.col("steps")).abs() < 1e-3).fill_null(False).not_()).is_empty()
    # A class that only one hypothesis adds faults of: its interval reaches to the one that adds none.
    faults = whole.filter(pl.col("metric") == "faults").row(0, named=True)
    classes = whole.filter(pl.col("metric").str.starts_with("faults_"))
    assert classes["saved"].sum() == faults["saved"]
    if faults["low"] is not None:
        assert classes["low"].sum() <= faults["low"]
    assert classes["high"].sum() >= faults["high"]


FAULTS = st.lists(
    st.tuples(st.integers(1, 40), st.integers(0, 30), st.integers(1, 9), st.integers(0, 1)), max_size=30
)
FREE_HINTS = costs(prefault_4k=0.0, hypercall=0.0)


def first_touches(given_: list[tuple[int, int, int, int]]) -> Tiny:
    """Faults on few pages: after the first one, a page has its entry."""
    rows, now, seen = [], 20, Counter[int]()
    for gap, gfn, latency, vcpu in given_:
        now += gap
        row = fault(now, gfn, latency, vcpu=vcpu)
        row["flags"] |= FLAG_PRESENT * bool(seen[gfn])
        seen[gfn] += 1
        rows.append(row)
    return Tiny(rows)


@settings(max_examples=30, deadline=None)
@given(FAULTS)
def test_no_policy_beats_the_oracle_and_more_lead_never_hurts(
    given_: list[tuple[int, int, int, int]],
) -> None:
    # Where backing a page costs nothing: a worker that takes its time may be kept from a page by another one.
    trace = first_touches(given_)
    leads = [0, 0.001, 0.005, 0.02, 1]
    names = [f"hot_hint,via=pre_fault,lead_ms={lead}" for lead in leads]
    others = ["hot_hint,via=pre_fault,policy=stride,n=1", "hot_hint,via=pre_fault,policy=stride,n=8"]
    result = replayed(trace, *names, *others, profile=FREE_HINTS, closed_loop=False)
    saved = [metrics(result, name)["stall"]["saved"] for name in names]
    assert saved == sorted(saved)
    assert saved[-1] == max(saved[-1], *(metrics(result, name)["stall"]["saved"] for name in others))
    new = {row["gfn"]: row["latency_ns"] for row in reversed(trace.rows)}
    assert saved[-1] == sum(new.values())


@settings(max_examples=15, deadline=None)
@given(SEEDS)
def test_more_memory_never_costs_a_swap_in_more(seed: int) -> None:
    trace = random_trace(Random(seed))
    # A discard frees room that only a small memory is in want of; the order of eviction stays that of LRU.
    names = [f"swap,limit_mib={pages / 256},reclaim=background" for pages in (1, 2, 4, 9, 700, 5000)]
    result = replayed(trace, *names, profile=costs(), closed_loop=False)
    ins = [-metrics(result, name)["refaults"]["saved"] for name in names]
    assert ins == sorted(ins, reverse=True)


def test_the_cold_oracle_never_brings_back_but_others_may_take_more_for_a_while() -> None:
    # Used until 20 us, free until 900 us, used last at 910 us; the trace ends at 1 ms. The oracle takes it
    # for the last 90 us; on_free for 870 us in between, at the price of a refault.
    rows = [fault(10, 1, 4), free(20, 1), alloc(900, 1), {"us": 910, "kind": "access", "gfn": 1, "arg": 1}]
    oracle, on_free = "cold_hint,policy=oracle", "cold_hint,order=0,delay_ms=0.01"
    result = replayed(Tiny(rows, span_us=1_000), oracle, on_free, closed_loop=False)
    one, two = (metrics(result, name) for name in (oracle, on_free))
    assert one["refaults"]["saved"] == 0 > two["refaults"]["saved"]
    assert one["resident_time"]["saved"] * 262_144 * 1e6 == pytest.approx(90)
    assert two["resident_time"]["saved"] * 262_144 * 1e6 == pytest.approx(870, abs=10)


def test_a_memslot_that_goes_and_comes_again_takes_no_memory_away() -> None:
    # QEMU removes and adds slots while it boots: the page stays backed, the fault after it is no first touch.
    gone = [{"us": us, "kind": "memslot", "gfn": 0, "pages": 16} for us in (50, 60)]
    rows = [fault(10, 1, 4), *gone, {"us": 70, "kind": "unmap", "gfn": 1}, fault(100, 1, 4)]
    found = metrics(replayed(Tiny(rows, span_us=200), "prealloc,via=pre_fault"), "prealloc,via=pre_fault")
    assert (found["faults"]["baseline"], found["faults"]["saved"]) == (2, 1)
