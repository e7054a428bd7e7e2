"""What is compared of a small guest's trace: its touched memory, nothing of its VMM's."""

from __future__ import annotations

from tests.unit.replay_kit import Tiny, fault, metrics, replayed
from tracekit.lab.validate.compared import Compared
from tracekit.trace.schema import FLAG_MAJOR

FIRST = 512


def test_the_low_area_and_what_a_vcpus_thread_faults_of_its_own_are_left_out() -> None:
    own = {"us": 40, "kind": "host_fault", "gfn": None, "vcpu": 0, "tid": 7, "latency_ns": 900}
    trace = Tiny(
        [
            fault(10, 3, 0.005),
            fault(20, FIRST, 0.005),
            {"us": 30, "kind": "host_fault", "gfn": 5, "tid": 8, "latency_ns": 100},
            own,
            {"us": 50, "kind": "host_fault", "gfn": FIRST + 1, "tid": 8, "latency_ns": 70},
        ],
        span_us=100,
    )
    whole = metrics(replayed(trace, "baseline"), "baseline")
    left = metrics(replayed(Compared(trace, FIRST), "baseline"), "baseline")
    assert (whole["faults"]["baseline"], left["faults"]["baseline"]) == (5, 2)
    assert (whole["stall"]["baseline"], left["stall"]["baseline"]) == (5 + 5 + 100 + 900 + 70, 5 + 70)
    assert (whole["resident_peak"]["baseline"], left["resident_peak"]["baseline"]) == (4 * 4096, 2 * 4096)


def test_the_memslots_below_are_left_out() -> None:
    trace = Tiny([fault(1, 1)], memory_pages=4096)
    assert Compared(trace, 0).memslots.equals(trace.memslots)
    assert Compared(trace, FIRST).memslots.is_empty()


def test_a_fault_that_waited_for_a_cpu_counts_as_the_median_of_its_kind() -> None:
    rows = [fault(10 * k, FIRST + k, 0.005) for k in range(1, 10)]
    waited, slow = fault(200, FIRST + 20, 0.051), fault(300, FIRST + 21, 0.050)
    device = fault(400, FIRST + 22, 0.9) | {"flags": FLAG_MAJOR}
    trace = Tiny([*rows, waited, slow, device], span_us=1000)
    whole = metrics(replayed(trace, "baseline"), "baseline")["stall"]["baseline"]
    left = metrics(replayed(Compared(trace, FIRST), "baseline"), "baseline")["stall"]["baseline"]
    # 51 is over ten times the median of 5 and counts as 5; 50 is not, and a wait for a device stays.
    assert whole - left == 51 - 5
