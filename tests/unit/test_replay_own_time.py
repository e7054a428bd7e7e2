"""What the recorder's programs added to the recorded latencies is no part of the replayed ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.unit.replay_kit import Tiny, fault, figure, replayed


@dataclass
class Recorded(Tiny):
    """A tiny trace that says what recording cost."""

    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def meta(self) -> Any:
        meta = super().meta
        meta.extra = self.extra
        return meta


ROWS = [
    fault(10, 1, latency_us=4),
    fault(20, 2, latency_us=0.05),  # shorter than the programs: nothing is left of it, and no debt
    {**fault(30, 3, latency_us=3), "kind": "host_fault", "vcpu": None, "tid": 7},
    {**fault(40, 4, latency_us=2), "kind": "host_fault", "vcpu": None, "tid": 7},
]


def stall_ns(**inside: float) -> float:
    trace = Recorded(ROWS, extra={"cost": {"inside_latency_ns": inside}} if inside else {})
    return figure(trace, "baseline", "stall")["baseline"]


def notes_of(trace: Tiny) -> list[str]:
    return list(replayed(trace).about["notes"])


def test_each_latency_is_shorter_by_the_time_of_the_programs_inside_it() -> None:
    assert stall_ns() == 4000 + 50 + 3000 + 2000
    # By hand: 4000 - 80 and max(50 - 80, 0); the faults of VMM threads as they are.
    assert stall_ns(ept_violation=80.9) == 3920 + 0 + 3000 + 2000
    assert stall_ns(ept_violation=80.9, host_fault=30.2) == 3920 + 0 + 2970 + 1970


def test_the_result_says_what_was_taken_off() -> None:
    extra = {"cost": {"inside_latency_ns": {"ept_violation": 80.9}}}
    (said,) = [note for note in notes_of(Recorded(ROWS, extra=extra)) if "own programs" in note]
    assert "80 ns of each ept_violation" in said
    assert not [note for note in notes_of(Recorded(ROWS)) if "own programs" in note]


def test_a_cost_that_cannot_be_read_takes_nothing_off() -> None:
    for cost in (None, 7, {}, {"inside_latency_ns": None}, {"inside_latency_ns": {"no_such_kind": 9.0}}):
        trace = Recorded(ROWS, extra={"cost": cost})
        assert figure(trace, "baseline", "stall")["baseline"] == 9050
