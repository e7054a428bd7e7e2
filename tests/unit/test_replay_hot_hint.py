"""Hot hints against answers computed by hand; the arithmetic stands in the comments."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.replay_kit import (
    Tiny,
    alloc,
    costs,
    fault,
    figure,
    metrics,
    replayed,
    saved,
)
from tracekit.errors import UsageError
from tracekit.replay.costs import Cost
from tracekit.replay.mechanisms.hot_hint import wakes
from tracekit.trace import Meta, TraceWriter
from tracekit.trace.batch import events_batch
from tracekit.trace.schema import PAGE_BYTES

MIB = 1 << 20
GIB_S = (1 << 30) / PAGE_BYTES  # page-seconds in one GiB*s
S = 1_000_000  # us
NO_FAULT = "prealloc,via=pre_fault"


def test_an_oracle_with_enough_lead_removes_every_first_touch() -> None:
    rows = [fault(100 * k, k, 4) for k in range(1, 5)]
    name = "hot_hint,lead_ms=0.05,via=pre_fault"
    found = metrics(replayed(Tiny(rows), name, profile=costs()), name)
    assert found["faults"]["saved"] == 4
    # 16 us of stall; one hypercall of 1 us carries the four hints; four prefaults of 1 us run beside.
    assert found["stall"]["saved"] == 16_000
    assert found["hypercalls"]["counterfactual"] == 1
    assert found["critical_path"]["saved"] == 15_000
    assert found["host_cpu_background"]["saved"] == -4_000


def test_a_hint_that_fills_only_the_hosts_page_table_leaves_a_short_exit() -> None:
    rows = [fault(100 * k, k, 4) for k in range(1, 5)]
    found = metrics(replayed(Tiny(rows), "hot_hint,lead_ms=0.05", profile=costs()), "hot_hint,lead_ms=0.05")
    # Each of the four exits takes 1 us instead of 4.
    assert (found["faults"]["saved"], found["exits"]["saved"]) == (0, -1)  # one hypercall more
    assert found["stall"]["saved"] == 12_000
    # Late: ready 2 us after the touch (3 us of work begun 1 us before), then the exit's own 1 us: 3 of 4 us.
    late = costs(prefault_4k=3_000, hypercall=0)
    assert saved(Tiny([fault(100, 1, 4)]), "hot_hint,lead_ms=0.001", "stall", profile=late) == 1_000
    # A VMM thread's own fault needs the host's page table only: it goes.
    of_vmm = {"us": 100, "kind": "host_fault", "hva": (1 << 40) + PAGE_BYTES, "tid": 7, "latency_ns": 9_000}
    assert saved(Tiny([of_vmm]), "hot_hint,lead_ms=0.05", "faults", profile=costs()) == 1


def test_a_late_prefault_shortens_and_one_not_begun_changes_nothing() -> None:
    # Prefaults take 3 us; the lead is 1 us; the fault takes 4 us from 96 to 100: ready at 95 + 3 = 98 us,
    # 2 us after the touch.
    profile = costs(prefault_4k=3_000, hypercall=0)
    one = Tiny([fault(100, 1, 4)])
    assert saved(one, "hot_hint,lead_ms=0.001,via=pre_fault", "stall", profile=profile) == 2_000
    assert saved(one, "hot_hint,lead_ms=0.001,via=pre_fault", "faults", profile=profile) == 0
    # Lead 0: the worker has not begun when the touch comes.
    assert saved(one, "hot_hint,lead_ms=0,via=pre_fault", "stall", profile=profile) == 0
    # A worker slower than the fault itself shortens nothing.
    assert (
        saved(
            one,
            "hot_hint,lead_ms=0.001,via=pre_fault",
            "stall",
            profile=costs(prefault_4k=9_000, hypercall=0),
        )
        == 0
    )


def test_one_worker_takes_hints_in_order() -> None:
    # Two vCPUs touch at the same time; prefaults take 10 us, the lead is 20 us: the hints come at 76 us; the
    # first page is ready at 86, the second at 96 = just when it is touched. With 15 us of lead the second is
    # ready at 81 + 20 = 101, after the 4 us fault would be over.
    rows = [fault(100, 1, 4, vcpu=0), fault(100, 2, 4, vcpu=1)]
    profile = costs(prefault_4k=10_000, hypercall=0)
    assert saved(Tiny(rows), "hot_hint,lead_ms=0.020,via=pre_fault", "faults", profile=profile) == 2
    assert saved(Tiny(rows), "hot_hint,lead_ms=0.015,via=pre_fault", "faults", profile=profile) == 1
    assert saved(Tiny(rows), "hot_hint,lead_ms=0.015,workers=2,via=pre_fault", "faults", profile=profile) == 2


def test_a_stride_needs_two_equal_steps_and_then_saves_n_of_n_plus_1() -> None:
    # Faults at 0, 1, 2, ...: the second step (at 2) starts it; n = 3 pages ahead: 3, 4, 5 are saved, 6 faults
    # and continues, 7, 8, 9 are saved, 10 faults, 11 is saved, 12 and 13 were guessed wrong.
    rows = [fault(100 * (k + 1), k, 4) for k in range(12)]
    found = metrics(
        replayed(Tiny(rows), "hot_hint,policy=stride,n=3,via=pre_fault"),
        "hot_hint,policy=stride,n=3,via=pre_fault",
    )
    assert found["faults"]["counterfactual"] == len([0, 1, 2, 6, 10])
    assert found["prefaults_wasted"]["counterfactual"] == len([12, 13])
    assert found["hypercalls"]["counterfactual"] == 0  # the host does it by itself


def test_a_stride_crosses_blocks_and_runs_backwards() -> None:
    rows = [fault(100 * (k + 1), gfn, 4) for k, gfn in enumerate([515, 513, 511, 509])]
    # Steps of -2: known at 511, so 509 is saved.
    assert saved(Tiny(rows), "hot_hint,policy=stride,n=1,via=pre_fault", "faults") == 1


def test_hints_for_memory_that_is_never_named_are_wasted_and_outside_memory_are_not_given() -> None:
    rows = [fault(100 * (k + 1), k, 4) for k in (509, 510, 511)]
    # n = 4 from page 511 on: 512 .. 515. No event names their block, but it is guest memory: all wasted.
    name = "hot_hint,policy=stride,n=4"
    for memory_pages, wasted in ((4096, 4), (512, 0)):
        trace = Tiny(rows, memory_pages=memory_pages, span_us=60_000)
        assert figure(trace, name, "prefaults_wasted")["counterfactual"] == wasted


def test_on_alloc_hints_what_the_guest_allocates() -> None:
    # Allocated at 10 and 50 us, prefaulted in 1 us each: ready long before the touches at 26 and 52 us.
    rows = [alloc(10, 1), fault(30, 1, 4), alloc(50, 2), fault(56, 2, 4), fault(70, 3, 4)]
    name = "hot_hint,policy=on_alloc,via=pre_fault"
    found = metrics(replayed(Tiny(rows), name, profile=costs(hypercall=0)), name)
    assert found["faults"]["saved"] == 2
    # A page allocated and never touched is a wasted prefault.
    rows.append(alloc(80, 9))
    found = metrics(replayed(Tiny(rows), name, profile=costs(hypercall=0)), name)
    assert found["prefaults_wasted"]["counterfactual"] == 1


def test_a_page_hinted_while_it_is_faulting() -> None:
    # Allocated at 28 us, in the middle of the fault from 26 to 30 us: the prefault (1 us, 28 to 29 us) was
    # not begun at 26 us, so the fault stays what it was.
    rows = [alloc(28, 1), fault(30, 1, 4)]
    name = "hot_hint,policy=on_alloc,via=pre_fault"
    assert saved(Tiny(rows), name, "stall", profile=costs(hypercall=0)) == 0


def test_policies_say_what_they_need() -> None:
    for policy in ("on_alloc", "recorded", "previous"):
        with pytest.raises(UsageError, match=policy):
            replayed(Tiny([fault(1, 1)]), f"hot_hint,policy={policy}")


def test_recorded_hints_are_replayed() -> None:
    hint = {"us": 10, "kind": "hv_hypercall", "gfn": 1, "pages": 2, "arg": 0x8003, "vcpu": 0}
    rows = [hint, fault(30, 1, 4), fault(50, 2, 4), fault(70, 3, 4)]
    name = "hot_hint,policy=recorded,via=pre_fault"
    # A cold hint (heat type 0) backs nothing; a hot one (heat type 1) backs both of its pages.
    assert saved(Tiny([hint | {"arg": 0x8003 | 1 << 16}, *rows[1:]]), name, "faults", profile=costs()) == 0
    assert saved(Tiny([hint | {"arg": 0x8003 | 2 << 16}, *rows[1:]]), name, "faults", profile=costs()) == 2


def test_a_worker_that_wakes_late_has_not_begun_what_is_touched_before() -> None:
    # Touches every 10 us, hinted 25 us ahead, all in one batch; the worker is up at 75 + 40 us: pages 1 and 2
    # (touched from 96 and 106 us on) fault as recorded, the others are there in time.
    rows = [fault(100 + 10 * k, k, 4) for k in range(6)]
    name = "hot_hint,lead_ms=0.021,via=pre_fault"
    late = costs(worker_wake=40_000, hypercall=0)
    # The first touch begins at 96 us and was hinted at 75 us; up at 115 us, the worker is ahead of 116 us.
    assert saved(Tiny(rows), name, "faults", profile=late) == 4
    assert saved(Tiny(rows), name, "faults", profile=costs(hypercall=0)) == 6


def test_wake_ups_are_spread_between_the_ends_of_their_range() -> None:
    cost = Cost(20_000.0, 10_000.0, 2_000_000.0, "the test")
    drawn = sorted(wakes(cost, "point").tolist())
    assert (drawn[0], drawn[-1]) == (10_000, 2_000_000)
    assert drawn[31] < 20_000 < drawn[32]
    assert sum(one >= 2_000_000 for one in drawn) == 6  # a tenth of 64
    assert set(wakes(cost, "low")) == {2_000_000}
    assert set(wakes(cost, "high")) == {10_000}
    assert set(wakes(Cost(0.0, 0.0, 0.0, "the test"), "point")) == {0}


def test_what_an_earlier_run_touched_after_the_end_is_not_hinted(tmp_path: Path) -> None:
    # The earlier run was longer: it touched two more pages at 90 s and 91 s, one of them never named here.
    earlier = tmp_path / "earlier.trace"
    with TraceWriter(earlier, Meta(source="synthetic", start_ns=1_000)) as writer:
        ts = [1_000 + second * 10**9 for second in (1, 90, 91)]
        writer.append(
            events_batch(ts_ns=ts, kind="ept_violation", vcpu=0, gfn=[1, 2, 3_000], level=1, latency_ns=0)
        )
    scenario = f"hot_hint,policy=previous,train={earlier},lead_ms=0"
    found = metrics(replayed(Tiny([fault(2 * S, 1)], span_us=10 * S), scenario, profile=costs()), scenario)
    # Page 1 is there at 1.000001 s, until 10 s, where it was from 2 s on.
    held = found["resident_time"]
    assert held["counterfactual"] * GIB_S == pytest.approx(8.999999, rel=1e-6)
    assert held["baseline"] * GIB_S == pytest.approx(8, rel=1e-6)
    assert found["prefaults_wasted"]["counterfactual"] == 0
    assert found["host_cpu_background"]["counterfactual"] == 1_000  # one prefault


def test_a_worker_that_is_behind_at_the_end_has_backed_no_more() -> None:
    rows = [alloc(10, page) for page in range(4)]
    scenario = "hot_hint,policy=on_alloc,batch=511"
    found = metrics(replayed(Tiny(rows, span_us=12), scenario, profile=costs(hypercall=0)), scenario)
    # Ready at 11 and 12 us, the end; two more would be begun then. One page was there for 1 us.
    assert found["prefaults_wasted"]["counterfactual"] == 2
    assert found["resident_time"]["counterfactual"] * GIB_S == pytest.approx(1e-6, rel=1e-6)


@pytest.mark.parametrize("vm", [1, None])
def test_an_earlier_run_of_other_memory_teaches_nothing_and_says_so(tmp_path: Path, vm: int | None) -> None:
    # Of another VM; or no host's faults at all.
    earlier = tmp_path / "earlier.trace"
    kind = "guest_fault" if vm is None else "ept_violation"
    with TraceWriter(earlier, Meta(source="synthetic", start_ns=1_000)) as writer:
        writer.append(events_batch(ts_ns=[1_000], kind=kind, vm=vm or 0, vcpu=0, gfn=[3], latency_ns=0))
    with pytest.raises(UsageError, match="no first touch of this trace's memory"):
        replayed(Tiny([fault(100, 3, 4)]), f"hot_hint,policy=previous,train={earlier}")
