"""What the slow model found wrong in the engine (and once in itself), each case decided by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.replay_kit import Tiny, alloc, costs, drop, fault, free, metrics, replayed, saved
from tracekit.replay.result import Result
from tracekit.trace import Meta, TraceWriter
from tracekit.trace.batch import events_batch
from tracekit.trace.schema import PAGE_BYTES

NO_FAULT = "prealloc,via=pre_fault"
PAGE_US = PAGE_BYTES / 2**30 * 1e-6  # GiB*s of one page in one microsecond


def resident(result: Result, scenario: str) -> tuple[float, float]:
    """Return recorded and counterfactual page·us."""
    row = metrics(result, scenario)["resident_time"]
    return row["baseline"] / PAGE_US, row["counterfactual"] / PAGE_US


def test_a_fault_on_an_entry_that_was_there_is_no_first_touch() -> None:
    # Page 1 was mapped before the recording began (an entry was there): write protection, not population.
    rows = [fault(10, 1, 4, present=True), fault(20, 2, 4)]
    assert saved(Tiny(rows), NO_FAULT, "faults") == 1
    assert saved(Tiny(rows), "hot_hint,lead_ms=1,via=pre_fault", "faults", profile=costs()) == 1
    # It is resident from its first event on: 90 + 80 page·us.
    assert resident(replayed(Tiny(rows, span_us=100)), "baseline")[0] == pytest.approx(170)


def test_a_large_page_whose_zeroing_is_put_off_comes_back_by_one_fault() -> None:
    # The guest zeroes 2 MiB of free memory in one fault of 300 us; two of its pages are used later. The first
    # use takes the 300 us and maps all 512 pages; the second finds its page there.
    rows = [free(1, 0, pages=512), fault(400, 0, 300, level=2), alloc(500, 0), alloc(600, 7)]
    found = metrics(replayed(Tiny(rows, span_us=1000), "zeroing"), "zeroing")
    assert (found["faults"]["saved"], found["stall"]["saved"], found["refaults"]["saved"]) == (0, 0, 0)
    assert found["faults_ept_2m"]["counterfactual"] == 1


def test_a_gigabyte_put_off_comes_back_by_one_fault_too() -> None:
    rows = [free(1, 0, pages=512 * 512), fault(400, 0, 300, level=3), alloc(500, 0), alloc(600, 5_000)]
    trace = Tiny(rows, memory_pages=512 * 512, span_us=1000)
    found = metrics(replayed(trace, "zeroing", plain=False), "zeroing")
    assert (found["faults"]["saved"], found["stall"]["saved"], found["refaults"]["saved"]) == (0, 0, 0)


def test_a_hint_does_not_forget_that_the_page_came_zeroed() -> None:
    # Touched by the kernel (not free: no zeroing), then allocated and zeroed by the guest: once too often.
    rows = [fault(100, 1, 4), alloc(200, 1, zeroed=True)]
    for scenario in ("zeroing", "zeroing+hot_hint"):
        assert saved(Tiny(rows), scenario, "zeroed_twice", profile=costs()) == PAGE_BYTES


def test_the_untouched_rest_of_a_huge_page_is_reported_with_it() -> None:
    # One page of 512 touched at 10 us (mapped huge at 6 + 4 us); all freed at 20 us, reported 80 us later.
    rows = [fault(10, 0, 4), free(20, 0, pages=512)]
    scenario = "hugepages+free_page_reporting,from_mib=0,delay_s=0.00008"
    result = replayed(Tiny(rows, span_us=1000), scenario, profile=costs(ept_2m=4_000))
    assert resident(result, scenario)[1] == pytest.approx(512 * 90)


def test_memory_that_is_there_already_is_not_counted_again_by_a_gigabyte() -> None:
    # The host backed one page by itself: a 1 GiB entry does not fit over it, so nothing changes.
    rows = [{"us": 5, "kind": "madvise", "arg": 23, "gfn": 9, "pages": 1}, fault(10, 0, 4)]
    trace = Tiny(rows, memory_pages=512 * 512, span_us=100)
    recorded, counterfactual = resident(
        replayed(trace, "hugepages,size=1g", profile=costs()), "hugepages,size=1g"
    )
    assert recorded == counterfactual == pytest.approx(95 + 90)


def test_what_follows_an_overlapped_wait_follows_it_at_once() -> None:
    # Limit of one page: page 1 goes when page 2 comes; its use at 1000 us waits 100 us for the disk, but
    # another thread runs: nothing is lost. The first touch of page 3 at 2000 us then ends at 2000 us, and
    # from there on page 3 is resident (not from 2100 us on).
    use = {"us": 1000, "kind": "access", "gfn": 1, "vcpu": 0, "arg": 1}
    rows = [fault(100, 1, 1), fault(200, 2, 1), use, fault(2000, 3, 1)]
    scenario = "epf+swap,runnable=1,device=hdd,limit_mib=0.004,reclaim=background"
    profile = costs(epf_inject=0, epf_switch=0, epf_ready=0, swap_in_hdd=100_000)
    result = replayed(Tiny(rows, span_us=3000), scenario, profile=profile)
    # Page 1 from 100 to 199, page 2 from 200 to 1000, page 1 again from 1100 to 1999, page 3 to the end.
    assert resident(result, scenario)[1] == pytest.approx(99 + 800 + 899 + 1000)


def test_an_early_fault_that_began_before_the_recording_is_a_use_like_any_other() -> None:
    # The fault of 42 us at 5 us began at -37 us; saved but for 1 us it moves page 2's use to before 0.
    rows = [fault(5, 1, 42), fault(29, 2, 9)]
    scenario = "prealloc+cold_hint,cold_hint.policy=oracle"
    found = metrics(replayed(Tiny(rows, memory_pages=512, span_us=79), scenario, profile=costs()), scenario)
    assert found["host_cpu_background"]["counterfactual"] == 512_000 + 2_000  # both pages are taken


@pytest.fixture
def train(tmp_path: Path) -> Path:
    """An earlier run: pages 1, 2 and 9 first touched at 96, 196 and 296 us after its start."""
    with TraceWriter(tmp_path / "train.trace", Meta(source="synthetic", start_ns=5_000)) as writer:
        writer.append(
            events_batch(
                ts_ns=[105_000, 205_000, 305_000],
                kind="ept_violation",
                vcpu=0,
                gfn=[1, 2, 9],
                level=1,
                latency_ns=4_000,
            )
        )
    return tmp_path / "train.trace"


def test_an_earlier_run_teaches_which_pages_to_back_and_when(train: Path) -> None:
    # Hinted 20 us before the earlier touches: begun at 76, 176 and 276 us, each ready 1 us later. Here page 1
    # is touched at 90 us (in time), page 2 at 150 us (not begun), page 3 was not known, page 9 never comes.
    rows = [fault(94, 1, 4), fault(154, 2, 4), fault(200, 3, 4)]
    scenario = f"hot_hint,policy=previous,lead_ms=0.02,via=pre_fault,train={train}"
    found = metrics(replayed(Tiny(rows, span_us=1000), scenario, profile=costs()), scenario)
    assert (found["faults"]["saved"], found["stall"]["saved"]) == (1, 4_000)
    assert found["prefaults_wasted"]["counterfactual"] == 1
    assert found["hypercalls"]["counterfactual"] == 0  # the host hints to itself
    # Trained on itself with time to spare, every first touch is served.
    same = [fault(100, 1, 4), fault(200, 2, 4), fault(300, 9, 4)]
    assert saved(Tiny(same), scenario, "faults", profile=costs()) == 3


def test_a_page_of_the_earlier_run_is_backed_ahead_only_once(train: Path) -> None:
    # Served at 90 us, discarded at 200 us, touched again at 296 us: that fault is as recorded.
    rows = [fault(94, 1, 4), drop(200, 1), fault(300, 1, 4)]
    scenario = f"hot_hint,policy=previous,lead_ms=0.02,via=pre_fault,train={train}"
    assert saved(Tiny(rows), scenario, "faults", profile=costs()) == 1
