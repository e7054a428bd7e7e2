"""Checks and what many of them say, and the cases that are there, without a guest."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rich.console import Console

from tracekit.errors import UsageError
from tracekit.lab.guest_plan import GuestPlan
from tracekit.lab.validate.case import GOALS, UNITS, Recording
from tracekit.lab.validate.check import Check, guest_time, summarise
from tracekit.lab.validate.running import Validation, mechanisms, runs_here, validate
from tracekit.report.validation import validation_figure, validation_markdown, validation_table

CHECK = Check(
    mechanism="prealloc",
    case="random touch",
    scenario="prealloc",
    seed=0,
    metric="time",
    unit="ns",
    before=1000.0,
    predicted=110.0,
    low=90.0,
    high=130.0,
    measured=100.0,
    emulated=False,
    bound_only=False,
)


def test_a_check_tells_its_error_and_whether_its_interval_held():
    assert CHECK.error == pytest.approx(0.1)
    assert CHECK.held
    assert not replace(CHECK, measured=131.0).held
    assert replace(CHECK, measured=1e9, high=None).held
    # Nothing left to measure: the error is a share of what there was.
    assert replace(CHECK, measured=0.0).error == pytest.approx(0.11)
    assert replace(CHECK, measured=0.0, before=0.0).error is None
    assert replace(CHECK, bound_only=True).error is None


def test_noise_is_what_the_baseline_does_by_itself():
    # The baseline varies by 20 % to either side; every run misses its interval by 10 %.
    runs = [replace(CHECK, seed=n, before=1000.0 + 20 * (n - 10), measured=142.0) for n in range(21)]
    (one,) = summarise(runs)
    assert (one.runs, one.held, one.held_with_noise) == (21, 0, 21)
    assert one.noise == pytest.approx((0.82, 1.18))
    assert one.error == pytest.approx(32 / 142)
    assert not one.reached  # held, but the point is more than 20 % off
    (few,) = summarise(runs[:3])
    assert (few.noise, few.held_with_noise) == ((1.0, 1.0), 0)


def test_every_case_compares_what_there_is_and_begins_at_the_same_run():
    for name, cases in mechanisms().items():
        found = cases(3)
        assert found
        assert len({case.name for case in found}) == len(found)
        for case in found:
            assert case.mechanism == name
            assert set(case.compare) <= set(UNITS) == set(GOALS)


def test_what_needs_the_lab_host_runs_only_when_it_is_named():
    assert [name for name, cases in mechanisms().items() if not runs_here(cases)] == ["epf"]


def test_unknown_mechanisms_and_no_runs_are_refused(tmp_path):
    with pytest.raises(UsageError, match="no validation of magic"):
        validate(["magic"], tmp_path, profile="published")
    with pytest.raises(UsageError, match="at least 1"):
        validate([], tmp_path, profile="published", repeat=0)


def test_a_part_of_no_cases_name_is_refused_with_the_names_there_are(tmp_path):
    with pytest.raises(UsageError, match="contains 'nonesuch'") as caught:
        validate(["prealloc"], tmp_path, profile="published", part="nonesuch")
    assert "random touch" in caught.value.hint


def test_linux_cases_are_there_where_kvm_runs_linux(monkeypatch):
    for name in ("prealloc", "hugepages", "swap", "ksm"):
        module = f"tracekit.lab.validate.{name}.can_run_linux_under_kvm"
        for runs in (True, False):
            monkeypatch.setattr(module, lambda runs=runs: runs)
            found = [case for case in mechanisms()[name](0) if case.name.startswith("Linux")]
            assert len(found) == runs
            assert all(case.baseline.words[:2] == ("lab", "linux") for case in found)


def test_the_table_and_the_chart_say_what_was_found():
    document = Validation(
        (CHECK, replace(CHECK, metric="exits", unit="count")), {"ksm": "no KSM"}, {}
    ).to_json()
    console = Console(width=80, color_system=None, record=True)
    console.print(validation_table(document))
    text = console.export_text()
    assert "prealloc: random touch" in text
    assert "ksm is left out: no KSM" in text
    assert "intervals held 100% of 2 measurements" in text
    assert validation_figure(document).table.height == 2


def test_the_markdown_table_sums_over_the_cases_of_a_mechanism():
    checks = (
        CHECK,
        replace(CHECK, case="sequential touch", measured=220.0),
        replace(CHECK, case="from outside", bound_only=True),
    )
    lines = validation_markdown(Validation(checks, {}, {}).to_json()).splitlines()
    assert lines[2:] == [
        "| prealloc, 2 | time | 2 | 30.0%, 50.0%, 50.0% | 1 | 1 |",
        "| prealloc (bounds), 1 | time | 1 | – | 1 | 1 |",
    ]


def test_comparing_anew_needs_what_an_earlier_run_left(tmp_path):
    with pytest.raises(UsageError, match="no earlier run left"):
        validate(["prealloc"], tmp_path, profile="published", again=True)


def test_a_guests_time_is_its_phases_without_waits_for_a_cpu(tmp_path):
    phase = {"start_ns": 5, "elapsed_ns": 100, "waited_ns": 30}
    account = {"vcpus": [{"phases": {"touch": phase, "touch2": phase}}, {"phases": {"touch": phase}}]}
    assert guest_time(Recording(tmp_path, account)) == 140.0


def test_a_guest_that_uses_a_part_touches_only_that():
    plan = GuestPlan(pages=100, use_pages=7, zero_first=True)
    assert [(phase.name, phase.pages) for phase in plan.phases()] == [("zero", 100), ("touch", 7)]
    assert len(plan.gfns(0)) == 7
    with pytest.raises(UsageError, match="--use"):
        GuestPlan(pages=10, use_pages=11)
