"""Scenario lines and files, cost profiles, the command and the public API: what is accepted, what is said."""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import dedent

import polars as pl
import pytest
from typer.testing import CliRunner

import tracekit as tk
from tests.unit.replay_kit import Tiny, fault, metrics, replayed
from tracekit.cli.app import app
from tracekit.errors import TracekitError, UsageError
from tracekit.replay import load_profile, load_scenarios, parse_scenario, read_scenarios
from tracekit.replay.costs import COSTS
from tracekit.replay.result import ROWS
from tracekit.replay.scenarios import with_parameters
from tracekit.trace import Meta, TraceWriter
from tracekit.trace.batch import events_batch


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("zeroin", "no scenario or mechanism called zeroin", "zeroing"),
        ("zeroing+prealoc", "no scenario or mechanism called prealoc", "prealloc"),
        ("", "no scenario or mechanism called nothing", ""),
        ("hot_hint,polcy=oracle", "hot_hint has no parameter polcy|no mechanism of the scenario", "policy"),
        ("hot_hint,policy=orcale", "hot_hint.policy cannot be orcale", "oracle"),
        ("hot_hint,lead_ms=soon", "lead_ms must be a number", ""),
        ("hot_hint,lead_ms=-1", "lead_ms must be at least 0", ""),
        ("hot_hint,lead_ms=nan", "lead_ms must be a number", ""),
        ("swap,limit_mib=inf", "limit_mib must be a number", ""),
        (
            "hot_hint,lead_ms=1e13",
            "lead_ms must be a number of at most 1e.12 ",
            "",
        ),  # 317 years do not fit into 64 bits of ns
        ("balloon,interval_s=1e10", "interval_s must be a number", ""),
        ("hot_hint,n=1.5", "n must be a whole number", ""),
        ("hot_hint,batch=512", "at most 511", ""),
        ("hot_hint,lead_ms", "name=value", ""),
        ("zeroing,hot_hint.lead_ms=5", "no mechanism hot_hint", "zeroing"),
        ("prealloc+hugepages,size=2m", "size is a parameter of prealloc and hugepages", "size"),
        ("zeroing+zeroing", "named twice", ""),
    ],
)
def test_a_wrong_scenario_says_what_and_suggests(text: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        parse_scenario(text)
    assert hint in caught.value.hint
    assert caught.value.exit_code == 2


def test_parameters_find_their_mechanism() -> None:
    scenario = parse_scenario("zeroing+hot_hint, policy=stride, n=4 ,zeroing.until_ms=5")
    assert scenario.params["hot_hint"] | {"policy": "stride", "n": 4} == scenario.params["hot_hint"]
    assert scenario.params["zeroing"]["until_ms"] == 5.0
    assert parse_scenario("baseline").mechanisms == ()


def test_the_scenario_file_of_the_docs(tmp_path: Path) -> None:
    docs = (Path(__file__).parents[2] / "docs" / "model.md").read_text()
    block = docs.partition("    [[scenario]]")[2].partition("`tracekit sweep")[0]
    (tmp_path / "docs.toml").write_text(dedent("    [[scenario]]" + block))
    hints, small = load_scenarios(tmp_path / "docs.toml")
    assert (hints.name, [m.name for m in hints.mechanisms]) == ("hints", ["zeroing", "hot_hint"])
    assert (hints.params["hot_hint"]["n"], small.params["swap"]["device"]) == (8, "zram")


def test_scenario_files(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text(
        '[[scenario]]\nname = "a"\n[scenario.zeroing]\n[[scenario]]\nname = "b"\n[scenario.hot_hint]\nn = 3\n'
    )
    first, second = load_scenarios(path)
    assert (first.name, second.name, second.params["hot_hint"]["n"]) == ("a", "b", 3)
    path.write_text("[hugepages]\nsize = '1g'\n")
    (only,) = load_scenarios(path)
    assert (only.name, only.params["hugepages"]["size"]) == ("s", "1g")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[hugepages\n", "line 1"),
        ("[zeroing]\n\n[hugepage]\n", "line 3: no mechanism called hugepage"),
        ("[hot_hint]\n# a comment\npolicy = 'orcale'\n", "line 3: hot_hint.policy cannot be orcale"),
        ("zeroing = true\n", "line 1: zeroing must be a table"),
        ("[swap]\nlimit_mib = true\n", "line 2: swap.limit_mib must be a number"),
        ("[swap]\nlimit_mib = inf\n", "line 2: swap.limit_mib must be a number"),
        ("[zeroing]\n[epf]\n", "line 2: epf needs runnable"),
        ("[[scenario]]\n[scenario.swap]\nlimit_mib = 5\n" * 2 + "reclaim = 'no'\n", "line 7: swap.reclaim"),
        ("[[scenario]]\n[scenario.swap]\nlimit_mib = 5\n" * 2 + "[scenario.zero]", "line 7: no mechanism"),
        ("[[scenario]]\nzeroing = {}\n[[scenario]]\nzeroing = {a = 1}\n", "line 4: zeroing has no parameter"),
        ("[[scenario]]\nname = 'a'\n[hot_hint]\nn = 3\n", "line 3: hot_hint is in no scenario"),
        ("[[scenario]]\nname = 3\n[scenario.zeroing]\n", "line 2: name must be text"),
        ("[[scenario]]\n[scenario.swap]\n[[scenario]]\n[scenario.ksm]\n", "line 3: a second scenario"),
        ("[scenario]\nname = 'a'\n", "line 1: scenarios are tables"),
        ("x = " + "[" * 50_000 + "]" * 50_000, "recursion"),
        ("x = " + "9" * 6000, "digits"),
    ],
)
def test_a_wrong_scenario_file_names_the_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "s.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        load_scenarios(path)
    with pytest.raises(UsageError, match="cannot read"):
        load_scenarios(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("costs = 1\n", "tables"),
        ("[costs.ept_4kb]\nns = 1\nsource = 'x'\n", "line 1: no such cost: ept_4kb"),
        ("\n[costs.ept_4k]\nns = -1\nsource = 'x'\n", "line 2: costs.ept_4k: ns must be a time"),
        ("[costs.ept_4k]\nns = 5\nlow = 6\nsource = 'x'\n", "low <= ns <= high"),
        ("[costs.ept_4k]\nns = 5\n", "needs a source"),
        ("[costs.ept_4k]\nns = true\nsource = 'x'\n", "must be a time"),
        ("[costs.ept_4k]\nns = nan\nsource = 'x'\n", "must be a time"),
        ("[costs.ept_4k]\nnss = 5\nns = 5\nsource = 'x'\n", "unknown key nss"),
        ("x = " + "[" * 50_000 + "]" * 50_000, "recursion"),
        ("x = " + "9" * 6000, "digits"),
    ],
)
def test_a_wrong_cost_profile_names_the_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "p.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        load_profile(path)


def test_every_published_cost_has_a_source_and_a_profile_may_name_only_some(tmp_path: Path) -> None:
    published = load_profile()
    assert set(published.costs) == set(COSTS)
    assert all(len(cost.source) > 5 for cost in published.costs.values())
    path = tmp_path / "mine.toml"
    path.write_text("name = 'mine'\n[costs.ept_4k]\nns = 7\nsource = 'measured here'\n")
    mine = load_profile(path)
    assert (mine.name, mine.ns("ept_4k"), mine.ns("ept_2m")) == ("mine", 7.0, published.ns("ept_2m"))


def test_the_profile_prices_what_the_trace_did_not_measure() -> None:
    rows = [fault(10, 1, None), fault(20, 2, None)]
    found = metrics(replayed(Tiny(rows), "prealloc,via=pre_fault"), "prealloc,via=pre_fault")
    # Two 4K faults at 3580 [1000, 5600] ns.
    row = found["stall"]
    assert (row["saved"], row["low"], row["high"], row["label"]) == (7_160, 2_000, 11_200, "assumed")


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "x.trace"
    with TraceWriter(path, Meta(source="synthetic", start_ns=1_000, stop_ns=101_000)) as writer:
        writer.append(
            events_batch(
                ts_ns=[11_000, 31_000],
                kind="ept_violation",
                vcpu=0,
                gfn=[0, 1],
                level=1,
                access=2,
                latency_ns=4_000,
            )
        )
    return path


def test_the_command_prints_tidy_json_and_writes_a_result(trace: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    done = CliRunner().invoke(
        app, ["replay", str(trace), "-s", "zeroing", "-s", "hugepages", "--json", "-o", str(out)]
    )
    assert done.exit_code == 0, done.output
    rows = pl.DataFrame(json.loads(done.stdout), schema=ROWS)
    assert set(rows["scenario"]) == {"zeroing", "hugepages"}
    saved = json.loads(out.read_text())
    assert saved["rows"] == json.loads(done.stdout)
    about = saved["about"]
    assert len(about["trace"]["sha256"]) == 64
    assert about["trace"]["events"] == 2
    assert about["profile"]["name"] == "published"
    assert {"tracekit", "numba", "python"} <= about["versions"].keys()
    assert "synthetic" in about["notes"][0]


def test_the_command_prints_a_table_in_80_columns_and_names_the_next_command(trace: Path) -> None:
    done = CliRunner().invoke(
        app, ["replay", str(trace), "-s", "prealloc"], env={"COLUMNS": "80", "NO_COLOR": "1"}
    )
    assert done.exit_code == 0, done.output
    assert max(len(line) for line in done.stdout.splitlines()) <= 80
    assert "guest stall" in done.stdout
    assert "next: tracekit report" in done.stderr


def test_an_existing_result_is_not_overwritten(trace: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    out.write_text("precious")
    with pytest.raises(TracekitError, match="exists already"):
        CliRunner().invoke(
            app, ["replay", str(trace), "-s", "zeroing", "-o", str(out)], catch_exceptions=False
        )
    assert out.read_text() == "precious"


def test_the_api_takes_paths_traces_and_one_or_many_scenarios(trace: Path) -> None:
    opened = tk.open(trace)
    assert opened.events.collect().height == 2
    one = tk.what_if(opened, "zeroing")
    many = tk.what_if(trace, ["zeroing", "hugepages"])
    assert one.schema == many.schema == ROWS
    assert one.equals(many.filter(scenario="zeroing"))
    with pytest.raises(UsageError, match="given twice"):
        tk.what_if(opened, ["zeroing", "zeroing"])
    with pytest.raises(UsageError, match="no scenario given"):
        tk.what_if(opened, [])


def test_importing_the_front_door_imports_nothing_heavy() -> None:
    import subprocess
    import sys

    code = (
        "import sys, tracekit; print([m for m in ('numba', 'polars', 'scipy', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_a_scenario_needs_may_come_from_a_setting(tmp_path: Path) -> None:
    (line,) = read_scenarios(["epf"], settings={"epf.runnable": "2"})
    assert (line.name, line.params["epf"]["runnable"]) == ("epf,epf.runnable=2", 2)
    file = tmp_path / "mine.toml"
    file.write_text('name = "mine"\n[epf]\n[hot_hint]\nlead_ms = 3\n')
    (table,) = read_scenarios([str(file)], settings={"runnable": "4", "lead_ms": "7"})
    assert (table.params["epf"]["runnable"], table.params["hot_hint"]["lead_ms"]) == (4, 7.0)
    with pytest.raises(UsageError, match="needs runnable"):
        read_scenarios([str(file)])


def test_a_value_set_anew_stands_alone_in_the_name() -> None:
    (one,) = read_scenarios(["epf,runnable=10"], settings={"runnable": "1"})
    assert (one.name, one.params["epf"]["runnable"]) == ("epf,runnable=1", 1)
    (same,) = read_scenarios(["epf,runnable=10"], settings={"epf.runnable": "1"})
    assert (same.name, same.params["epf"]["runnable"]) == ("epf,epf.runnable=1", 1)
    # Of two mechanisms with a parameter of one name, the other one's stays.
    both = "prealloc+hot_hint,prealloc.via=pre_fault,hot_hint.via=pre_fault"
    (two,) = read_scenarios([both], settings={"hot_hint.via": "populate"})
    assert (two.params["prealloc"]["via"], two.params["hot_hint"]["via"]) == ("pre_fault", "populate")
    assert with_parameters(one, {"runnable": 3.0}).name == "epf,runnable=3"


def test_a_name_never_speaks_of_another_number_of_threads(tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    file.write_text('name = "mine,runnable=10"\n[epf]\nrunnable = 1\n')
    (one,) = load_scenarios(file)
    assert one.name == "mine,runnable=10,epf.runnable=1"


def test_an_output_that_can_not_be_stops_the_command_before_any_work(tmp_path: Path) -> None:
    taken, nowhere = tmp_path / "r.json", tmp_path / "no" / "r.json"
    taken.write_text("precious")
    trace = str(tmp_path / "no.trace")
    for command in (
        ["replay", trace, "-o"],
        ["sweep", "--vary", "lead_ms=1:2", "-s", "hot_hint", trace, "-o"],
        ["calibrate", "-o"],
    ):
        for out, match in ((taken, "exists already"), (nowhere, "no folder")):  # not: no trace there
            with pytest.raises(UsageError, match=match):
                CliRunner().invoke(app, [*command, str(out)], catch_exceptions=False)
    chart = ["calibrate", "--chart", str(nowhere.with_suffix(".svg"))]
    with pytest.raises(UsageError, match="no folder"):
        CliRunner().invoke(app, chart, catch_exceptions=False)


def test_a_scenario_given_twice_is_refused_by_the_command_too(trace: Path) -> None:
    with pytest.raises(UsageError, match="given twice: zeroing"):
        CliRunner().invoke(
            app, ["replay", str(trace), "-s", "zeroing", "-s", "zeroing"], catch_exceptions=False
        )
