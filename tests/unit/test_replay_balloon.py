"""The balloon against answers computed by hand (in the comments); all costs are 1 us, faults take 5 ns."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.unit.replay_kit import Tiny, alloc, costs, drop, fault, free, metrics, replayed
from tracekit.errors import UsageError
from tracekit.trace.schema import PAGE_BYTES

GIB_S = (1 << 30) / PAGE_BYTES  # page-seconds in one GiB*s
PAGE = 1 / 256  # MiB
S = 1_000_000  # us


def used(pages: int) -> list[dict[str, Any]]:
    return [alloc(1, page) for page in range(pages)] + [fault(10, page, 0.005) for page in range(pages)]


def found(trace: Tiny, scenario: str) -> dict[str, dict[str, Any]]:
    return metrics(replayed(trace, scenario, profile=costs()), scenario)


def test_the_monitor_takes_what_was_free_longest_and_leaves_what_it_must() -> None:
    # 0 .. 5 of 8 pages are freed in order. At 1 s six are free, two must stay: 0 .. 3 go. 0 is used at 2.5 s.
    frees = [free(100 + page, page) for page in range(6)]
    trace = Tiny([*used(8), *frees, alloc(2.5 * S, 0)], span_us=4 * S)
    scenario = f"balloon,interval_s=1,free_mib={2 * PAGE}"
    row = found(trace, scenario)
    # Four pages x 3 s, less page 0 for the last 1.5 s.
    assert row["resident_time"]["saved"] * GIB_S == pytest.approx(4 * 3 - 1.5, rel=1e-6)
    assert row["host_cpu_background"]["saved"] == -4_000
    # Two pages were free beside the balloon: no wait, whichever of the pages the guest gives out.
    assert row["refaults"]["saved"] == row["faults"]["saved"] == -1
    assert row["stall"]["low"] == row["stall"]["saved"] == row["stall"]["high"] == -5


def test_an_allocation_waits_at_the_worst_when_as_many_were_allocated_as_were_free() -> None:
    # At 1 s 0 .. 3 of six free pages go, 4 and 5 stay. Of the four allocations at least the first two can be
    # of what stayed; the third may wait from 2.7 s to the sample at 3 s. The fourth is of the same vCPU,
    # which by then asks for it after 3 s.
    frees = [free(100 + page, page) for page in range(6)]
    uses = [alloc((2.5 + page / 10) * S, page) for page in range(4)]
    scenario = f"balloon,interval_s=1,free_mib={2 * PAGE}"
    row = found(Tiny([*used(8), *frees, *uses], span_us=4 * S), scenario)
    assert row["stall"]["saved"] == row["stall"]["high"] == -20
    assert row["stall"]["low"] == pytest.approx(-300_000_020, abs=20)
    # With another page freed at 2.45 s, before the monitor looks again, the third can be of that.
    row = found(Tiny([*used(8), *frees, free(2.45 * S, 6), *uses], span_us=4 * S), scenario)
    assert row["stall"]["low"] == pytest.approx(-200_000_020, abs=20)


def test_what_waits_on_no_known_vcpu_may_all_be_on_the_critical_path() -> None:
    # As before, but nobody knows which CPU asks. Half of the 0.75 s is the critical vCPU's: it had one of two
    # faults; all at the worst. No clock runs away, so memory is taken from 1 s to 3 s, of 4.
    rows = [free(100, 0) | {"vcpu": None}, alloc(2.25 * S, 0) | {"vcpu": None}, fault(20, 1, 0.005, vcpu=1)]
    row = found(Tiny([*used(1), *rows], span_us=4 * S), "balloon,interval_s=1,free_mib=0")
    assert row["stall"]["saved"] == -750_000_005
    assert row["critical_path"]["saved"] == pytest.approx(-375_000_000, abs=5_000)
    assert row["critical_path"]["low"] == pytest.approx(-750_000_005, abs=5_000)
    assert row["resident_mean"]["saved"] / PAGE_BYTES == pytest.approx(2 / 4, rel=1e-6)


class Guest:
    """A guest that counts free pages instead of knowing which they are; it asks its balloon last."""

    def __init__(self, leave: int, step: int) -> None:
        self.leave, self.step = leave, step
        self.free = self.held = self.waited_us = 0

    def sample(self) -> None:
        move = max(min(self.free - self.leave, self.step), -min(self.step, self.held))
        self.free, self.held = self.free - move, self.held + move

    def allocate(self, until_sample_us: float) -> None:
        if self.free:
            self.free -= 1
        else:
            self.held -= 1
            self.waited_us += round(until_sample_us)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 11), min_size=1, max_size=40), st.integers(0, 3), st.sampled_from([1, 2, 100]))
@example([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0, 1, 2, 3], 2, 100)
def test_the_worst_is_what_a_guest_waits_that_gives_out_what_is_free_first(
    pages: list[int], leave: int, step: int
) -> None:
    # A step each tenth of a second, on a vCPU of its own, so that no wait moves another; ten steps a sample.
    guest, in_use, rows = Guest(leave, step), set(range(12)), used(12)
    for k, page in enumerate(pages):
        us = 2 * S + k * S / 10 + 1
        if k % 10 == 0:
            guest.sample()
        if page in in_use:
            in_use.remove(page)
            guest.free += 1
            rows.append(free(us, page, vcpu=k + 1))
        else:
            in_use.add(page)
            guest.allocate(S - (us % S))
            rows.append(alloc(us, page, vcpu=k + 1))
    scenario = f"balloon,interval_s=1,free_mib={leave * PAGE},step_mib={step * PAGE}"
    row = found(Tiny(rows, span_us=8 * S), scenario)
    assert -row["stall"]["low"] == pytest.approx(guest.waited_us * 1000, abs=5 * 40)


def test_an_allocation_waits_for_the_next_sample_when_nothing_else_is_free() -> None:
    trace = Tiny([*used(1), free(100, 0), alloc(2.25 * S, 0)], span_us=4 * S)
    row = found(trace, "balloon,interval_s=1,free_mib=0")
    # Taken at 1 s, asked for at 2.25 s, given back at 3 s: 0.75 s of lag and a fault of 5 ns.
    assert (row["stall"]["saved"], row["critical_path"]["saved"]) == (-750_000_005, -750_000_005)
    assert row["stall"]["high"] == -5  # a balloon that deflates by itself when memory runs out
    assert row["faults"]["baseline"] == 1
    assert row["faults"]["counterfactual"] == 2


def test_one_sample_moves_no_more_than_a_step() -> None:
    trace = Tiny([*used(3), free(100, 0, pages=3)], span_us=4 * S)
    row = found(trace, f"balloon,interval_s=1,free_mib=0,step_mib={PAGE}")
    # One page each at 1, 2 and 3 s, for 3 + 2 + 1 s.
    assert row["resident_time"]["saved"] * GIB_S == pytest.approx(6, rel=1e-6)


def test_an_allocation_of_what_was_left_free_costs_nothing() -> None:
    rows = [*used(3), free(100, 0, pages=2), free(1.2 * S, 2), alloc(1.5 * S, 2), alloc(2.75 * S, 1)]
    row = found(Tiny(rows, span_us=4 * S), f"balloon,interval_s=1,free_mib={PAGE}")
    # At 1 s two are free and one stays: page 0 goes, for 3 s. At 2 s page 1 alone is free (2 was used again
    # between samples), so nothing more goes, and the use of page 1 finds it as it was.
    assert row["refaults"]["saved"] == 0
    assert row["resident_time"]["saved"] * GIB_S == pytest.approx(3, rel=1e-6)


def test_a_deflated_page_faults_but_does_not_wait() -> None:
    rows = [*used(4), free(100, 0, pages=3), alloc(1.5 * S, 2), alloc(2.5 * S, 1)]
    row = found(Tiny(rows, span_us=4 * S), f"balloon,interval_s=1,free_mib={PAGE}")
    # At 1 s pages 0 and 1 go, 2 stays and is used at 1.5 s. At 2 s nothing is free: the balloon gives back
    # its youngest page, 1; its use at 2.5 s is a fault of 5 ns without a wait. At 3 s page 0 is given back.
    assert row["stall"]["saved"] == -5
    # Page 0 for 3 s, page 1 from 1 to 2.5 s.
    assert row["resident_time"]["saved"] * GIB_S == pytest.approx(4.5, rel=1e-6)


def test_huge_balloon_pages_need_whole_free_blocks() -> None:
    rows = [*used(512), free(100, 0, pages=511), free(1.5 * S, 511)]
    row = found(Tiny(rows, span_us=4 * S), "balloon,interval_s=1,free_mib=0,page=2m")
    # At 1 s one page of the block is in use; at 2 s the block goes, in one discard, for 2 s.
    assert row["resident_time"]["saved"] * GIB_S == pytest.approx(1024, rel=1e-6)
    assert row["host_cpu_background"]["saved"] == -1_000


def test_a_target_is_reached_with_memory_nobody_used_or_with_memory_the_host_holds() -> None:
    # 6 pages backed, 4 of them free; the VM of 4096 pages is to have 4.
    trace = Tiny([*used(6), free(100, 0, pages=4)], span_us=4 * S)
    row = found(trace, f"balloon,interval_s=1,target_mib={4 * PAGE}")["resident_time"]
    # At least the 6 - 4 pages above the target go, for 3 s; everything that is free, 4 pages, if Linux gives
    # the balloon what was freed last.
    assert row["saved"] * GIB_S == pytest.approx(12, rel=1e-6)
    assert row["low"] * GIB_S == pytest.approx(6, rel=1e-6)
    assert row["high"] * GIB_S == pytest.approx(12, rel=1e-6)


def test_a_balloon_with_a_target_is_filled_with_what_was_freed_last() -> None:
    # Pages 3 and 4 were never backed; 4096 pages are to become 4094: two pages go into the balloon.
    rows = [*used(3), free(50, 4), free(60, 0), free(70, 1), free(80, 3), free(90, 2)]
    row = found(Tiny(rows, span_us=4 * S), f"balloon,interval_s=1,target_mib={4094 * PAGE}")["resident_time"]
    # 2 and 3 were freed last, and 2 is the one that was backed: 3 s. At best two such go; at worst none.
    assert row["saved"] * GIB_S == pytest.approx(3, rel=1e-6)
    assert row["low"] * GIB_S == pytest.approx(0, abs=1e-6)
    assert row["high"] * GIB_S == pytest.approx(6, rel=1e-6)


def test_recorded_discards_without_the_lag_come_no_earlier_than_the_last_use() -> None:
    seen = {"us": 9.5 * S, "kind": "access", "gfn": 2, "arg": 1}
    rows = [fault(1 * S, 1), fault(2 * S, 2), seen, drop(10 * S, 1, pages=2)]
    row = found(Tiny(rows, span_us=12 * S), "balloon,policy=recorded,interval_s=4")["resident_time"]
    # Page 1 up to 4 s earlier, 2 s on average; page 2 at most half a second.
    assert row["saved"] * GIB_S == pytest.approx(2.5, rel=1e-6)
    assert row["low"] * GIB_S == pytest.approx(0, abs=1e-6)
    assert row["high"] * GIB_S == pytest.approx(4.5, rel=1e-6)


@pytest.mark.parametrize("vcpus", [0, 1])
def test_inside_a_vmm_a_guests_refault_is_one_of_its_threads(vcpus: int) -> None:
    # QEMU's TCG runs the guest in a thread: its faults, of 5 ns, are the host's, and so are those that come
    # back; nothing exits. Where vCPUs ran, a refault is an exit, at the profile's 1 us.
    faults = [fault(10, page, 0.005) | {"kind": "host_fault", "vcpu": None, "tid": 7} for page in range(2)]
    rows = [*faults, alloc(1, 0), alloc(1, 1), free(100, 0), alloc(2.5 * S, 0)]
    row = found(Tiny(rows, span_us=4 * S, vcpus=vcpus), "balloon,interval_s=1,free_mib=0")
    taker = "ept_4k" if vcpus else "host_minor_4k"
    assert row[f"faults_{taker}"]["saved"] == row["refaults"]["saved"] == -1
    assert ("exits" in row) == bool(vcpus)
    # Taken at 1 s, asked for at 2.5 s, given back at 3 s.
    assert row["stall"]["saved"] == -500_000_000 - (1_000 if vcpus else 5)


@pytest.mark.parametrize(
    ("scenario", "words"), [("balloon", "page_alloc and page_free"), ("balloon,policy=recorded", "discards")]
)
def test_what_a_policy_needs_and_the_trace_has_not_is_said(scenario: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        found(Tiny([fault(1, 1)]), scenario)


def test_a_target_needs_the_size_of_the_vm() -> None:
    with pytest.raises(UsageError, match="no memslots"):
        found(Tiny([*used(1), free(2, 0)], memory_pages=None), "balloon,target_mib=1")
