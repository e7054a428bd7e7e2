"""Waits of a vCPU that KVM halts, as the major faults that the model knows."""

from __future__ import annotations

from tests.unit.replay_kit import Tiny, costs, fault, metrics, replayed
from tracekit.lab.validate.halted import Halted


def test_a_wait_is_a_major_fault_that_a_runnable_thread_may_overlap() -> None:
    trace = Tiny(
        [
            fault(5, 2, 1),
            fault(100, 1, 2, level=None),  # put off
            {"us": 101, "kind": "apf_not_present", "gfn": 1, "vcpu": 0, "arg": 7},
            {"us": 601, "kind": "apf_completed", "gfn": 1, "vcpu": 0, "latency_ns": 500_000},
            {"us": 651, "kind": "apf_ready", "gfn": 1, "vcpu": 0, "latency_ns": 550_000, "arg": 7},
            {"us": 700, "kind": "apf_ready", "gfn": None, "vcpu": 0, "arg": 0},
        ],
        span_us=1000,
    )
    scenario = "epf,runnable=1"
    found = metrics(replayed(Halted(trace), scenario, profile=costs()), scenario)
    assert found["faults"]["baseline"] == 3
    assert found["stall"]["baseline"] == 1_000 + 2_000 + 550_000
    # 550 us of waiting, less what telling the guest costs (1 us each to inject, to switch twice and back).
    assert found["stall"]["saved"] == 550_000 - 4_000
    assert metrics(replayed(trace, scenario, profile=costs()), scenario)["stall"]["saved"] == 0
