"""Large pages, population and what all mechanisms share, against answers computed by hand."""

from __future__ import annotations

from dataclasses import replace

import polars as pl
import pytest

from tests.unit.replay_kit import (
    Tiny,
    costs,
    drop,
    fault,
    figure,
    free,
    metrics,
    ranged,
    replayed,
    saved,
)
from tracekit.replay.costs import Cost
from tracekit.trace.schema import PAGE_BYTES

MIB = 1 << 20
NO_FAULT = "prealloc,via=pre_fault"


# -- hugepages


def test_what_the_host_touched_first_leaves_the_guest_one_exit_a_huge_region() -> None:
    # A VMM thread loads two pages; the guest exits once for each of them, and touches two more itself.
    loads = [fault(10, 0, 4, kind="host_fault", vcpu=None), fault(20, 1, 4, kind="host_fault", vcpu=None)]
    exits = [fault(100, 0, 3), fault(200, 1, 3), fault(300, 2, 4), fault(400, 3, 4)]
    prices = costs(host_minor_2m=50_000, ept_backed_4k=2_000)
    found = metrics(replayed(Tiny([*loads, *exits], span_us=1_000), "hugepages", profile=prices), "hugepages")
    # The host's first fault maps the region, its second goes; the guest's first exit stays as it was.
    assert found["faults"]["saved"] == 4
    assert found["exits"]["saved"] == 3
    assert found["stall"]["saved"] == (2 * 4 + 2 * 3 + 2 * 4) * 1000 - 50_000 - 3_000
    # Where the guest begins with a page of its own, that exit is what one takes on memory the host has.
    exits = [fault(100, 2, 4), fault(200, 0, 3), fault(300, 1, 3), fault(400, 3, 4)]
    found = metrics(replayed(Tiny([*loads, *exits], span_us=1_000), "hugepages", profile=prices), "hugepages")
    assert found["exits"]["saved"] == 3
    assert found["stall"]["saved"] == (2 * 4 + 2 * 3 + 2 * 4) * 1000 - 50_000 - 2_000


class LaidOutAnew(Tiny):
    """A VM whose firmware splits its one memslot at 1 MiB soon after the start, as QEMU's q35 does."""

    @property
    def memslots(self) -> pl.DataFrame:
        one = super().memslots
        low, soon = MIB, self.start_ns + 20_000
        split = one.with_columns(size_bytes=pl.lit(low, pl.UInt64), from_ns=pl.lit(soon, pl.UInt64))
        rest = split.with_columns(
            gpa=pl.lit(low, pl.UInt64),
            hva=pl.col("hva") + low,
            size_bytes=pl.lit(one["size_bytes"][0] - low, pl.UInt64),
        )
        return pl.concat([one.with_columns(to_ns=pl.lit(soon, pl.UInt64)), split, rest])


def test_memslots_that_were_there_for_a_moment_hold_no_huge_region() -> None:
    rows = [fault(100 + page, page, 4) for page in (0, 1, 512, 513)]
    found = metrics(replayed(LaidOutAnew(rows, span_us=1_000), "hugepages"), "hugepages")
    # The first 2 MiB lie in two memslots from 20 us on: its two faults stay; those of the next become one.
    assert (found["faults_ept_4k"]["counterfactual"], found["faults_ept_2m"]["counterfactual"]) == (2, 1)


def test_the_first_fault_of_a_huge_region_maps_it_all() -> None:
    rows = [fault(100, 0, 4), fault(200, 1, 4), fault(300, 511, 4), fault(400, 512, 4)]
    found = metrics(
        replayed(Tiny(rows, span_us=1_000), "hugepages", profile=costs(ept_2m=50_000)), "hugepages"
    )
    # Two regions: two faults of 50 us instead of four of 4 us.
    assert found["faults"]["saved"] == 2
    assert found["faults_ept_4k"]["counterfactual"] == 0
    assert found["faults_ept_2m"]["counterfactual"] == 2
    assert found["stall"]["counterfactual"] == 100_000
    assert found["stall"]["label"] == "assumed"
    assert found["faults"]["label"] == "assumed"  # that a huge page is always to be had
    assert found["resident_peak"]["counterfactual"] == 4 * MIB


def test_a_measured_huge_fault_beats_the_profile() -> None:
    rows = [fault(100, 0, 4), fault(900, 1024, 77, level=2)]
    found = figure(Tiny(rows), "hugepages", "stall")
    # The trace itself holds a 2M fault of 77 us: that is what the other region's fault costs here.
    assert found["counterfactual"] == 2 * 77_000
    # It was another fault: a price, with one sample and the profile's 50 to 90 us as its range. Saved are the
    # 4 us of the fault that went, less 77 us: from 4 - 90 to 4 - 50.
    profile = ranged(ept_2m=(60_000, 50_000, 90_000))
    found = figure(Tiny(rows), "hugepages", "stall", profile=profile)
    assert (found["low"], found["saved"], found["high"]) == (-86_000, -73_000, -46_000)
    assert found["label"] == "assumed"


def test_a_split_region_faults_by_4k_until_it_is_taken_away_as_a_whole() -> None:
    profile = costs(ept_2m=50_000)
    rows = [fault(100, 0, 4), drop(200, 5), fault(300, 5, 4), fault(400, 6, 4)]
    # Page 5 was discarded by itself: its refault stays 4K; page 6 is still mapped.
    found = metrics(replayed(Tiny(rows), "hugepages", profile=profile), "hugepages")
    assert (found["faults_ept_2m"]["counterfactual"], found["faults_ept_4k"]["counterfactual"]) == (1, 1)
    rows = [fault(100, 0, 4), drop(200, 0, 512), fault(300, 5, 4), fault(400, 6, 4)]
    found = metrics(replayed(Tiny(rows), "hugepages", profile=profile), "hugepages")
    assert (found["faults_ept_2m"]["counterfactual"], found["faults_ept_4k"]["counterfactual"]) == (2, 0)


def test_a_discard_takes_the_untouched_rest_of_a_huge_page_too() -> None:
    rows = [fault(0, 0, 0), drop(100, 0, 512)]
    found = metrics(replayed(Tiny(rows, span_us=200), "hugepages", profile=costs(ept_2m=0)), "hugepages")
    # 512 pages for 100 of 200 us.
    assert found["resident_mean"]["counterfactual"] == pytest.approx(MIB)


def test_a_gigabyte_region_is_mapped_whole() -> None:
    rows = [fault(100 * (k + 1), 600 * k, 4) for k in range(4)]
    trace = Tiny(rows, memory_pages=1 << 18, span_us=1_000)
    found = metrics(replayed(trace, "hugepages,size=1g", profile=costs(ept_1g=0)), "hugepages,size=1g")
    assert found["faults"]["counterfactual"] == 1
    assert found["resident_peak"]["counterfactual"] == 1024 * MIB
    # One page less, and no memslot holds the whole region: all four faults stay.
    assert saved(Tiny(rows, memory_pages=(1 << 18) - 1), "hugepages,size=1g", "faults") == 0


def test_a_region_is_mapped_huge_only_where_kvm_can() -> None:
    rows = [fault(100, 0), fault(200, 1), fault(300, 512), fault(400, 513)]
    assert saved(Tiny(rows), "hugepages", "faults") == 2
    # Guest address 0 at a host address that is not a multiple of 2 MiB: no region fits.
    assert saved(Tiny(rows, hva=(1 << 40) + PAGE_BYTES), "hugepages", "faults") == 0
    # Aligned to 2 MiB, not to 1 GiB.
    odd = Tiny(rows, hva=(1 << 40) + 2 * MIB, memory_pages=1 << 18)
    assert (saved(odd, "hugepages", "faults"), saved(odd, "hugepages,size=1g", "faults")) == (2, 0)
    # The memslot ends within the second region.
    assert saved(Tiny(rows, memory_pages=700), "hugepages", "faults") == 1
    # Host addresses not known: between nothing and all of it.
    for unknown in (Tiny(rows, known_by="assumed"), Tiny(rows, memory_pages=None)):
        found = figure(unknown, "hugepages", "faults")
        assert (found["low"], found["saved"], found["high"], found["label"]) == (0, 2, 2, "assumed")


# -- prealloc


def test_prealloc_moves_every_fault_to_the_start() -> None:
    rows = [fault(100, 1, 4), fault(200, 2, 4), drop(300, 1), fault(400, 1, 4)]
    trace = Tiny(rows, memory_pages=1024, span_us=1_000)
    name = NO_FAULT
    found = metrics(replayed(trace, name, profile=costs()), name)
    # The refault after the discard stays; 1024 pages of 1 us each are populated first, by one thread.
    assert found["faults"]["saved"] == 2
    assert found["startup"]["counterfactual"] == 1_024_000
    assert found["critical_path"]["saved"] == 8_000 - 1_024_000
    # Full from the start; page 1 is away from 292 to 392 us on a vCPU that is 8 us ahead.
    assert found["resident_peak"]["counterfactual"] == 1024 * PAGE_BYTES
    four = metrics(replayed(trace, "prealloc,threads=4", profile=costs()), "prealloc,threads=4")
    assert four["startup"]["counterfactual"] == 256_000
    assert four["host_cpu_background"]["counterfactual"] == 1_024_000


def test_prealloc_of_the_hosts_page_table_shortens_the_guests_exits() -> None:
    of_vmm = {
        "us": 300,
        "kind": "host_fault",
        "hva": (1 << 40) + 3 * PAGE_BYTES,
        "tid": 7,
        "latency_ns": 9_000,
    }
    rows = [fault(100, 1, 4), fault(200, 2, 4), of_vmm, fault(400, 4, 0.4)]
    profile = costs()
    backed = Cost(1_000, 500, 2_000, "the test")
    profile = replace(profile, costs={**profile.costs, "ept_backed_4k": backed})
    found = metrics(replayed(Tiny(rows), "prealloc", profile=profile), "prealloc")
    # Three exits stay: 1 + 1 us, and 0.4 us as recorded, shorter than the price. The VMM's fault goes.
    assert (found["faults"]["saved"], found["exits"]["saved"]) == (1, 0)
    assert (found["stall"]["baseline"], found["stall"]["counterfactual"]) == (17_400, 2_400)
    # At 0.5 to 2 us each the two exits leave between 1.4 and 4.4 us.
    assert (found["stall"]["low"], found["stall"]["high"]) == (13_000, 16_000)
    assert found["stall"]["label"] == found["faults"]["label"] == "assumed"


def test_shadow_paging_maps_the_neighbours_that_the_host_has_already() -> None:
    rows = [fault(100 * (n + 1), gfn, 4) for n, gfn in enumerate((1, 2, 7, 8, 9))]
    trace = Tiny(rows, host={"mmu_mode": "shadow"})
    found = metrics(replayed(trace, "prealloc", profile=costs()), "prealloc")
    # Two aligned groups of eight: one fault each. At worst the guest's own tables forbid it: all five stay.
    assert (found["exits"]["counterfactual"], found["exits"]["saved"], found["exits"]["low"]) == (2, 3, 0)
    assert found["stall"]["counterfactual"] == 2_000
    assert saved(Tiny(rows), "prealloc", "exits", profile=costs()) == 0


def test_a_hinted_page_is_mapped_with_its_neighbour_under_shadow_paging() -> None:
    rows = [fault(1_000 + 100 * gfn, gfn, 4) for gfn in (1, 2, 7, 8, 9)]
    trace = Tiny(rows, host={"mmu_mode": "shadow"})
    name = "hot_hint,policy=oracle,lead_ms=1,batch=511"
    found = metrics(replayed(trace, name, profile=costs(prefault_4k=100)), name)
    # Two groups of eight: one exit each stays, and one hypercall hints all.
    assert found["faults"]["counterfactual"] == 2
    assert found["exits"]["counterfactual"] == 3
    assert metrics(replayed(Tiny(rows), name, profile=costs()), name)["faults"]["counterfactual"] == 5


def test_the_critical_path_gains_exits_and_loses_cold_touches() -> None:
    rows = [fault(100, 1, 4), fault(200, 2, 4)]
    profile = costs(prefault_4k=0, exit=700, cold_touch_4k=50)
    path = figure(Tiny(rows, span_us=300), NO_FAULT, "critical_path", profile=profile)
    assert path["saved"] == 2 * (4_000 + 700 - 50)


def test_population_before_the_memslot_is_population() -> None:
    populate = {"us": 5, "kind": "madvise", "hva": 1 << 40, "pages": 4, "arg": 23}
    trace = Tiny([populate, fault(100, 1, 4)], span_us=200)
    trace.slots_from_ns = trace.start_ns + 50_000
    found = metrics(replayed(trace), "baseline")
    assert found["resident_peak"]["baseline"] == 4 * PAGE_BYTES


def test_a_second_fault_on_a_preallocated_page_stays_as_it_was() -> None:
    rows = [fault(100, 1, 4), fault(200, 1, 4), drop(300, 1), fault(400, 1, 4)]
    assert saved(Tiny(rows), "prealloc", "stall", profile=costs()) == 3_000


def test_one_exit_maps_a_whole_preallocated_huge_page() -> None:
    rows = [fault(100, 0, 4), fault(200, 1, 4), fault(300, 512, 4)]
    found = metrics(replayed(Tiny(rows), "prealloc,size=2m", profile=costs()), "prealloc,size=2m")
    # Two exits of 1 us map both huge pages; page 1 is mapped by then.
    assert (found["faults"]["saved"], found["stall"]["saved"]) == (1, 10_000)
    # Where KVM can't map 2 MiB, every page exits by itself.
    odd = Tiny(rows, hva=(1 << 40) + PAGE_BYTES)
    assert saved(odd, "prealloc,size=2m", "stall", profile=costs()) == 9_000


# -- faults that map nothing


def test_a_fault_without_a_level_maps_nothing_where_the_trace_names_levels() -> None:
    rows = [fault(10, 1, 4, level=None), fault(20, 1, 4), fault(40, 2, 4)]
    found = metrics(replayed(Tiny(rows, span_us=100), NO_FAULT), NO_FAULT)
    assert found["faults"]["saved"] == 2  # the one at 10 us stays, and the one at 20 us is the first touch
    # Resident in the recording: (100 - 20) + (100 - 40) page·us.
    assert found["resident_time"]["baseline"] * 2**30 / PAGE_BYTES * 1e6 == pytest.approx(140)
    # A trace without any level: each first fault on a page backs it, as before.
    bare = [row | {"level": None} for row in rows]
    found = metrics(replayed(Tiny(bare, span_us=100), NO_FAULT), NO_FAULT)
    assert found["faults"]["saved"] == 2  # those at 10 and 40 us; the one at 20 us is on a backed page
    assert found["resident_time"]["baseline"] * 2**30 / PAGE_BYTES * 1e6 == pytest.approx(150)


# -- time


def test_a_removed_stall_moves_everything_later_on_its_vcpu() -> None:
    # vCPU 0 loses 4 + 6 us of 100; vCPU 1 loses 20. Independent: the last event (on vCPU 1) is 20 us earlier,
    # but vCPU 0 gains only 10; all waiting for each other: 30 (no two stalls overlap).
    rows = [fault(10, 1, 4), fault(40, 2, 6), fault(100, 3, 20, vcpu=1)]
    found = figure(Tiny(rows, span_us=100), NO_FAULT, "stall", profile=costs(prefault_4k=0))
    assert found["saved"] == 30_000
    path = figure(Tiny(rows, span_us=100), NO_FAULT, "critical_path", profile=costs(prefault_4k=0))
    # If the guest follows a clock of its own, nothing ends earlier: the low end.
    assert (path["low"], path["saved"], path["high"]) == (0, 20_000, 30_000)
    assert path["label"] == "assumed"  # that the host fills the MMU's entries too is the scenario's


def test_stalls_that_overlap_are_removed_once() -> None:
    # vCPU 0 waits from 10 to 30, vCPU 1 from 20 to 40: at most 30 us of elapsed time can be saved.
    rows = [fault(30, 1, 20), fault(40, 2, 20, vcpu=1)]
    path = figure(Tiny(rows, span_us=100), NO_FAULT, "critical_path", profile=costs(prefault_4k=0))
    assert path["high"] == 30_000
    # The same two on one vCPU (one inside the other's time): it runs 30 us ahead, not 40.
    rows = [fault(30, 1, 20), fault(40, 2, 20)]
    path = figure(Tiny(rows, span_us=100), NO_FAULT, "critical_path", profile=costs(prefault_4k=0))
    assert path["saved"] == 30_000


def test_open_loop_keeps_every_event_where_it_was() -> None:
    rows = [fault(10, 1, 4), fault(40, 2, 6)]
    row = figure(
        Tiny(rows, span_us=100),
        NO_FAULT,
        "critical_path",
        closed_loop=False,
        profile=costs(prefault_4k=0),
    )
    assert row["saved"] == 0


# -- combinations, losses


def test_a_combination_saves_no_page_twice_and_its_steps_add_up() -> None:
    rows = [fault(100 * k, k, 4) for k in range(1, 6)]
    name = "zeroing+hot_hint+prealloc"
    result = replayed(Tiny(rows), name)
    whole = metrics(result, name)
    assert whole["faults"]["saved"] == 5
    steps = {m: metrics(result, name, m)["faults"]["saved"] for m in ("zeroing", "hot_hint", "prealloc")}
    # Order: zeroing first (nothing is touched at all), then what backs memory; each step starts where the
    # one before ended.
    assert steps == {"zeroing": 5, "hot_hint": 0, "prealloc": 0}


def test_lost_events_widen_every_interval_that_they_could_change() -> None:
    rows = [fault(100, 1, 4), fault(200, 2, 4)]
    none = figure(Tiny(rows), NO_FAULT, "faults")
    some = figure(Tiny(rows, lost=3), NO_FAULT, "faults")
    unknown = figure(Tiny(rows, lost=None), NO_FAULT, "faults")
    assert (none["low"], none["high"], none["label"]) == (2, 2, "assumed")
    assert (some["low"], some["saved"], some["high"], some["label"]) == (-1, 2, 5, "assumed")
    assert (unknown["low"], unknown["high"]) == (None, None)


def test_swap_outs_without_a_page_matter_to_what_moves_pages() -> None:
    # Of a wait of 5 ms as much is overlapped, whatever else the host has swapped out; of what prealloc
    # saves, each of 7 swap-outs may have been of a page that then faults, or does not.
    rows = [fault(6_000, 1, 5_000, major=True), fault(6_100, 2, 4)]
    unplaced = [
        (None, "swap_out_unplaced (at most 4)"),
        (None, "swap_out_unplaced (at most 3)"),
        (2, "ring_full"),
    ]
    whole = figure(Tiny(rows), "epf,runnable=1", "critical_path")
    trace = Tiny(rows, lost=None, losses_of=unplaced[:2])
    found = metrics(replayed(trace, "epf,runnable=1"), "epf,runnable=1")
    assert {end: found["critical_path"][end] for end in ("low", "saved", "high")} == {
        end: whole[end] for end in ("low", "saved", "high")
    }
    assert (found["resident_peak"]["low"], found["resident_peak"]["high"]) == (0, 0)
    assert found["resident_peak"]["label"] != "measured"
    moved = figure(trace, NO_FAULT, "faults")
    assert (moved["low"], moved["saved"], moved["high"]) == (2 - 7, 2, 2 + 7)
    more = figure(Tiny(rows, lost=None, losses_of=unplaced), NO_FAULT, "faults")
    assert (more["low"], more["high"]) == (2 - 9, 2 + 9)
    # A number of which nothing is known, or another reason's, bounds nothing.
    for reason in ("swap_out_unplaced", "nested BPF programs (at most 5)"):
        open_one = figure(Tiny(rows, lost=None, losses_of=[*unplaced, (None, reason)]), NO_FAULT, "faults")
        assert (open_one["low"], open_one["high"]) == (None, None)


def test_memory_that_is_taken_at_once_comes_back_between_two_looks() -> None:
    # 10 s are looked at every 4.2 ms. Pages are used one after another, each gone 0.1 ms later; then all five
    # at once, and gone again before the next look: of a peak of 5 pages nothing is saved.
    rows = [fault(100_000 * (k + 1), k, 0.1) for k in range(5)]
    rows.append({"us": 5_000_000, "kind": "access", "gfn": 0, "pages": 5, "arg": 1})
    trace = Tiny(rows, span_us=10_000_000)
    idle = "policy=idle,idle_s=0.0001,scan_ms=0"
    row = figure(trace, f"cold_hint,{idle}", "resident_peak", closed_loop=False)
    assert (row["baseline"], row["counterfactual"], row["low"]) == (5 * PAGE_BYTES, 0, 0)
    # Under a limit of 3 pages it can't have been more than those.
    both = f"cold_hint+swap,cold_hint.{idle.replace(',', ',cold_hint.')},limit_mib={3 / 256}"
    assert figure(trace, both, "resident_peak", closed_loop=False)["low"] == 2 * PAGE_BYTES


def test_pages_backed_ahead_for_a_moment_may_exceed_the_recorded_peak() -> None:
    # Four free pages are hinted hot, and discarded 0.1 ms after they were freed: before the next look. The
    # recording never had more than one.
    rows = [fault(100_000, 0, 0.1), *(free(200_000, page) for page in range(1, 5))]
    rows += [
        {"us": 200_001, "kind": "hv_hypercall", "gfn": 1, "pages": 4, "arg": 0x8003 | 2 << 16, "vcpu": 0}
    ]
    hinted = "hot_hint+cold_hint,hot_hint.policy=recorded,order=0,delay_ms=0.1"
    row = figure(Tiny(rows, span_us=10_000_000), hinted, "resident_peak", closed_loop=False)
    assert (row["baseline"], row["low"]) == (PAGE_BYTES, -4 * PAGE_BYTES)


@pytest.mark.parametrize("scenario", ["epf,runnable=1", f"epf+swap,runnable=1,limit_mib={256 / 256}"])
def test_a_vcpu_that_is_earlier_has_its_pages_before_anothers_are_gone(scenario: str) -> None:
    # vCPU 1 holds ten pages until 704 us. vCPU 0 waited for 500 us; doing something else meanwhile, it is
    # earlier by nearly that: its ten pages, of 1,198.6 us on, come just before 704 us. So 10 + 1 + 10 pages
    # are there at once (the recording has 12: its last page is used at 5 ms), within one look of 2 us.
    rows = [fault(100 + k, 20 + k, 0.1, vcpu=1) for k in range(10)]
    rows.append(fault(600, 100, 500, major=True))
    rows.append({"us": 704, "kind": "balloon_inflate", "gfn": 20, "pages": 10, "vcpu": 1})
    rows += [fault(1198.6 + k / 20, 40 + k, 0.05) for k in range(10)]
    rows.append(fault(5000, 200, 0.1, vcpu=1))
    row = figure(Tiny(rows, span_us=8_192), scenario, "resident_peak", profile=costs())
    assert row["baseline"] == 12 * PAGE_BYTES
    assert row["low"] <= (12 - 21) * PAGE_BYTES
    assert row["label"] != "measured"


def test_what_came_and_went_between_two_looks_is_in_the_interval_of_the_peak() -> None:
    # 8,192 us are looked at every 2,048 ns. Two pages come within one such span; freed, they are discarded
    # long before the third comes: 3 pages at once become 2.
    rows = [fault(100.6, 0, 0.1), fault(101.2, 1, 0.1), free(150, 0), free(151, 1), fault(900, 2, 0.1)]
    trace = Tiny(rows, span_us=8_192)
    discarded = "cold_hint,policy=on_free,order=0,delay_ms=0.01"
    row = figure(trace, discarded, "resident_peak", closed_loop=False)
    assert (row["baseline"], row["counterfactual"]) == (3 * PAGE_BYTES, 2 * PAGE_BYTES)
    assert row["low"] == row["high"] == PAGE_BYTES
    # Discarded within the span in which the third comes (899.07 to 901.12 us), all may have been there for a
    # moment; more than the recorded peak it can't have been.
    rows[2]["us"], rows[3]["us"] = 890.5, 890.6
    row = figure(trace, discarded, "resident_peak", closed_loop=False)
    assert (row["counterfactual"], row["low"], row["high"]) == (2 * PAGE_BYTES, 0, PAGE_BYTES)
    # Memory that is only backed in another order has no such moments.
    row = figure(trace, "prealloc", "resident_peak", closed_loop=False)
    assert row["low"] == row["high"] == row["saved"]
    # What comes and goes at once in the recording may be saved by a limit: five pages, of which four are
    # discarded before the next look, were two. At the looks there is one page in both.
    rows = [fault(100.5 + page / 9, page, 0.1) for page in range(5)]
    rows.append({"us": 101.5, "kind": "madvise", "gfn": 0, "pages": 4, "arg": 4})
    trace = Tiny(rows, span_us=8_192)
    row = figure(trace, f"swap,limit_mib={2 / 256}", "resident_peak", closed_loop=False)
    assert (row["baseline"], row["saved"], row["high"]) == (PAGE_BYTES, 0, 4 * PAGE_BYTES)
    assert row["label"] != "measured"
    # Where nothing changed, nothing hid.
    row = figure(trace, "epf,runnable=1", "resident_peak", closed_loop=False)
    assert row["low"] == row["high"] == 0


@pytest.mark.parametrize("closed_loop", [False, True])
def test_what_would_be_there_after_the_end_is_not(closed_loop: bool) -> None:
    # A fault from 6 to 10 us, the trace ends at 12 us. As a block of 2M it takes 100 us: in an open loop the
    # block is there at 106 us, never; a closed loop waits, ends at 108 us, and has 512 pages for 2 us.
    trace, big = Tiny([fault(10, 0, 4)], memory_pages=512, span_us=12), costs(ept_2m=100_000)
    found = metrics(replayed(trace, "hugepages", profile=big, closed_loop=closed_loop), "hugepages")
    pages, us = (512, 108) if closed_loop else (0, 12)
    assert found["resident_peak"]["counterfactual"] == pages * PAGE_BYTES
    assert found["resident_mean"]["counterfactual"] == pytest.approx(pages * PAGE_BYTES * 2 / us)


def test_what_a_worker_has_after_the_end_of_a_closed_loop_is_not_there() -> None:
    # Page 4 is hinted by the fault on page 3; a page takes the worker 10 s, the trace 100 us.
    slow, hint = costs(prefault_4k=10_000_000_000), "hot_hint,policy=stride,n=1"
    rows = [fault(10 * k, k, 4) for k in range(1, 4)]
    found = metrics(replayed(Tiny(rows, memory_pages=512, span_us=100), hint, profile=slow), hint)
    assert found["resident_peak"]["counterfactual"] == 3 * PAGE_BYTES


def test_memory_backed_ahead_is_above_a_limit_for_a_moment() -> None:
    # 16 pages from the start; one is discarded at 1 us, in the first of 10 s / 4,096. The recording has one.
    rows = [drop(1, 5), fault(2, 0, 0.5)]
    both = "prealloc+swap,swap.limit_mib=0.0078125"
    row = figure(Tiny(rows, memory_pages=16, span_us=10_000_000), both, "resident_peak", profile=costs())
    assert (row["baseline"], row["counterfactual"]) == (PAGE_BYTES, 15 * PAGE_BYTES)
    assert row["low"] <= (1 - 16) * PAGE_BYTES
