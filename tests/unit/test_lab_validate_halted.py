"""Waits of a vCPU that KVM halts, as the major faults that the model knows."""

from __future__ import annotations

from typing import Any

from tests.unit.replay_kit import Tiny, costs, fault, metrics, replayed
from tracekit.lab.validate.halted import Halted

USER, KERNEL = 0x400000, 0xFFFF_FFFF_8100_0000


def waiting(rip: int | None) -> Tiny:
    """A guest that touches a page, then waits 550 us for another, of which KVM works for 1."""
    put_off: dict[str, Any] = {**fault(102, 2, 3, level=None), "rip": rip}
    return Tiny(
        [
            {**fault(5, 2, 1), "rip": USER},
            # Of another page: none of the wait's.
            {**fault(90, 3, 2, level=None), "rip": KERNEL if rip == USER else USER},
            {"us": 101, "kind": "apf_not_present", "gfn": 2, "vcpu": 0, "arg": 7},
            put_off,
            {"us": 601, "kind": "apf_completed", "gfn": 2, "vcpu": 0, "latency_ns": 500_000},
            {"us": 651, "kind": "apf_ready", "gfn": 2, "vcpu": 0, "latency_ns": 550_000, "arg": 7},
            {"us": 700, "kind": "apf_ready", "gfn": None, "vcpu": 0, "arg": 0},
        ],
        span_us=2000,
    )


def test_a_wait_is_a_major_fault_that_a_runnable_thread_may_overlap() -> None:
    trace, scenario = waiting(USER), "epf,runnable=1"
    found = metrics(replayed(Halted(trace), scenario, profile=costs()), scenario)
    assert found["faults"]["baseline"] == 4
    assert found["stall"]["baseline"] == 1_000 + 2_000 + 3_000 + 550_000
    # 550 us of waiting, less what telling the guest costs (1 us each to inject, to switch twice and back).
    assert found["stall"]["saved"] == 550_000 - 4_000
    assert metrics(replayed(trace, scenario, profile=costs()), scenario)["stall"]["saved"] == 0


def test_a_wait_of_the_guests_kernel_stays_one() -> None:
    scenario = "epf,runnable=1"
    found = metrics(replayed(Halted(waiting(KERNEL)), scenario, profile=costs()), scenario)
    assert found["stall"]["saved"] == 0


def test_a_vcpu_is_halted_from_when_its_fault_was_put_off() -> None:
    assert Halted(waiting(USER)).halted_ns == (651 - 102) * 1000
    # Of a wait whose fault was not seen all counts.
    whole = waiting(USER)
    del whole.rows[3]
    assert Halted(whole).halted_ns == 550_000
