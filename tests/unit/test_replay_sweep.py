"""Sweeps: grids, break-even and sensitivity are those of single replays, for any number of jobs."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from tests.unit.replay_kit import Tiny, costs, fault, metrics, replayed
from tracekit.cli.app import app
from tracekit.cli.output import stderr
from tracekit.errors import UsageError
from tracekit.replay import parse_scenario
from tracekit.replay.running import Room
from tracekit.replay.sweeping import Sweep, scenario_to_vary
from tracekit.replay.uncertainty import parse_variations
from tracekit.report.study import load_result
from tracekit.trace import Meta, TraceWriter
from tracekit.trace.batch import events_batch


def sweep(trace: Tiny, scenario: str, *vary: str, jobs: int = 1, metric: str = "stall", **ns: float) -> Sweep:
    room = Room.of(trace, profile=costs(**ns), seed=7, plain=True)
    return Sweep(room, parse_scenario(scenario), parse_variations(vary), metric=metric, jobs=jobs)


def spaced() -> Tiny:
    """Eight first touches of 4 us, 100 us apart."""
    return Tiny([fault(100 * k, k, 4) for k in range(1, 9)])


def test_a_grid_is_the_same_as_single_replays_for_any_number_of_jobs() -> None:
    vary = ("lead_ms=0.001:0.01:log:3", "batch=1,8")
    one, two = (sweep(spaced(), "hot_hint", *vary, jobs=jobs).grid() for jobs in (1, 3))
    assert one.rows.equals(two.rows)
    assert one.rows["scenario"].n_unique() == 6
    single = "hot_hint,lead_ms=0.01,batch=8"
    alone = metrics(replayed(spaced(), single, profile=costs()), single)
    assert metrics(one, single)["stall"] == alone["stall"]


def test_break_even_is_where_the_hand_says() -> None:
    # The guest hints each page by a hypercall of 3.5 us on its path (batch = 1) and saves a fault of 4 us, if
    # the prefault of 1 us is ready: with a lead of L us (L < 1) the fault is shortened to 1 - L us. Per page
    # 4 - (1 - L) - 3.5 = L - 0.5 us are saved: it pays from 0.5 us of lead on.
    found = sweep(
        spaced(),
        "hot_hint,batch=1,via=pre_fault",
        "lead_ms=0.0001:0.01",
        metric="critical_path",
        hypercall=3500,
    ).break_even(grid=17)
    (crossing,) = found[0].crossings
    assert crossing.pays_above
    assert crossing.at == pytest.approx(0.0005, abs=2e-6)


@pytest.mark.parametrize(
    ("scenario", "vary", "metric"),
    [
        ("hot_hint,batch=1,via=pre_fault", "lead_ms=0.0001:0.002:9", "critical_path"),
        ("swap,limit_mib=1", "limit_mib=0.01:0.04:9", "stall"),
    ],
)
def test_break_even_of_an_intervals_ends_is_where_the_grids_rows_have_it(
    scenario: str, vary: str, metric: str
) -> None:
    asked = sweep(spaced(), scenario, vary, metric=metric, hypercall=3500)
    rows = asked.grid().rows.filter(pl.col("metric") == metric).unique("scenario", maintain_order=True)
    values = asked.variations[0].values
    for found, column in zip(asked.break_even(grid=9), ("saved", "low", "high"), strict=True):
        grid = rows[column].to_list()
        assert found.of == {"saved": "value"}.get(column, column)
        assert found.lowest == (None if None in grid else min(grid))
        pays, crossings = grid[0] is not None and grid[0] > 0, [one.at for one in found.crossings]
        for value, saved in zip(values, grid, strict=True):
            crossed = sum(at < value for at in crossings) % 2 == 1
            assert (saved is not None and saved > 0) == pays ^ crossed


def test_what_may_cost_without_bound_surely_pays_nowhere() -> None:
    # No access samples: uses of mapped pages are not seen, and each may be a swap-in.
    _, surely, at_best = sweep(spaced(), "swap", "limit_mib=0.01:0.02").break_even(grid=3)
    assert (surely.lowest, surely.highest) == (None, None)
    assert surely.sentence().startswith("surely pays at none of 3")
    assert at_best.sentence().startswith("at best pays at none of 3")


def test_a_low_end_of_zero_does_not_say_that_nothing_is_saved() -> None:
    # A host cannot see which write was a zeroing: eight faults may go, or none.
    told, surely, at_best = sweep(spaced(), "zeroing", "until_ms=0.5:100", metric="faults").break_even(grid=3)
    where = "of 3 values of until_ms between 0.5 and 100"
    assert surely.sentence() == f"surely pays at none {where}"
    assert at_best.sentence() == f"at best pays at each {where}"
    assert told.lowest is not None


def test_a_parameter_in_whole_numbers_has_so_many_values() -> None:
    (one, *_) = sweep(spaced(), "hot_hint", "batch=1:4").break_even(grid=33)
    assert "of 4 values of batch between 1 and 4" in one.sentence()


def test_sobol_says_so_where_no_setting_changed_anything() -> None:
    asked = sweep(spaced(), "hot_hint", "workers=1:4", "batch=1:4", metric="refaults")
    found = asked.sobol(2)
    assert {(one.first, one.total, one.first_interval.low) for one in found} == {(0.0, 0.0, None)}
    assert found[0].total_interval.note == "the same value at all 8 settings"


def test_settings_that_a_name_cannot_tell_apart_are_not_one() -> None:
    asked = sweep(spaced(), "hot_hint,batch=1,via=pre_fault", "lead_ms=10.00001,10.00004")
    scenarios = asked._scenarios(asked._parameters(), asked.variations[0].values[:, None])
    assert len(asked._each(asked._values, scenarios)) == 2
    # A grid has a name for each: it hides neither.
    with pytest.raises(UsageError, match="given twice"):
        asked.grid()


def test_the_tornado_knows_which_parameter_matters() -> None:
    found = sweep(spaced(), "hot_hint,via=pre_fault", "workers=1:4", "lead_ms=0:0.01").tornado()
    assert [one.parameter for one in found] == ["lead_ms", "workers"]
    # Without any lead nothing is saved; with enough of it all 32 us of stall are.
    assert (found[0].value_at_low, found[0].value_at_high) == (0, 32_000)


def test_sobol_repeats_for_the_same_seed_and_for_any_number_of_jobs() -> None:
    vary = ("workers=1:4", "lead_ms=0:0.002")
    one, two = (sweep(spaced(), "hot_hint", *vary, jobs=jobs).sobol(8) for jobs in (1, 2))
    assert one == two
    assert one[0].parameter == "lead_ms"


def test_an_unknown_parameter_or_metric_is_said() -> None:
    with pytest.raises(UsageError, match="parameter leed_ms"):
        sweep(spaced(), "hot_hint", "leed_ms=1:2").grid()
    with pytest.raises(UsageError, match="no metric stal"):
        sweep(spaced(), "hot_hint", "lead_ms=1:2", metric="stal").tornado()
    with pytest.raises(UsageError, match="no metric stal"):
        sweep(spaced(), "hot_hint", "lead_ms=1,2", metric="stal").grid()


def test_what_is_varied_need_not_be_given_and_says_so_once() -> None:
    vary = parse_variations(["runnable=0:4:3"])
    assert scenario_to_vary("epf", vary, {}).name == "epf,runnable=0.0"
    assert scenario_to_vary("epf,runnable=2", vary, {}).name == "epf,runnable=2"
    with pytest.raises(UsageError, match="needs runnable"):
        scenario_to_vary("epf+hot_hint", parse_variations(["lead_ms=1:2"]), {})
    grid = sweep(spaced(), "epf,runnable=2", "runnable=0:4:3").grid()
    names = grid.rows["scenario"].unique(maintain_order=True).to_list()
    assert names == ["epf,runnable=0", "epf,runnable=2", "epf,runnable=4"]


def test_the_tornado_says_which_range_leaves_the_scenarios_own_value_out() -> None:
    inside, outside = "lead_ms=1:20", "workers=2:4"
    (note,) = sweep(spaced(), "hot_hint", inside, outside).outside()
    assert note.startswith("workers = 1 of the scenario is outside of the range: 3")


def test_the_commands_questions_and_their_mistakes(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "a.trace", Meta(source="synthetic", start_ns=1_000)) as writer:
        faults = {"kind": "ept_violation", "vcpu": 0, "level": 1, "latency_ns": 4_000}
        writer.append(events_batch(ts_ns=[11_000, 31_000, 61_000], gfn=[1, 2, 3], **faults))
    base = ["sweep", str(tmp_path / "a.trace"), "-s", "hot_hint", "--vary", "lead_ms=0:0.01:3"]

    def said(*more: str) -> str:
        done = CliRunner().invoke(app, [*base, *more], catch_exceptions=False)
        assert done.exit_code == 0
        return done.stdout

    def suggested(*more: str) -> list[str]:
        done = CliRunner().invoke(app, [*base, *more], catch_exceptions=False)
        (line,) = (one for one in done.stderr.splitlines() if one.startswith("next: tracekit "))
        return shlex.split(line.removeprefix("next: tracekit "))

    # What it names next can be typed, and asks about the same.
    assert suggested("--set", "batch=8", "--metric", "exits") == [
        *base[:4],
        *("--set", "batch=8"),
        *base[4:],
        *("--metric", "exits", "--tornado"),
    ]
    assert suggested("--tornado") == [*base, "--break-even"]
    assert suggested("--break-even") == ["replay", base[1], "-s", "hot_hint"]
    assert CliRunner().invoke(app, suggested(), catch_exceptions=False).exit_code == 0
    assert "by chance alone" in said("--bootstrap", "99")
    assert "workers" in said("--vary", "workers=1:4", "--tornado", "--open-loop", "--set", "batch=8")
    assert "hot_hint,lead_ms=0.01" in said("--phase", "most=0:0.00004", "--metric", "stall:most")
    for wrong, message in (
        (["--tornado", "--break-even"], "one|questions of their own"),
        (["--sobol", "8"], "one alone has all of it"),
    ):
        with pytest.raises(UsageError, match=message):
            said(*wrong)


def test_a_range_in_a_hint_is_no_picture() -> None:
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        stderr().print("1:100:log", markup=False)
    assert said.getvalue() == "1:100:log\n"


@pytest.mark.parametrize(("answer", "table"), [("--tornado", "swings"), ("--break-even", "crossings")])
def test_the_result_file_carries_the_answer_for_a_report(tmp_path: Path, answer: str, table: str) -> None:
    with TraceWriter(tmp_path / "a.trace", Meta(source="synthetic", start_ns=1_000)) as writer:
        faults = {"kind": "ept_violation", "vcpu": 0, "level": 1, "latency_ns": 4_000}
        writer.append(events_batch(ts_ns=[11_000, 31_000, 61_000], gfn=[1, 2, 3], **faults))
    file = tmp_path / "out.json"
    command = ["sweep", str(tmp_path / "a.trace"), "-s", "hot_hint", "--vary", "lead_ms=0:0.01:3", answer]
    said = CliRunner().invoke(app, [*command, "-o", str(file)], catch_exceptions=False)
    assert said.exit_code == 0
    assert json.loads(file.read_text())[table]
    study = load_result(file)
    assert study.rows is not None  # the scenario's own rows stand beside it
    assert (study.swings is not None) == (table == "swings")
    if study.swings is not None:
        assert study.swings.row(0)[:3] == ("stall", "ns", "lead_ms")
