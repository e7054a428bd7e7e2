"""With nothing enabled, the replay reproduces what was recorded, to the nanosecond."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.replay_kit import Tiny, drop, fault, metrics, replayed
from tracekit.errors import DamagedError
from tracekit.replay.index import PageIndex
from tracekit.trace.schema import PAGE_BYTES


def test_recorded_totals_come_back_exactly() -> None:
    trace = Tiny([fault(10, 1, 3), fault(30, 2, 5), fault(50, 600, 300, level=2), fault(60, 9, 2, vcpu=1)])
    found = metrics(replayed(trace), "baseline")
    # 3 + 5 + 300 + 2 us of stall in 4 faults, three of them 4K.
    assert found["stall"]["baseline"] == found["stall"]["counterfactual"] == 310_000
    assert found["faults"]["baseline"] == 4
    assert found["faults_ept_4k"]["baseline"] == 3
    assert found["faults_ept_2m"]["baseline"] == 1
    assert found["exits"]["counterfactual"] == 4
    assert all(row["saved"] == 0 for row in found.values())
    assert found["stall"]["label"] == "measured"


def test_resident_memory_is_the_area_under_the_pages() -> None:
    # Pages 1 and 2 are backed at 20 us and 40 us; page 1 goes at 80 us; the trace ends at 100 us.
    trace = Tiny([fault(20, 1), fault(40, 2), drop(80, 1)], span_us=100)
    found = metrics(replayed(trace), "baseline")
    # (80 - 20) + (100 - 40) = 120 page·us over 100 us.
    assert found["resident_mean"]["baseline"] == pytest.approx(1.2 * PAGE_BYTES)
    assert found["resident_peak"]["baseline"] == 2 * PAGE_BYTES
    assert found["resident_time"]["baseline"] == pytest.approx(120e-6 * PAGE_BYTES / 2**30)


def test_a_huge_fault_backs_its_whole_block_and_a_gigabyte_all_of_its_blocks() -> None:
    two = metrics(replayed(Tiny([fault(0, 512, level=2)], span_us=10)), "baseline")
    assert two["resident_peak"]["baseline"] == 2 << 20
    one = Tiny([fault(0, 0, level=3)], memory_pages=1 << 18, span_us=10)
    # Compiled: this is 262,144 pages.
    assert metrics(replayed(one, plain=False), "baseline")["resident_peak"]["baseline"] == 1 << 30


def test_faults_without_latency_are_priced_by_the_mean_of_their_class_first() -> None:
    trace = Tiny([fault(10, 1, 2), fault(20, 2, 6), fault(30, 3, None), fault(50, 512, None, level=2)])
    found = metrics(replayed(trace), "baseline")
    # Class 4K has a recorded mean of 4 us; class 2M has none: the published 340 us.
    assert found["stall"]["baseline"] == 2_000 + 6_000 + 4_000 + 340_000


def test_unknown_gfns_are_counted_reported_and_never_saved() -> None:
    trace = Tiny([fault(10, None, 3), fault(20, 4096, 5), fault(30, 4095, 7)], memory_pages=4096)
    result = replayed(trace, "baseline", "prealloc,via=pre_fault")
    assert metrics(result, "baseline")["stall"]["baseline"] == 15_000
    assert metrics(result, "prealloc,via=pre_fault")["stall"]["saved"] == 7_000
    assert any("2 events name no known guest memory" in note for note in result.about["notes"])


def test_a_vmm_fault_on_memory_of_its_own_is_not_the_guests() -> None:
    own = {"us": 5, "kind": "host_fault", "hva": 0x1000, "tid": 7, "latency_ns": 9_000, "access": 2}
    on_guest = own | {"us": 8, "hva": (1 << 40) + 3 * PAGE_BYTES}
    result = replayed(Tiny([own, on_guest]))
    found = metrics(result, "baseline")
    # The second one hits gfn 3 through the memslot at 1 << 40.
    assert found["faults"]["baseline"] == found["faults_host_minor_4k"]["baseline"] == 1
    assert any("1 faults of the VMM" in note for note in result.about["notes"])


def test_terabytes_with_holes_cost_what_they_touch() -> None:
    index = PageIndex(1, np.array([[0, 0, 1 << 32]]))
    top = (16 << 40) // PAGE_BYTES - 1
    trace = Tiny([fault(1, 0), fault(2, top), fault(3, 1 << 31)], memory_pages=1 << 32)
    assert metrics(replayed(trace), "baseline")["faults"]["baseline"] == 3
    assert index.page(0, top) == 511
    assert index.pages == 512


def test_an_empty_trace_and_one_page() -> None:
    assert metrics(replayed(Tiny([])), "baseline")["faults"]["baseline"] == 0
    assert metrics(replayed(Tiny([fault(1, 0)])), "baseline")["faults"]["baseline"] == 1


def test_rows_out_of_order_are_refused() -> None:
    trace = Tiny([fault(10, 1), fault(20, 2)], batch_rows=1)
    batches = list(trace.batches())
    trace.batches = lambda columns=None, batch_rows=0: iter(batches[::-1])  # type: ignore[method-assign]
    with pytest.raises(DamagedError, match="not in time order"):
        replayed(trace)


def test_batches_do_not_matter() -> None:
    rows = [fault(10 * k, (k * 37) % 700, k % 9 + 1, vcpu=k % 3) for k in range(1, 60)]
    rows += [drop(10 * k + 5, 0, 600) for k in range(1, 60, 9)]
    whole = replayed(Tiny(rows), "baseline", "hot_hint,policy=stride,n=3")
    parts = replayed(Tiny(rows, batch_rows=7), "baseline", "hot_hint,policy=stride,n=3")
    assert whole.rows.equals(parts.rows)


def test_compiled_and_plain_python_agree_to_the_bit() -> None:
    generator = np.random.default_rng(5)
    rows = []
    for k in range(1, 1_500):
        gfn, vcpu = int(generator.integers(0, 1_600)), int(generator.integers(0, 3))
        match int(generator.integers(0, 10)):
            case 0:
                rows.append(drop(7 * k, gfn, int(generator.choice([1, 2, 40]))))
            case 1:
                rows.append({"us": 7 * k, "kind": "page_free", "gfn": gfn, "vcpu": vcpu})
            case 2:
                rows.append({"us": 7 * k, "kind": "page_alloc", "gfn": gfn, "vcpu": vcpu, "flags": 2})
            case _:
                latency = None if k % 50 == 0 else float(generator.exponential(5))
                rows.append(fault(7 * k, gfn, latency, vcpu=vcpu, write=bool(generator.integers(0, 2))))
    names = ("baseline", *SCENARIOS, "hot_hint,policy=on_alloc")
    assert replayed(Tiny(rows), *names, plain=True).rows.equals(
        replayed(Tiny(rows), *names, plain=False).rows
    )


@st.composite
def traces(draw: st.DrawFn) -> Tiny:
    """Random small traces: faults of any kind on few pages and vCPUs, discards, allocations, frees."""
    rows = []
    now = 0.0
    for _ in range(draw(st.integers(0, 40))):
        now += draw(st.integers(0, 30))
        gfn = draw(st.one_of(st.integers(0, 5), st.integers(510, 514), st.sampled_from([1025, 5000])))
        what = draw(st.sampled_from(["fault"] * 5 + ["drop", "alloc", "free", "unmap", "swap_out"]))
        vcpu = draw(st.integers(0, 2))
        if what == "fault":
            level = draw(st.sampled_from([1, 1, 1, 2, None]))
            rows.append(
                fault(
                    now,
                    gfn - gfn % 512 if level == 2 else gfn,
                    draw(st.one_of(st.none(), st.integers(0, 50))),
                    vcpu=vcpu,
                    level=level,
                    write=draw(st.booleans()),
                    major=draw(st.booleans()),
                )
            )
        elif what == "drop":
            rows.append(drop(now, gfn, draw(st.sampled_from([1, 1, 1, 1, 3, 512]))))
        elif what in ("alloc", "free"):
            flags = 2 * draw(st.booleans()) if what == "alloc" else 0
            rows.append({"us": now, "kind": f"page_{what}", "gfn": gfn, "vcpu": vcpu, "flags": flags})
        else:
            rows.append({"us": now, "kind": what, "gfn": gfn})
    return Tiny(rows, memory_pages=draw(st.sampled_from([None, 2048])))


SCENARIOS = (
    "zeroing",
    "hot_hint,lead_ms=0.02",
    "hot_hint,policy=stride,n=2",
    "hugepages",
    "hugepages,size=1g",
    "prealloc",
    "prealloc+hugepages,prealloc.size=2m",
    "zeroing+prealloc",
    "zeroing+hot_hint,via=pre_fault",
    "zeroing+hot_hint+hugepages",
)


@settings(max_examples=12, deadline=None)
@given(traces())
def test_saved_and_remaining_add_up_to_the_recording(trace: Tiny) -> None:
    result = replayed(trace, "baseline", *SCENARIOS)
    base = metrics(result, "baseline")
    rows = result.rows
    assert rows.filter(
        (pl.col("baseline") - pl.col("counterfactual") - pl.col("saved")).abs() > 1e-6
    ).is_empty()
    assert rows.filter((pl.col("low") > pl.col("saved")) | (pl.col("high") < pl.col("saved"))).is_empty()
    for scenario in SCENARIOS:
        found = metrics(result, scenario)
        for metric in ("faults", "stall"):
            # Every scenario starts from the same recording, and saves no fault twice.
            assert found[metric]["baseline"] == base[metric]["baseline"]
        assert found["faults"]["saved"] <= base["faults"]["baseline"]
        assert found["stall"]["saved"] <= base["stall"]["baseline"]
    # The steps of a waterfall add up to the whole.
    whole = metrics(result, SCENARIOS[-1])
    for metric in ("faults", "stall", "resident_time"):
        steps = [
            metrics(result, SCENARIOS[-1], m)[metric]["saved"] for m in ("zeroing", "hot_hint", "hugepages")
        ]
        assert sum(steps) == pytest.approx(whole[metric]["saved"], abs=1e-9)
