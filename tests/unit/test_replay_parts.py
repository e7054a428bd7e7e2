"""Phases, vCPUs, and mechanisms left out: figures of parts against answers computed by hand."""

from __future__ import annotations

import polars as pl
import pytest
from typer.testing import CliRunner

from tests.unit.replay_kit import Tiny, alloc, costs, drop, fault, metrics, ranged, replayed
from tracekit.cli.app import app
from tracekit.errors import UsageError
from tracekit.replay import run
from tracekit.replay.result import Result

NO_FAULT = "prealloc,via=pre_fault"


def with_phases(trace: Tiny, *phases: str, scenario: str = NO_FAULT) -> Result:
    return run(trace, [scenario], profile=costs(prefault_4k=0), plain=True, phases=phases)


def two_vcpus() -> Tiny:
    """vCPU 0 waits 4 us to 10 and 6 us to 60, vCPU 1 waits 20 us to 40; a discard at 50; ends at 100 us."""
    rows = [fault(10, 1, 4), fault(40, 2, 20, vcpu=1), drop(50, 9), fault(60, 3, 6)]
    return Tiny(rows, span_us=100, marks=[{"name": "ready", "ts_ns": 1_000_045_000}])


def test_a_phase_has_its_own_faults_stall_and_critical_path() -> None:
    found = metrics(with_phases(two_vcpus(), "boot=0:ready", "rest=ready:0.0001"), NO_FAULT)
    # Boot, 45 us: vCPU 1 came last and gains 20; alone the other one decides: 4; waiting for each other: 24.
    path = found["critical_path:boot"]
    assert (path["baseline"], path["saved"], path["counterfactual"]) == (45_000, 20_000, 25_000)
    assert (path["low"], path["high"]) == (0, 24_000)  # low: a guest on a clock of its own
    assert (found["stall:boot"]["saved"], found["faults:boot"]["saved"]) == (24_000, 2)
    # The rest: vCPU 0 gains its 6 us, vCPU 1 nothing.
    path = found["critical_path:rest"]
    assert (path["baseline"], path["saved"], path["low"], path["high"]) == (55_000, 6_000, 0, 6_000)
    # The phases of a whole trace add up to it.
    for metric in ("faults", "stall"):
        assert found[f"{metric}:boot"]["saved"] + found[f"{metric}:rest"]["saved"] == found[metric]["saved"]


def test_a_phase_ends_at_a_kind_of_event_a_second_or_a_time() -> None:
    start = 1_000_000_000
    ends = ("balloon_inflate", "0.00005", f"{start + 50_000}ns")
    for end in ends:
        found = metrics(with_phases(two_vcpus(), f"boot=0:{end}"), NO_FAULT)
        assert found["critical_path:boot"]["baseline"] == 50_000


def test_startup_counts_in_the_phase_that_begins_with_the_trace() -> None:
    trace = Tiny([fault(10, 1, 4), fault(60, 2, 4)], memory_pages=4, span_us=100)
    result = run(
        trace, [NO_FAULT], profile=ranged(prefault_4k=(1_000, 1_000, 1_000)), plain=True,
        phases=["a=0:0.00005", "b=0.00005:0.0001"],
    )  # fmt: skip
    found = metrics(result, NO_FAULT)
    # Four pages are populated in 4 us; each phase loses a fault of 4 us.
    assert (found["critical_path:a"]["saved"], found["critical_path:b"]["saved"]) == (0, 4_000)


@pytest.mark.parametrize(
    ("phase", "says"),
    [
        ("boot", "NAME=START:END"),
        ("boot=0", "NAME=START:END"),
        ("boot=0:redy", "no mark or kind of event called redy"),
        ("boot=0:swap_in", "the trace has no event swap_in"),
        ("boot=5:9", "no stretch of this trace"),
        ("boot=0.00009:0.00001", "no stretch of this trace"),
        ("boot=0:nan", "no mark or kind"),
    ],
)
def test_a_phase_that_the_trace_does_not_have_is_refused(phase: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        with_phases(two_vcpus(), phase)
    with pytest.raises(UsageError, match="named twice"):
        with_phases(two_vcpus(), "a=0:ready", "a=0:ready")


def test_cutting_at_a_phase_changes_no_figure() -> None:
    rows = [fault(10 * k, k % 40, k % 7 + 1, vcpu=k % 3) for k in range(1, 90)]
    rows += [drop(10 * k + 5, 0, 20) for k in range(1, 90, 9)]
    whole = replayed(Tiny(rows, batch_rows=13), "hot_hint,policy=stride,n=3")
    cut = run(
        Tiny(rows, batch_rows=13), ["hot_hint,policy=stride,n=3"], plain=True, phases=["a=0.0001:0.0005"]
    )
    same = cut.rows.filter(~pl.col("metric").str.ends_with(":a"))
    assert same.equals(whole.rows)


def test_each_vcpu_has_its_faults_and_stall_and_they_add_up() -> None:
    found = metrics(with_phases(two_vcpus()), NO_FAULT)
    assert (found["faults:vcpu0"]["baseline"], found["stall:vcpu0"]["saved"]) == (2, 10_000)
    assert (found["faults:vcpu1"]["saved"], found["stall:vcpu1"]["baseline"]) == (1, 20_000)
    # Added faults count against the vCPU that takes them: page 1 is taken at its last use, 6 us, and the
    # allocation on vCPU 1 takes the class's mean of (4 + 20 + 6) / 3 us again.
    rows = [*two_vcpus().rows, alloc(80, 1, vcpu=1)]
    scenario = "balloon,policy=recorded"
    rows += [{"us": 70, "kind": "balloon_inflate", "gfn": 1}, fault(75, 5, 1, vcpu=1)]
    result = replayed(Tiny(rows, span_us=100), scenario, profile=costs())
    parts = metrics(result, scenario)
    for metric in ("faults", "stall"):
        each = [parts[f"{metric}:vcpu{v}"]["saved"] for v in (0, 1)]
        assert sum(each) == parts[metric]["saved"]


def test_threads_stand_for_vcpus_where_none_is_known_and_one_alone_has_no_rows() -> None:
    rows = [fault(10, 1, 4, vcpu=None, tid=7), fault(20, 2, 5, vcpu=None, tid=8)]
    found = metrics(replayed(Tiny(rows)), "baseline")
    assert (found["stall:thread7"]["baseline"], found["stall:thread8"]["baseline"]) == (4_000, 5_000)
    alone = metrics(replayed(Tiny([fault(10, 1, 4)])), "baseline")
    assert not [name for name in alone if ":" in name]


def test_what_a_combination_loses_without_a_mechanism() -> None:
    rows = [fault(100 * k, k, 4) for k in range(1, 6)]
    name = "zeroing+hot_hint+prealloc,hot_hint.via=pre_fault,prealloc.via=pre_fault"
    result = replayed(Tiny(rows), name, profile=costs(hypercall=0))
    # Each of zeroing (on a host-only trace), an oracle and prealloc alone saves all five faults: in the
    # waterfall the first one has them all, and none is missed when it is left out.
    alone = {m: metrics(result, name, f"without {m}")["faults"] for m in ("zeroing", "hot_hint", "prealloc")}
    assert {m: row["saved"] for m, row in alone.items()} == dict.fromkeys(alone, 0)
    # Of two mechanisms, the one that is left is the other alone; without it, the whole is lost but for that.
    name = "hugepages+free_page_reporting,from_mib=0"
    rows = [fault(10, 0), fault(20, 1), {"us": 30, "kind": "page_free", "gfn": 0, "pages": 512}]
    result = replayed(Tiny(rows, span_us=3_000_000), name, profile=costs())
    whole = metrics(result, name)["resident_time"]
    without = metrics(result, name, "without hugepages")["resident_time"]
    only = metrics(
        replayed(Tiny(rows, span_us=3_000_000), "free_page_reporting,from_mib=0"),
        "free_page_reporting,from_mib=0",
    )
    assert without["saved"] == pytest.approx(whole["saved"] - only["resident_time"]["saved"])


def test_the_command_shows_phases_and_what_each_mechanism_adds(tmp_path: pytest.TempPathFactory) -> None:
    from tracekit.datasets.catalog import trace_path

    trace = str(trace_path("small-guest-zero-then-use"))
    said = CliRunner().invoke(
        app, ["replay", trace, "-s", "zeroing+hugepages", "--phase", "first=0:0.01"], catch_exceptions=False
    )
    assert said.exit_code == 0
    assert "critical path, first" in said.output
    assert "if left out" in said.output
