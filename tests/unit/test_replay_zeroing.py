"""Zeroing against answers computed by hand; the arithmetic stands in the comments."""

from __future__ import annotations

import polars as pl
import pytest

from tests.unit.replay_kit import (
    Tiny,
    alloc,
    costs,
    drop,
    fault,
    figure,
    free,
    metrics,
    replayed,
    saved,
)
from tracekit.errors import UsageError
from tracekit.trace.schema import FLAG_KERNEL, PAGE_BYTES

MIB = 1 << 20
NO_FAULT = "prealloc,via=pre_fault"


def test_zeroing_on_a_host_only_trace_lies_between_nothing_and_all_first_touches_by_writes() -> None:
    # Three first touches by writes of 4 us, one by a read, one refault by a write after a discard.
    rows = [fault(10, 1), fault(20, 2), fault(30, 3), fault(40, 4, write=False), drop(50, 1), fault(60, 1)]
    found = metrics(replayed(Tiny(rows), "zeroing"), "zeroing")
    assert found["faults"] | {"unit": ""} == {
        "scenario": "zeroing", "mechanism": "zeroing", "metric": "faults", "unit": "",
        "baseline": 5.0, "counterfactual": 2.0, "saved": 3.0, "low": 0.0, "high": 3.0, "label": "bounded",
    }  # fmt: skip
    assert (found["stall"]["low"], found["stall"]["high"]) == (0, 12_000)
    # Zeroed by the host, then by the guest: 3 pages; the refaulted page was not new.
    assert found["zeroed_twice"]["baseline"] == found["zeroed_twice"]["saved"] == 3 * PAGE_BYTES


def test_zeroing_spares_guest_cpu_only_where_memory_is_there_anyway() -> None:
    name = "prealloc+zeroing,via=pre_fault"
    found = metrics(replayed(Tiny([fault(10, 1), fault(20, 2)]), name), name)
    # Both faults are saved once, whoever gets the credit; both pages need not be zeroed by the guest.
    assert found["faults"]["saved"] == 2
    assert found["zeroed_twice"]["saved"] == 2 * PAGE_BYTES


def test_zeroing_spares_the_exit_on_a_page_that_only_the_host_has_mapped() -> None:
    # Zeroed while free at 20 us, used from 50 us on: the exit (1 us: the page is backed) comes there instead.
    rows = [free(1, 1), fault(20, 1, 4), alloc(50, 1, zeroed=True), free(51, 2), fault(60, 2, 4)]
    name = "prealloc+zeroing"
    found = metrics(replayed(Tiny(rows), name, profile=costs()), name)
    # Page 2 is never used: 4 + 4 us become 1 us; of two faults one is left.
    assert (found["stall"]["saved"], found["faults"]["saved"]) == (7_000, 1)


def test_zeroing_leaves_out_what_the_guest_did_not_zero() -> None:
    # Read back from a device, written by a VMM thread (gfn 3) or by the kernel for it, and one of the guest.
    of_vmm = {"kind": "host_fault", "tid": 7, "latency_ns": 9_000, "access": 2}
    rows = [
        fault(10, 1, 90, major=True),
        {"us": 20, "hva": (1 << 40) + 3 * PAGE_BYTES, **of_vmm},
        {"us": 30, "hva": (1 << 40) + 4 * PAGE_BYTES, "flags": FLAG_KERNEL, **of_vmm},
        fault(40, 2, 4),
    ]
    found = metrics(replayed(Tiny(rows), "zeroing"), "zeroing")
    assert found["faults"]["saved"] == found["faults"]["high"] == 1
    assert found["stall"]["saved"] == 4_000
    assert found["zeroed_twice"]["baseline"] == PAGE_BYTES
    # A refault that reads content back is no candidate after a discard either.
    again = [fault(10, 1), fault(15, 2), drop(20, 1, 2), fault(30, 1, 90, major=True), fault(40, 2)]
    assert figure(Tiny(again), "zeroing_after_reuse", "zeroed_twice")["baseline"] == PAGE_BYTES


def test_what_an_emulated_guest_touches_may_be_its_zeroing() -> None:
    # Under TCG the guest's code runs in threads of the VMM; what the kernel writes for them is not its work.
    of_vmm = {"kind": "host_fault", "tid": 7, "latency_ns": 9_000, "access": 2}
    rows = [
        {"us": 20, "hva": (1 << 40) + 3 * PAGE_BYTES, **of_vmm},
        {"us": 30, "hva": (1 << 40) + 4 * PAGE_BYTES, "flags": FLAG_KERNEL, **of_vmm},
    ]
    emulated = figure(Tiny(rows, host={"mmu_mode": "tcg"}), "zeroing", "stall")
    assert (emulated["low"], emulated["saved"], emulated["high"]) == (0, 9_000, 9_000)
    assert figure(Tiny(rows), "zeroing", "stall")["high"] == 0


def test_zeroing_with_guest_events_is_exact() -> None:
    rows = [
        free(1, 1),  # page 1 is free, then touched while free: that was its zeroing ...
        fault(20, 1, 4),
        alloc(50, 1, zeroed=True),  # ... and it is really used from here: the fault happens now after all
        free(2, 2),  # page 2 is zeroed while free and never used
        fault(30, 2, 4),
        alloc(60, 3),  # page 3 is allocated first and touched then: no zeroing
        fault(70, 3, 4),
    ]
    found = metrics(replayed(Tiny(rows, span_us=100), "zeroing"), "zeroing")
    # Faults: page 2's is gone for ever, page 1's is put off: 3 - 1 = 2 remain, 4 us saved.
    assert found["faults"]["saved"] == found["faults"]["low"] == found["faults"]["high"] == 1
    assert found["stall"]["saved"] == 4_000
    # Resident: page 2's 70 us are saved. Page 1 is backed at 50 us: the vCPU had run 8 us ahead and waits
    # 4 us, so at 46 us instead of 20; page 3 at 66. The vCPU ends 4 us earlier, at 96 us: (96-46) + (96-66)
    # = 80 page·us, where the recording has (100-20) + (100-30) + (100-70) = 180.
    assert found["resident_time"]["saved"] * 2**30 / PAGE_BYTES * 1e6 == pytest.approx(100)


def test_zeroing_keeps_to_its_time_and_range() -> None:
    rows = [fault(10, 1), fault(30, 2), fault(50, 3)]
    # Starts are 6, 26 and 46 us: only the first is before 20 us.
    assert saved(Tiny(rows), "zeroing,until_ms=0.02", "faults") == 1
    assert saved(Tiny(rows), "zeroing,ranges=2-3", "faults") == 1
    assert saved(Tiny(rows), "zeroing,ranges=0x1-0x2/3-9", "faults") == 2
    assert saved(Tiny(rows), "zeroing,ranges=5-9", "faults") == 0
    for wrong in ("ranges=5", "ranges=9-5", "ranges=a-b", "ranges=1-2/", "memory=hot_add"):
        with pytest.raises(UsageError, match=r"FIRST-END|no hot-added memory"):
            saved(Tiny(rows), f"zeroing,{wrong}", "faults")


class HotAdded(Tiny):
    """Pages 0 to 15 of boot; the VMM puts 8 to 15 in anew, and adds 16 to 31, two seconds later."""

    @property
    def memslots(self) -> pl.DataFrame:
        (boot,) = super().memslots.to_dicts()
        boot |= {"size_bytes": 16 * PAGE_BYTES, "from_ns": self.start_ns}
        late = self.start_ns + 2 * 10**9
        again = boot | {"slot": 1, "gpa": 8 * PAGE_BYTES, "size_bytes": 24 * PAGE_BYTES, "from_ns": late}
        return pl.DataFrame([boot, again], schema=super().memslots.schema)


def test_boot_memory_and_hot_added_memory_are_told_apart_by_the_memslots() -> None:
    # Three pages of boot, one of which the later memslot holds too; two that were added.
    trace = HotAdded([fault(10 * k, gfn) for k, gfn in enumerate((1, 2, 9, 16, 31), 1)])
    assert saved(trace, "zeroing,memory=boot", "faults") == 3
    assert saved(trace, "zeroing,memory=hot_add", "faults") == 2
    assert saved(trace, "zeroing,memory=boot,ranges=2-17", "faults") == 2
    assert saved(trace, "zeroing,memory=hot_add,ranges=2-17", "faults") == 1


def test_swiotlb_is_taken_to_be_the_64_mib_below_the_top_of_low_memory() -> None:
    # 1 GiB: gfns 0 to 262143, so swiotlb is 245760 to 262143; 5 GiB: 1032192 to 1048575, below 4 GiB.
    rows = [fault(10 * k, gfn) for k, gfn in enumerate((1, 245_759, 245_760, 262_143, 1_048_575), 1)]
    small = figure(Tiny(rows[:4], memory_pages=1 << 18), "zeroing,ranges=swiotlb", "faults")
    assert (small["low"], small["saved"], small["label"]) == (0, 2, "assumed")
    assert saved(Tiny(rows, memory_pages=5 << 18), "zeroing,ranges=swiotlb", "faults") == 1


def test_a_guest_without_a_page_of_zeros_may_never_write_what_it_gave_out() -> None:
    rows = [free(1, 1), fault(20, 1, 4), alloc(50, 1, zeroed=True)]
    four, none = costs(ept_4k=4_000), "zeroing,zero_page=none"
    found = metrics(replayed(Tiny(rows), none, profile=four), none)
    # Put off by 30 us and then as recorded: nothing is saved; if it is only ever read, 4 us are.
    assert (found["stall"]["saved"], found["stall"]["high"]) == (0, 4_000)
    shared = figure(Tiny(rows), "zeroing", "stall", profile=four)
    assert (shared["saved"], shared["high"]) == (0, 0)
