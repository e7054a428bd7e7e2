"""What a recording says of its own cost, from what the kernel counted for each program."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tracekit.probes.catalogue import HOST_PROBES, Probe
from tracekit.probes.cost import CostMeter
from tracekit.probes.loader import ProgramStats
from tracekit.probes.source import tracepoints_of

PROBES = (
    Probe("fault_shadow", ("ept_violation", "map"), inside=("kvmmmu:kvm_mmu_spte_requested",)),
    Probe("host_fault", ("host_fault",), inside=("memcg:count_memcg_events",)),
    Probe("memcg", ("swap_in", "swap_out")),
)
PROGRAMS = (
    ("fault_shadow", "on_fault_shadow_kvmmmu__kvm_mmu_spte_requested"),
    ("fault_shadow", "on_fault_shadow_kvmmmu__kvm_mmu_set_spte"),
    ("host_fault", "on_host_fault_minor"),
    ("memcg", "on_memcg_memcg__count_memcg_events"),
)


class Counted:
    """Stands for loaded probes: each reading gives the next (runs, run_ns) of all programs."""

    def __init__(self, *readings: tuple[tuple[int, int], ...]) -> None:
        self._readings: Iterator[tuple[tuple[int, int], ...]] = iter(readings)

    def program_stats(self) -> list[ProgramStats]:
        counts = next(self._readings)
        pairs = zip(PROGRAMS, counts, strict=True)
        return [ProgramStats(probe, function, *count, missed=0) for (probe, function), count in pairs]


class Always:
    """Stands for the switch of the kernel's timing."""

    def on(self) -> bool:
        return True

    def off(self) -> None: ...


def measured(*readings: tuple[tuple[int, int], ...]) -> dict[str, Any]:
    probes: Any = Counted(*readings)
    switch: Any = Always()
    meter = CostMeter(probes, PROBES, switch)
    second = 1_000_000_000
    meter.step(second, {"host_fault": 5})
    meter.step(second + 100_000_000, {"host_fault": 15, "ept_violation": 4, "map": 1})
    return meter.finish(2 * second, {})


def test_a_window_counts_what_happened_in_it_and_what_lies_inside_a_latency() -> None:
    before = ((100, 9000), (50, 5000), (7, 700), (1000, 30_000))
    after = ((105, 9400), (55, 5600), (17, 2700), (1030, 30_600))
    cost = measured(before, after)
    assert cost["measured_s"] == 0.1
    assert cost["probes"]["fault_shadow"] == {"runs": 10, "run_ns": 1000, "rows": 5, "ns_per_row": 200.0}
    assert cost["probes"]["host_fault"] == {"runs": 10, "run_ns": 2000, "rows": 10, "ns_per_row": 200.0}
    assert cost["probes"]["memcg"]["ns_per_row"] is None
    # spte_requested: 400 ns in 5 runs; the count of a fault: 600 ns in 30 runs, of which most end at once.
    assert cost["inside_latency_ns"] == {"ept_violation": 80.0, "host_fault": 20.0}


def test_a_window_in_which_the_cpu_was_taken_away_does_not_count() -> None:
    # Three windows of 10 runs of 80 ns; in the middle one, a run was interrupted for 10 us.
    readings = [(0, 0), (10, 800), (10, 800), (20, 11_600), (20, 11_600), (30, 12_400)]
    probes: Any = Counted(*(((runs, ns), (0, 0), (0, 0), (0, 0)) for runs, ns in readings))
    switch: Any = Always()
    meter = CostMeter(probes, PROBES, switch)
    tenth = 100_000_000
    for window in range(1, 4):
        meter.step(10 * window * tenth, {"ept_violation": 4 * (window - 1)})
        meter.step((10 * window + 1) * tenth, {"ept_violation": 4 * window})
    cost = meter.finish(40 * tenth, {})
    assert cost["inside_latency_ns"]["ept_violation"] == 80.0
    assert cost["probes"]["fault_shadow"]["run_ns"] == 12_400  # what was measured stays in the sum


def test_what_did_not_run_has_no_cost() -> None:
    still = ((100, 9000), (50, 5000), (7, 700), (1000, 30_000))
    cost = measured(still, still)
    assert cost["probes"] == {}
    assert cost["inside_latency_ns"] == {}


def test_what_lies_inside_a_latency_is_hooked_by_some_probe() -> None:
    hooked = {f"{c}:{e}" for probe in HOST_PROBES for c, e in tracepoints_of(probe)}
    for probe in HOST_PROBES:
        assert set(probe.inside) <= hooked
