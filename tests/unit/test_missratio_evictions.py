"""More memory from faults and evictions: exact for LRU however early it evicts, a band for others."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit import missratio_naive as naive
from tracekit.errors import UsageError
from tracekit.replay.missratio import (
    EVICT,
    FAULT,
    FORGET,
    POLICY_ERROR,
    TOUCH,
    Clock,
    StackDistances,
    more_memory,
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 20), st.sampled_from([TOUCH] * 6 + [FORGET])), max_size=200),
    st.integers(2, 12),
    st.booleans(),
    st.integers(0, 2),
)
def test_lru_is_predicted_exactly(
    uses: list[tuple[int, int]], capacity: int, evict_first: bool, ahead: int
) -> None:
    pages, ops = [page for page, _ in uses], [op for _, op in uses]
    if ahead and capacity < 4:
        ahead = 0
    trace = naive.fault_trace(pages, ops, capacity, "lru", evict_first=evict_first, ahead=ahead)
    sizes = np.arange(capacity, 24)
    curve = more_memory(*trace, policy="lru", resident_at_start=0, capacity_pages=sizes)
    for size, ratio in zip(sizes, curve.miss_ratio, strict=True):
        assert round(ratio * max(curve.references, 1)) == naive.lru(pages, ops, int(size))[0]
    assert curve.notes == ("assumes that the host evicts like lru",)


def test_by_hand() -> None:
    # 2 frames, pages used 1 2 3 1 2 4 4: faults 1 2 3(-1) 1(-2) 2(-3) 4(-1).
    # With 3 frames: 1 2 3 4 miss. With 4: the same four (all cold).
    pages = [1, 2, 3, 1, 1, 2, 2, 3, 4, 1]
    ops = [FAULT, FAULT, FAULT, EVICT, FAULT, EVICT, FAULT, EVICT, FAULT, EVICT]
    curve = more_memory(pages, ops, policy="lru", capacity_pages=[1, 2, 3, 4])
    assert np.isnan(curve.miss_ratio[0])
    assert (curve.low[0], np.isnan(curve.high[0])) == (1, True)
    assert (curve.miss_ratio[1:] * 6).round(9).tolist() == [6, 4, 4]
    frame = curve.frame()
    assert frame["miss_ratio"][0] is None
    assert frame["low"][0] == 1


def test_pages_mapped_before_the_start_count_as_resident() -> None:
    # 10 and 11 were mapped before; 1 evicts 10, 2 evicts 11; then 10 comes back, and needs 3 frames.
    pages, ops = [10, 1, 11, 2, 1, 10], [EVICT, FAULT, EVICT, FAULT, EVICT, FAULT]
    curve = more_memory(pages, ops, policy="lru")
    assert curve.capacity_pages.tolist() == [2, 3, 4]
    # 10 left before 11 and 1: at its fault one page is resident, three are evicted, 10 the last of them.
    assert (curve.miss_ratio * 3).tolist() == [3, 3, 2]


@pytest.mark.parametrize("policy", ["clock", "random"])
def test_the_bands_of_other_policies_hold(policy: str) -> None:
    workloads = {
        "skewed": naive.zipf(60_013, 3_001, 0.9, 1),
        "mixed": naive.mixed(60_013, 3_001, 2),
        "looping": naive.looping(60_013, 3_001, 3),
        "phases": naive.phases(60_013, 3_004, 4),
    }
    errors = []
    for uses in workloads.values():
        pages = uses.tolist()
        ops = [TOUCH] * len(pages)
        trace = naive.fault_trace(pages, ops, 601, policy, seed=5)
        sizes = np.array([631, 751, 901, 1_201, 1_803])
        curve = more_memory(*trace, policy=policy, resident_at_start=0, capacity_pages=sizes)  # type: ignore[arg-type]
        for k, size in enumerate(sizes):
            more = naive.fault_trace(pages, ops, int(size), policy, seed=6)
            truth = more[1].count(FAULT)
            errors.append(curve.miss_ratio[k] * curve.references / truth - 1)
            assert curve.low[k] * curve.references <= truth <= curve.high[k] * curve.references
    low, high = POLICY_ERROR[policy]
    assert low <= min(errors) <= max(errors) <= high
    assert min(errors) < 0.75 * low  # not padded beyond use


def test_clock_here_is_the_packages_clock() -> None:
    pages = naive.zipf(20_011, 1_009, 0.9, 1)
    _, ops = naive.fault_trace(pages.tolist(), [TOUCH] * len(pages), 301, "clock")
    assert ops.count(FAULT) == Clock(301).feed(pages).misses


def test_less_memory_has_no_fewer_faults() -> None:
    pages = naive.zipf(20_011, 1_009, 0.9, 1).tolist()
    trace = naive.fault_trace(pages, [TOUCH] * len(pages), 301, "lru")
    curve = more_memory(*trace, policy="lru", capacity_pages=[100, 200, 300])
    truth = StackDistances().feed(pages).curve([100, 200, 300])
    assert (curve.low * curve.references <= truth.miss_ratio * truth.references).all()


def test_contradictions_are_said() -> None:
    curve = more_memory([1, 1, 1, 1], [FAULT, FAULT, EVICT, EVICT], policy="lru")
    assert curve.references == 1
    assert "2 faults of resident pages or evictions of evicted ones" in curve.notes[1]


def test_wrong_input_says_what_to_do() -> None:
    with pytest.raises(UsageError, match="touch among faults"):
        more_memory([1], [TOUCH])
    with pytest.raises(UsageError, match="no eviction policy"):
        more_memory([1], [FAULT], policy="mru")  # type: ignore[arg-type]
