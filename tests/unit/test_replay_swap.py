"""Host swapping against an OrderedDict, a brute-force MIN, and answers computed by hand."""

from __future__ import annotations

from collections import OrderedDict
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.replay_kit import Tiny, alloc, costs, drop, fault, metrics, replayed
from tracekit.trace.schema import PAGE_BYTES

GIB_S = (1 << 30) / PAGE_BYTES  # page-seconds in one GiB*s
PAGE = 1 / 256  # MiB
S = 1_000_000  # us


def use(us: float, gfn: int) -> dict[str, Any]:
    """An access sample on a vCPU."""
    return {"us": us, "kind": "access", "gfn": gfn, "vcpu": 0, "arg": 1}


def found(rows: list[dict[str, Any]], scenario: str, span_us: int | None = None) -> dict[str, dict[str, Any]]:
    return metrics(replayed(Tiny(rows, span_us=span_us), scenario, profile=costs()), scenario)


def as_trace(uses: list[tuple[int, bool]]) -> list[dict[str, Any]]:
    """First uses fault; later ones are seen as samples; a page that is discarded faults again."""
    rows: list[dict[str, Any]] = []
    there: set[int] = set()
    for k, (page, discard) in enumerate(uses):
        us = 10 * (k + 1)
        if discard:
            rows.append(drop(us, page))
            there.discard(page)
        else:
            rows.append(use(us, page) if page in there else fault(us, page, 0.005))
            there.add(page)
    return rows


def swap_ins(uses: list[tuple[int, bool]], limit: int, *, move: bool) -> int:
    """Count swap-ins of LRU (`move`) or FIFO with an OrderedDict."""
    held: OrderedDict[int, None] = OrderedDict()
    swapped: set[int] = set()
    ins = 0
    for page, discard in uses:
        if discard:
            held.pop(page, None)
            swapped.discard(page)
            continue
        if page in held:
            if move:
                held.move_to_end(page)
            continue
        if page in swapped:
            swapped.discard(page)
            ins += 1
        if len(held) >= limit:
            swapped.add(held.popitem(last=False)[0])
        held[page] = None
    return ins


def fewest_swap_ins(uses: list[tuple[int, bool]], limit: int) -> int:
    """Return the least that any eviction reaches, by trying every victim at every step."""

    @cache
    def least(at: int, held: frozenset[int], swapped: frozenset[int]) -> int:
        if at == len(uses):
            return 0
        page, discard = uses[at]
        if discard:
            return least(at + 1, held - {page}, swapped - {page})
        if page in held:
            return least(at + 1, held, swapped)
        ins = int(page in swapped)
        swapped = swapped - {page}
        if len(held) < limit:
            return ins + least(at + 1, held | {page}, swapped)
        return ins + min(least(at + 1, held - {out} | {page}, swapped | {out}) for out in held)

    return least(0, frozenset(), frozenset())


USES = st.lists(st.tuples(st.integers(0, 5), st.sampled_from([False] * 9 + [True])), min_size=1, max_size=24)


@settings(max_examples=60, deadline=None)
@given(uses=USES, limit=st.integers(1, 5))
def test_swap_ins_are_those_of_lru_fifo_and_of_the_best_possible_order(
    uses: list[tuple[int, bool]], limit: int
) -> None:
    # No sample precedes a first touch, and a discard of what is not there does nothing.
    first = [fault(1, 100, 0.005), use(2, 100)]
    row = found([*first, *as_trace(uses)], f"swap,limit_mib={limit * PAGE}")["refaults"]
    uses = [(100, False), *uses]
    lru, fifo = (swap_ins(uses, limit, move=move) for move in (True, False))
    best = fewest_swap_ins(uses, limit)
    assert -row["saved"] == lru
    assert -row["high"] == best
    assert -row["low"] == max(lru, fifo)


@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_long_random_traces_agree_with_the_ordered_dict(data: Any) -> None:
    pages = data.draw(st.integers(20, 60))
    uses = data.draw(st.lists(st.tuples(st.integers(0, pages), st.just(False)), min_size=300, max_size=400))
    limit = data.draw(st.integers(1, pages))
    row = found(as_trace(uses), f"swap,limit_mib={limit * PAGE}")
    assert -row["refaults"]["saved"] == swap_ins(uses, limit, move=True)
    assert row["resident_peak"]["counterfactual"] <= limit * PAGE_BYTES


def test_a_limit_takes_memory_and_adds_waits() -> None:
    # Room for two pages: 3 pushes 1 out at 3 s; 1 comes back at 5 s and pushes 2 out; the trace ends at 9 s.
    rows = [fault(1 * S, 1, 0), fault(2 * S, 2, 0), fault(3 * S, 3, 0), use(5 * S, 1)]
    row = found(rows, f"swap,limit_mib={2 * PAGE},device=hdd,reclaim=background", 9 * S)
    # One page less from 3 s to the end: 6 s; the swap-in takes 1 us and two swap-outs 1 + 1 us each.
    assert row["resident_time"]["saved"] * GIB_S == pytest.approx(6, rel=1e-5)
    assert row["faults_ept_major_4k"]["saved"] == -1
    assert row["stall"]["saved"] == row["critical_path"]["saved"] == -1_000
    assert row["host_cpu_background"]["saved"] == -4_000
    # Under a limit of its own, who faults does these: at 3 s, and at 5 s beside the swap-in.
    direct = found(rows, f"swap,limit_mib={2 * PAGE},device=hdd", 9 * S)
    assert direct["stall"]["saved"] == direct["critical_path"]["saved"] == -5_000
    assert direct["faults"]["saved"] == row["faults"]["saved"]
    assert direct["host_cpu_background"]["saved"] == 0
    # MIN pushes 2 out, which is not used again: no swap-in at all.
    assert row["refaults"]["high"] == 0
    assert row["refaults"]["label"] == "assumed"


def test_without_access_samples_there_is_no_lower_bound() -> None:
    row = found([fault(1, 1, 0.005), fault(2, 2, 0.005)], f"swap,limit_mib={PAGE},reclaim=background")
    # Page 1 goes and is not seen again; whether it was in use all along, nothing in the trace says.
    assert (row["stall"]["saved"], row["stall"]["low"], row["stall"]["high"]) == (0, None, 0)
    assert row["refaults"]["low"] is None
    assert row["resident_peak"]["low"] == PAGE_BYTES


def test_each_device_has_its_price_and_its_range() -> None:
    rows = [fault(1, 1, 0.005), fault(2, 2, 0.005), use(3, 1)]
    scenario = f"swap,limit_mib={PAGE},device=zram"
    row = metrics(replayed(Tiny(rows), scenario), scenario)["stall"]
    # 2 pushes 1 out, 1 comes back and pushes 2 out: one swap-in whatever the order, at 2.84 us (1.25 .. 7.0),
    # and two swap-outs by who faults, at 1.9 + 4 us each (1 + 1 .. 4.45 + 15).
    assert (row["saved"], row["low"], row["high"]) == (-14_640, -45_900, -5_250)


def test_what_else_is_charged_and_what_is_charged_ahead_leave_guest_memory_less() -> None:
    rows = [fault(k, k, 0.005) for k in range(1, 9)]
    words = f"swap,limit_mib={6 * PAGE},other_mib={2 * PAGE},slack_mib={PAGE}"
    row = found(rows, words)["resident_peak"]
    assert row["counterfactual"] == 4 * PAGE_BYTES
    assert (row["baseline"] - row["high"], row["baseline"] - row["low"]) == (3 * PAGE_BYTES, 4 * PAGE_BYTES)


def test_a_fault_that_maps_nothing_reclaims_nothing() -> None:
    # Room for two pages. The fault on page 9 finds its entry (write protection): it was charged when it came,
    # and a page went then, in no fault of the trace: at 1 + 1 us beside the guest.
    rows = [fault(1 * S, 1, 0), fault(2 * S, 2, 0), fault(3 * S, 9, 0, level=None, present=True)]
    row = found(rows, f"swap,limit_mib={2 * PAGE}", 9 * S)
    assert (row["stall"]["saved"], row["host_cpu_background"]["saved"]) == (0, -2_000)
    assert row["resident_peak"]["counterfactual"] == 2 * PAGE_BYTES
    # Page 3 makes room for itself in its fault.
    row = found([*rows, fault(4 * S, 3, 0)], f"swap,limit_mib={2 * PAGE}", 9 * S)
    assert (row["stall"]["saved"], row["host_cpu_background"]["saved"]) == (-2_000, -2_000)
    # One that maps nothing and finds nothing (MMIO) is no use of memory at all.
    rows[2] = fault(3 * S, 9, 0, level=None)
    row = found(rows, f"swap,limit_mib={2 * PAGE}", 9 * S)
    assert (row["stall"]["saved"], row["host_cpu_background"]["saved"]) == (0, 0)


def test_an_allocation_of_a_swapped_page_waits_for_it_too() -> None:
    rows = [fault(1, 1, 0.005), fault(2, 2, 0.005), alloc(3, 1), alloc(4, 9)]
    # Page 9 was never backed: its allocation is no use of memory of the host.
    assert found(rows, f"swap,limit_mib={PAGE}")["refaults"]["saved"] == -1


def test_a_huge_fault_needs_room_for_all_of_it() -> None:
    rows = [fault(1, 0, 1), fault(2, 512, 300, level=2), use(3, 0)]
    row = found(rows, "swap,limit_mib=2")
    # 512 pages fit. The huge page pushes page 0 out; that one comes back and pushes one of the 512 out.
    assert row["refaults"]["saved"] == -1
    assert row["resident_peak"]["counterfactual"] == 512 * PAGE_BYTES


@pytest.mark.parametrize("without", ["prealloc", "hot_hint", "zeroing"])
def test_recorded_faults_are_neither_lost_nor_saved_by_swapping(without: str) -> None:
    rows = as_trace([(k % 7, False) for k in range(40)])
    both, alone = found(rows, f"{without}+swap,limit_mib={3 * PAGE}"), found(rows, without)
    # Swapping only adds: what the other one saves stays saved.
    assert both["faults"]["saved"] + -both["refaults"]["saved"] == alone["faults"]["saved"]


def test_a_trace_in_which_no_vcpu_did_anything_has_memory_only() -> None:
    # Two pages that the host brought in, then both sampled; room for one: two swap-ins, on nobody's path.
    rows = [{"us": 10 * k, "kind": "swap_in", "gfn": k} for k in (1, 2)]
    rows += [{"us": 10 * k + 20, "kind": "access", "gfn": k, "arg": 1} for k in (1, 2)]
    row = found(rows, f"swap,limit_mib={PAGE}")
    assert row["refaults"]["saved"] == -2
    assert row["resident_peak"]["saved"] == PAGE_BYTES
    assert "critical_path" not in row
