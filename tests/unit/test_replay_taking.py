"""Mechanisms that take memory away, against answers computed by hand (arithmetic in the comments)."""

from __future__ import annotations

import pytest

from tests.unit.replay_kit import Tiny, alloc, costs, drop, fault, free, metrics, replayed
from tracekit.errors import UsageError
from tracekit.trace.schema import PAGE_BYTES

GIB_S = (1 << 30) / PAGE_BYTES  # page-seconds in one GiB*s


def block_freed_and_partly_used_again() -> Tiny:
    """A 2 MiB block: used at once, freed whole at 0.1 ms, four pages zeroed and used at 3 s; ends at 4 s."""
    used = [alloc(1, page) for page in range(512)] + [fault(10, page, 0.005) for page in range(512)]
    return Tiny(
        [*used, free(100, 0, pages=512), alloc(3_000_000, 0, pages=4, zeroed=True)], span_us=4_000_000
    )


@pytest.mark.parametrize("scenario", ["free_page_reporting,from_mib=0", "cold_hint"])
def test_a_block_is_taken_when_all_of_it_was_free_for_the_delay(scenario: str) -> None:
    found = metrics(replayed(block_freed_and_partly_used_again(), scenario, profile=costs()), scenario)
    # Gone from 2.0001 s on: 512 pages x (4 - 2.0001) s, less four pages that are back for the last second
    # (they come 5 ns later each, the price of an MMU fault in this trace: below what is compared here).
    assert found["resident_time"]["saved"] * GIB_S == pytest.approx(512 * 1.9999 - 4 * 1.0, rel=1e-6)
    assert (found["refaults"]["saved"], found["faults"]["saved"]) == (-4, -4)
    assert found["stall"]["saved"] == -4 * 5
    assert found["hypercalls"]["saved"] == -1
    assert found["host_cpu_background"]["saved"] == -512_000  # memory that came as small pages goes so


def test_pages_on_the_cpus_own_lists_hold_their_blocks_back() -> None:
    # Four blocks are used, then freed one after another; the last 513 freed pages are on the lists at the
    # end: block 3 whole, and the last page of block 2.
    rows = [fault(10, page, 0.005) for page in range(2048)]
    rows += [free(100 + page * 0.01, page) for page in range(2048)]
    scenario = "free_page_reporting,from_mib=0,pcp_pages=513"
    result = replayed(Tiny(rows, span_us=4_000_000), scenario, profile=costs())
    found = metrics(result, scenario)
    assert found["hypercalls"]["saved"] == -1
    # Blocks 0 and 1 go for 1.9999 s less 5.13 us, for so long their last page was on a list; all at best.
    assert found["resident_time"]["saved"] * GIB_S == pytest.approx(2 * 512 * 1.9999, rel=2e-5)
    assert found["resident_time"]["high"] * GIB_S == pytest.approx(4 * 512 * 1.9999, rel=2e-5)
    # With one page less block 2 goes as well.
    fewer = scenario.replace("513", "512")
    saved = metrics(replayed(Tiny(rows, span_us=4_000_000), fewer, profile=costs()), fewer)["resident_time"]
    assert saved["saved"] * GIB_S == pytest.approx(3 * 512 * 1.9999, rel=2e-5)


def test_a_page_that_is_used_again_leaves_the_lists_unseen() -> None:
    # All of a block is freed and on the lists; page 5 is used again, then 512 others of another block push
    # them out: page 5 is not free, and holds its block.
    rows = [fault(10, page, 0.005) for page in range(1024)]
    rows += [free(100, page) for page in range(512)] + [alloc(200, 5)]
    rows += [free(300, page) for page in range(512, 1024)]
    scenario = "free_page_reporting,from_mib=0,pcp_pages=512"
    found = metrics(replayed(Tiny(rows, span_us=4_000_000), scenario, profile=costs()), scenario)
    assert found["hypercalls"]["saved"] == 0


@pytest.mark.parametrize("scenario", ["free_page_reporting,from_mib=0", "cold_hint"])
def test_one_page_in_use_keeps_its_block_and_smaller_orders_go_around_it(scenario: str) -> None:
    used = [fault(10, page, 0.005) for page in range(512)]
    trace = Tiny([*used, free(100, 0, pages=7), free(100, 8, pages=504)], span_us=4_000_000)
    assert metrics(replayed(trace, scenario, profile=costs()), scenario)["resident_time"]["saved"] == 0
    smaller = f"{scenario},order=3"
    found = metrics(replayed(trace, smaller, profile=costs()), smaller)
    # Page 7 stays, and with it its group of eight: 504 pages x 1.9999 s, 63 groups.
    assert found["resident_time"]["saved"] * GIB_S == pytest.approx(504 * 1.9999, rel=1e-6)
    assert found["hypercalls"]["saved"] == (
        -2 if scenario.startswith("free_page") else -1
    )  # 32 and 511 a call


def test_a_vcpu_that_discards_itself_takes_the_time_for_it() -> None:
    trace = block_freed_and_partly_used_again()
    names = ("cold_hint", "cold_hint,by=beside")
    own, beside = (metrics(replayed(trace, one, profile=costs()), one)["critical_path"] for one in names)
    # 512 pages of 4 KiB at 1 us each, and one hypercall; a vCPU that was idle then loses nothing.
    assert own["saved"] - beside["saved"] == -513_000
    assert own["low"] - beside["low"] == -513_000
    assert own["high"] == beside["high"]


def test_memory_used_again_within_the_delay_is_not_taken() -> None:
    rows = [fault(10, page, 0.005) for page in range(512)]
    rows += [free(100, 0, pages=512), alloc(1_000_000, 5), free(1_500_000, 5)]
    scenario = "free_page_reporting,from_mib=0"
    trace = Tiny(rows, span_us=4_000_000)
    found = metrics(replayed(trace, scenario, profile=costs()), scenario)
    # The clock of the block starts again at 1.5 s: due at 3.5 s, so half a second is saved.
    assert found["resident_time"]["saved"] * GIB_S == pytest.approx(512 * 0.5, rel=1e-6)
    assert found["refaults"]["saved"] == 0


def test_lazily_freed_memory_saves_between_nothing_and_all() -> None:
    scenario = "free_page_reporting,from_mib=0,discard=lazily"
    found = metrics(replayed(block_freed_and_partly_used_again(), scenario, profile=costs()), scenario)
    assert found["resident_time"]["low"] == 0
    assert found["resident_time"]["high"] * GIB_S == pytest.approx(512 * 1.9999 - 4, rel=1e-6)
    # When the four pages are back rests on what their refaults cost: a price.
    assert found["resident_time"]["label"] == "assumed"


def test_idle_pages_go_to_swap_and_the_scan_period_makes_the_interval() -> None:
    # One page, used at 0 s and seen in use at 10 s: idle for 10 s with a threshold of 4 s, scanned every 1 s.
    rows = [fault(0, 1, 0), {"us": 10_000_000, "kind": "access", "gfn": 1, "vcpu": 0, "arg": 3}]
    rows.append({"us": 5_000_000, "kind": "access", "gfn": 1, "vcpu": 0, "arg": 0})  # looked at, not used
    scenario = "cold_hint,policy=idle,idle_s=4,scan_ms=1000"
    trace = Tiny(rows, span_us=12_000_000)
    found = metrics(replayed(trace, scenario, profile=costs()), scenario)
    # Taken at 4 s (3 .. 5), back at 10 s; not idle for 4 s again before the end: 6 s saved, 5 .. 7.
    assert found["resident_time"]["saved"] * GIB_S == pytest.approx(6, rel=1e-6)
    assert found["resident_time"]["low"] * GIB_S == pytest.approx(5, rel=1e-6)
    assert found["resident_time"]["high"] * GIB_S == pytest.approx(7, rel=1e-6)
    # Its contents were kept, so it waits for swap: a major fault of 1 us by this profile.
    assert found["faults_ept_major_4k"]["saved"] == -1
    assert found["stall"]["saved"] == -1000


def test_the_oracle_takes_a_page_at_its_last_use_and_never_refaults() -> None:
    rows = [fault(1_000_000, 1, 0), fault(2_000_000, 2, 0), alloc(3_000_000, 1)]
    found = metrics(
        replayed(Tiny(rows, span_us=10_000_000), "cold_hint,policy=oracle"), "cold_hint,policy=oracle"
    )
    # Page 1 from 3 s, page 2 from 2 s on: 7 + 8 page-seconds at most; nothing at least.
    assert found["resident_time"]["high"] * GIB_S == pytest.approx(15, rel=1e-6)
    assert found["resident_time"]["low"] == 0
    assert found["refaults"]["saved"] == 0


def test_recorded_cold_hints_are_followed_at_once() -> None:
    hint = {"us": 2_000_000, "kind": "hv_hypercall", "gfn": 1, "pages": 2, "vcpu": 0}
    discard = {**hint, "arg": 3 << 16 | 0x8003}  # 1 + heat type 2 (cold discard) above the code
    rows = [fault(1, 1, 0.001), fault(2, 2, 0.001), discard]
    scenario = "cold_hint,policy=recorded"
    found = metrics(replayed(Tiny(rows, span_us=10_000_000), scenario, profile=costs()), scenario)
    assert found["resident_time"]["saved"] * GIB_S == pytest.approx(16, rel=1e-6)
    assert found["host_cpu_background"]["saved"] == -2000  # two 4 KiB pages


@pytest.mark.parametrize(
    ("device", "stall", "background"), [("zram", 3_000, 2 * 500 + 2_000), ("file", 70_000, 2 * 500 + 9_000)]
)
def test_what_is_paged_out_costs_what_its_device_does(device: str, stall: int, background: int) -> None:
    hint = {"kind": "hv_hypercall", "vcpu": 0}
    cold = {**hint, "us": 100, "gfn": 1, "arg": 1 << 16 | 0x8003}  # 1 + heat type 0 (cold) above the code
    discard = {**hint, "us": 200, "gfn": 2, "arg": 3 << 16 | 0x8003}
    rows = [fault(10, 1, 0.007), fault(20, 2, 0.007), cold, discard, alloc(300, 1), alloc(400, 2)]
    scenario = f"cold_hint,policy=recorded,device={device}"
    prices = costs(
        ept_major_4k=40_000, swap_in_zram=3_000, swap_in_file=70_000, unmap_4k=500, exit=900,
        page_out_zram=2_000, swap_out_zram=8_000, swap_out_device=9_000,
    )  # fmt: skip
    found = metrics(replayed(Tiny(rows, span_us=500), scenario, profile=prices), scenario)
    # Page 1 comes back from the device; page 2, discarded, by an MMU fault as the trace's others (7 ns).
    # A trace's latencies hold no way out of the guest and back; the price of a swap-in does.
    assert found["stall"]["saved"] == -(stall - 900 + 7)
    assert found["faults_ept_major_4k"]["saved"] == -1
    # Both are unmapped; only page 1 is written anywhere.
    assert found["host_cpu_background"]["saved"] == -background
    # The vCPU does that as well, and leaves the guest once more for page 2.
    assert found["critical_path"]["saved"] == -(stall + 7 + background + 900)


def test_a_trace_that_holds_swap_ins_says_what_they_take() -> None:
    hint = {"us": 100, "kind": "hv_hypercall", "gfn": 1, "vcpu": 0, "arg": 1 << 16 | 0x8003}
    major = fault(50, 2, 0.025) | {"flags": 1}
    trace = Tiny([fault(10, 1, 0.007), major, hint, alloc(300, 1)], span_us=500)
    scenario = "cold_hint,policy=recorded,device=zram"
    found = metrics(replayed(trace, scenario, profile=costs(swap_in_zram=3_000)), scenario)
    assert found["stall"]["saved"] == -25


@pytest.mark.parametrize(
    ("scenario", "words"),
    [
        ("free_page_reporting", "page_free"),
        ("cold_hint,policy=idle", "access samples"),
        ("cold_hint,policy=recorded", "heat hints"),
    ],
)
def test_what_a_policy_needs_and_the_trace_has_not_is_said(scenario: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        replayed(Tiny([fault(1, 1)]), scenario)


def test_memory_that_came_back_need_not_be_zeroed_again() -> None:
    rows = [
        alloc(1, 1, zeroed=True),
        fault(2, 1),  # new memory: that is `zeroing`'s, not counted here
        free(10, 1),
        drop(20, 1, kind="free_page_report"),
        alloc(30, 1, zeroed=True),  # taken since: comes zeroed, and the guest zeroes it again
        fault(31, 1),
        free(40, 1),
        alloc(50, 1, zeroed=True),  # not taken since: the guest must zero it
    ]
    name = "zeroing_after_reuse"
    found = metrics(replayed(Tiny(rows), name, profile=costs(guest_zero_4k=1000)), name)
    assert found["zeroed_twice"]["saved"] == found["zeroed_twice"]["low"] == PAGE_BYTES
    assert found["guest_cpu"]["saved"] == 1000
    assert found["faults"]["saved"] == 0
    # The host alone sees one refault by a write on a page that was taken: nothing .. one page.
    host_only = Tiny([row for row in rows if not row["kind"].startswith("page_")])
    found = metrics(replayed(host_only, name, profile=costs()), name)
    assert (found["zeroed_twice"]["low"], found["zeroed_twice"]["high"]) == (0, PAGE_BYTES)


def test_compiled_and_plain_runs_agree() -> None:
    trace = block_freed_and_partly_used_again()
    scenario = "cold_hint+zeroing_after_reuse"
    plain = replayed(trace, scenario, profile=costs(), plain=True)
    assert plain.rows.equals(replayed(trace, scenario, profile=costs(), plain=False).rows)
