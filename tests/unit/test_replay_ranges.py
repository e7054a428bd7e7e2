"""Ranges as guests and hosts really give them: overlapping, out of order, beyond memory, of 16 TB guests."""

from __future__ import annotations

import pytest

from tests.unit.replay_kit import Tiny, alloc, costs, drop, fault, free, metrics, replayed
from tracekit.trace.schema import PAGE_BYTES

PAGE_US = PAGE_BYTES / 2**30 * 1e-6


def hint(us: float, gfn: int, pages: int, heat: int = 2) -> dict[str, object]:
    """A range of a memory heat hint (1 = cold, 2 = hot, 3 = cold-discard)."""
    return {
        "us": us,
        "kind": "hv_hypercall",
        "gfn": gfn,
        "pages": pages,
        "arg": 0x8003 | heat << 16,
        "vcpu": 0,
    }


def test_overlapping_hints_back_each_page_once() -> None:
    # 1..4 and 3..6, the second one first in address too: six pages, six prefaults of 1 us, all used.
    rows = [hint(10, 3, 4), hint(11, 1, 4), *(fault(100 + 10 * k, k, 4) for k in range(1, 7))]
    name = "hot_hint,policy=recorded,via=pre_fault"
    found = metrics(replayed(Tiny(rows), name, profile=costs()), name)
    assert found["host_cpu_background"]["counterfactual"] == 6_000
    assert (found["faults"]["saved"], found["prefaults_wasted"]["counterfactual"]) == (6, 0)


def test_overlapping_discards_take_each_page_once_and_empty_ones_nothing() -> None:
    rows = [fault(10, 1), fault(20, 2), fault(30, 3), drop(60, 2, 2), drop(70, 1, 2), drop(80, 900, 5)]
    base = metrics(replayed(Tiny(rows, span_us=100)), "baseline")["resident_time"]["baseline"]
    # Pages 2 and 3 go at 60 us, page 1 at 70: 60 + 40 + 30 page·us.
    assert base / PAGE_US == pytest.approx(130)


def test_a_range_that_leaves_memory_ends_there() -> None:
    # Pages 1022 and 1023 are the last ones; the hint names eight from 1022 on.
    rows = [hint(10, 1022, 8), fault(100, 1022, 4), fault(110, 1023, 4)]
    name = "hot_hint,policy=recorded,via=pre_fault"
    found = metrics(replayed(Tiny(rows, memory_pages=1024), name, profile=costs()), name)
    assert (found["faults"]["saved"], found["host_cpu_background"]["counterfactual"]) == (2, 2_000)


def test_a_cold_hint_for_memory_that_was_never_there_takes_nothing() -> None:
    rows = [fault(10, 1), hint(20, 500, 4, heat=3), hint(30, 1 << 30, 4, heat=3)]
    name = "cold_hint,policy=recorded"
    found = metrics(replayed(Tiny(rows, span_us=100), name, profile=costs()), name)
    assert found["resident_time"]["saved"] == 0
    assert found["host_cpu_background"]["counterfactual"] == 0


def test_free_again_and_allocated_again_count_once() -> None:
    # Freed twice, allocated twice: the group of two is free from 20 us on (not from the second free).
    rows = [
        fault(5, 0),
        fault(6, 1),
        free(10, 0),
        free(15, 0),
        free(20, 1),
        free(25, 1),
        alloc(90, 0),
        alloc(91, 0),
    ]
    name = "free_page_reporting,from_mib=0,order=1,delay_s=0.00003"
    found = metrics(replayed(Tiny(rows, span_us=100), name, profile=costs()), name)
    # Taken at 50 us; page 0 comes back once, by a fault of 4 us (the mean of the class).
    assert found["refaults"]["counterfactual"] == 1
    assert found["resident_time"]["saved"] / PAGE_US == pytest.approx(40 + 4 + 50 - 4, abs=5)


def test_everything_works_at_the_top_of_16_tb() -> None:
    top = (16 << 40) // PAGE_BYTES
    rows = [fault(100 * (k + 1), top - 8 + k, 4) for k in range(8)] + [drop(1_000, top - 8, 8)]
    trace = Tiny(rows, memory_pages=top, span_us=2_000)
    for name, saved in (
        ("hugepages", 7),
        ("hot_hint,lead_ms=0.05,via=pre_fault", 8),
        ("hugepages,size=1g", 7),
    ):
        found = metrics(replayed(trace, name, profile=costs()), name)
        assert found["faults"]["saved"] == saved


def test_memory_that_is_added_later_counts_from_its_first_event_on() -> None:
    rows = [fault(10, 1, 4), fault(500, 4_000, 4)]
    trace = Tiny(rows, memory_pages=4096, span_us=1_000, slots_from_ns=1_000_400_000)
    name = "prealloc,via=pre_fault"
    found = metrics(replayed(trace, name, profile=costs(prefault_4k=0)), name)
    # Populated when its memslot came, at 400 us: 600 us (less the 8 us by which the vCPU runs ahead).
    assert found["resident_time"]["counterfactual"] / PAGE_US == pytest.approx(4096 * 592)
