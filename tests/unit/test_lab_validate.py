"""Checks and what many of them say, and the cases that are there, without a guest."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import polars as pl
import pytest
from rich.console import Console

from tests.unit.replay_kit import Tiny, costs
from tracekit.errors import UsageError
from tracekit.lab.guest_plan import GuestPlan
from tracekit.lab.validate.case import GOALS, UNITS, Account, Recording, Runs
from tracekit.lab.validate.check import Check, guest_time, predicted
from tracekit.lab.validate.linux import with_its_pages
from tracekit.lab.validate.recording import kept_runs, record_runs, stem_of, was_kept
from tracekit.lab.validate.running import Validation, compare, mechanisms, runs_here, validate
from tracekit.lab.validate.small import plan_of
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


def test_linux_cases_are_there_and_possible_where_kvm_runs_linux(monkeypatch):
    for name in ("prealloc", "hugepages", "swap", "ksm"):
        module = f"tracekit.lab.validate.{name}.can_run_linux_under_kvm"
        for runs in (True, False):
            monkeypatch.setattr(module, lambda runs=runs: runs)
            (found,) = [case for case in mechanisms()[name](0) if case.name.startswith("Linux")]
            assert found.possible is runs
            assert found.baseline.words[:2] == ("lab", "linux")


def test_a_reading_of_other_cases_runs_has_their_recordings():
    cases = mechanisms()["zeroing"](5)
    stems = [stem_of(case, 5) for case in cases]
    assert stems[0] == stems[1] == "zeroing-sequential-use-guest-events-5"
    assert len(set(stems)) == 3
    for case in cases:
        twins = [one for one in cases if one.name == (case.runs_of or case.name)]
        assert [(one.baseline.words, one.real.words) for one in twins] == [
            (case.baseline.words, case.real.words)
        ]


class _NoSession:
    """In a session's place: notes what is run; of the names in `lossy`, the first trace each lost events."""

    def __init__(self, folder, order, lossy):
        self.folder, self.order, self.lossy, self.names = folder, order, lossy, []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def run(self, run, name):
        self.order.append(name)
        self.names.append(name)

    def close(self):
        traces = {}
        for name in self.names:
            (self.folder / f"{name}.trace").mkdir(exist_ok=True)
            (self.folder / f"{name}.json").write_text("{}")
            reasons = ["swap_out_unplaced (at most 3)", *(["ring full"] if name in self.lossy else [])]
            traces[name] = SimpleNamespace(losses=pl.DataFrame({"reason": reasons}))
            self.lossy.discard(name)
        return traces


def test_a_baseline_is_recorded_around_the_real_run(monkeypatch, tmp_path):
    order, lossy = [], set()
    monkeypatch.setattr(
        "tracekit.lab.validate.recording.Session", lambda folder: _NoSession(folder, order, lossy)
    )
    case = mechanisms()["ksm"](0)[0]
    for baselines, expected in (
        (1, ["baseline", "real"]),
        (2, ["baseline", "real", "baseline2"]),
        (3, ["baseline", "baseline2", "real", "baseline3"]),
    ):
        order.clear()
        record_runs({f"stem{baselines}": case}, tmp_path, baselines, say=lambda _: None)
        assert order == [f"stem{baselines}-{name}" for name in expected]
        kept = kept_runs(f"stem{baselines}", tmp_path)
        assert kept.real.path.name == f"stem{baselines}-real.trace"
        assert [one.path.name for one in kept.baselines] == [
            f"stem{baselines}-{name}.trace" for name in expected if name != "real"
        ]
    assert was_kept("stem1", tmp_path)
    assert not was_kept("stem4", tmp_path)


def test_only_what_lost_events_is_recorded_again(monkeypatch, tmp_path):
    order, lossy = [], {"two-real"}
    monkeypatch.setattr(
        "tracekit.lab.validate.recording.Session", lambda folder: _NoSession(folder, order, lossy)
    )
    case = mechanisms()["ksm"](0)[0]
    record_runs({"one": case, "two": case}, tmp_path, 1, say=lambda _: None)
    assert order == ["one-baseline", "one-real", "two-baseline", "two-real", "two-baseline", "two-real"]


def test_where_runs_tell_all_themselves_only_one_more_baseline_is_recorded(monkeypatch, tmp_path):
    order, lossy = [], {"one-recorded"}
    monkeypatch.setattr(
        "tracekit.lab.validate.recording.Session", lambda folder: _NoSession(folder, order, lossy)
    )

    def run_unrecorded(run, name, folder):
        order.append(name)
        (folder / f"{name}.json").write_text("{}")

    monkeypatch.setattr("tracekit.lab.validate.recording.run_unrecorded", run_unrecorded)
    record_runs({"one": mechanisms()["epf"](0)[0]}, tmp_path, 2, say=lambda _: None)
    # The recording that lost events is made again; what runs without a recorder comes after it.
    assert order == ["one-recorded", "one-recorded", "one-baseline", "one-real", "one-baseline2"]
    kept = kept_runs("one", tmp_path)
    assert [one.path.name for one in kept.baselines] == ["one-recorded.trace"] * 2
    (tmp_path / "one-baseline.json").unlink()
    with pytest.raises(UsageError, match="one-baseline"):
        kept_runs("one", tmp_path)


def test_the_share_of_the_recorded_waits_that_is_gained_is_taken_from_unrecorded_runs(tmp_path):
    wait = {"us": 651, "kind": "apf_ready", "gfn": 1, "vcpu": 0, "latency_ns": 550_000, "arg": 7}

    def run(wall_s, ran_s, major_faults):
        account = Account(fill_s=1.0, wall_s=wall_s, ran_s=ran_s, major_faults=major_faults)
        found = Recording(tmp_path / "no.trace", account)
        found.__dict__["trace"] = Tiny([wait], span_us=2000)
        return found

    runs = Runs((run(3.0, 2.5, 20), run(5.0, 4.0, 30)), run(2.0, 2.9, 26))
    (case,) = (one for one in mechanisms()["epf"](0) if one.name == "1 sibling")
    checks = {check.metric: check for check in compare(case, 0, runs, costs())}
    # Of the recorded 550 us of waiting 546 are gained (four costs of 1 us).
    share = 546 / 550
    assert checks["waits"].predictions == (20, 30)
    # QEMU had no CPU for 1.5 s of the first one's 4, and for 2 of the other's 6.
    assert checks["wall"].predictions == pytest.approx((3e9 - 1.5e9 * share, 5e9 - 2e9 * share))
    measures = {metric: check.measured for metric, check in checks.items()}
    assert measures == {"waits": 26, "wall": 2e9}


def test_what_an_older_version_did_not_say_is_a_usage_error(tmp_path):
    (reporting, _) = mechanisms()["free_page_reporting"](0)
    with pytest.raises(UsageError, match="'pcp_pages'"):
        reporting.scenario(Recording(tmp_path, Account()))
    with pytest.raises(UsageError, match="'maps_ahead'"):
        mechanisms()["hot_hint"](0)[0].scenario(Recording(tmp_path, Account()))
    for told in ({"flags": "", "events": "", "between_ns": [0, 1]}, None):
        with pytest.raises(UsageError, match="'guest_pages'"):
            with_its_pages(Recording(tmp_path, Account(guest_pages=told)))
    with pytest.raises(UsageError, match="'plan'"):
        plan_of(Recording(tmp_path, Account(plan={"pages": 7, "of_tomorrow": 1})))


def test_the_table_and_the_chart_say_what_was_found():
    document = Validation(
        (CHECK, replace(CHECK, metric="exits", unit="count")), {"ksm": "no KSM"}, {}
    ).to_json()
    console = Console(width=80, color_system=None, record=True)
    console.print(validation_table(document))
    text = console.export_text()
    assert "prealloc: random touch" in text
    assert "ksm is left out: no KSM" in text
    assert "of 2 measurements the bands held 100%" in text
    assert validation_figure(document).table.height == 2


def test_the_markdown_table_sums_over_the_cases_of_a_mechanism():
    checks = (
        replace(CHECK, factor=2.0),
        replace(CHECK, case="sequential touch", measured=220.0, factor=2.0),
        replace(CHECK, case="from outside", bound_only=True),
    )
    lines = validation_markdown(Validation(checks, {}, {}).to_json()).splitlines()
    assert lines[2:] == [
        "| prealloc, 2 | time | 2 | 30.0%, 50.0%, 50.0% | 1 | 2.00 | 2 |",
        "| prealloc (bounds), 1 | time | 1 | – | 1 | – | 1 |",
    ]


def test_a_guest_without_exits_has_none_predicted(tmp_path):
    curves = {
        "scenario": ["x"],
        "ts_ns": [0],
        "resident_bytes": [8.0],
        "low_bytes": [8.0],
        "high_bytes": [8.0],
    }
    row = {"metric": ["faults"], "baseline": [9.0], "counterfactual": [2.0], "low": [6.0], "high": [7.0]}
    result = SimpleNamespace(rows=pl.DataFrame(row), curves=pl.DataFrame(curves))
    found = predicted(result, Recording(tmp_path, Account()), {})
    assert found["exits"] == (0.0, 0.0, 0.0)
    assert found["faults"] == (2.0, 2.0, 3.0)


def test_comparing_anew_needs_what_an_earlier_run_left(tmp_path):
    with pytest.raises(UsageError, match="no earlier run left"):
        validate(["prealloc"], tmp_path, profile="published", again=True)
    with pytest.raises(UsageError, match=r"host-0\.toml"):
        validate(["prealloc"], tmp_path, again=True)
    # What a lab host recorded is predicted by published prices, and needs none of this host's.
    for names, lab_host in ((["epf"], False), (["prealloc"], True)):
        with pytest.raises(UsageError, match=r"no earlier run left .*-baseline\.trace"):
            validate(names, tmp_path, again=True, lab_host=lab_host)


def test_a_guests_time_is_its_phases_without_waits_for_a_cpu(tmp_path):
    phase = {"start_ns": 5, "elapsed_ns": 100, "waited_ns": 30}
    account = {"vcpus": [{"phases": {"touch": phase, "touch2": phase}}, {"phases": {"touch": phase}}]}
    assert guest_time(Recording(tmp_path, Account(account))) == 140.0


def test_a_guest_that_uses_a_part_touches_only_that():
    plan = GuestPlan(pages=100, use_pages=7, zero_first=True)
    assert [(phase.name, phase.pages) for phase in plan.phases()] == [("zero", 100), ("touch", 7)]
    assert len(plan.gfns(0)) == 7
    with pytest.raises(UsageError, match="--use"):
        GuestPlan(pages=10, use_pages=11)
