"""Comparisons: what may be compared, what counts as a difference, and what the p-values are worth."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from tests.unit.report_example import HOSTILE, command, ledger_row
from tracekit.errors import DamagedError, UsageError
from tracekit.report.comparison import compare
from tracekit.report.comparison.blocks import BINS, BLOCKS, tallies
from tracekit.report.comparison.differences import Difference
from tracekit.report.comparison.inference import Sample, adjusted, infer, mean, total, upper_quantile
from tracekit.report.comparison.table import interval, percent
from tracekit.report.page import render_comparison
from tracekit.trace import Meta, TraceWriter, events_batch

FAULTS = 4800  # 200 in each of the 24 blocks


def recording(
    path: Path,
    seed: int,
    *,
    slower: float = 1.0,
    faults: int = FAULTS,
    host: dict[str, Any] | None = None,
    **meta: Any,
) -> str:
    """Write a recording of `faults` faults of about 3 us (times `slower`) and 100 discarded pages."""
    rng = np.random.default_rng(seed)
    about = {"kernel": "6.18.1", "cpu": "Example CPU", "cpus": 2, "mmu_mode": "ept"} | (host or {})
    vms = meta.pop("vms", [{"pid": 1, "argv": ["qemu"], "vcpus": 1, "page_bytes": 4096}])
    with TraceWriter(
        path, Meta(source=meta.pop("source", "recorded"), host=about, vms=vms, **meta)
    ) as writer:  # type: ignore[arg-type]
        latency = (slower * rng.lognormal(8, 0.5, faults)).astype(np.uint64)
        start = 10**12 + np.cumsum(rng.integers(5_000, 20_000, faults))
        writer.append(
            events_batch(
                ts_ns=start,
                kind="ept_violation",
                tid=5,
                vcpu=0,
                gfn=np.arange(faults),
                level=1,
                latency_ns=latency,
            )
        )
        writer.append(
            events_batch(ts_ns=[int(start[-1]) + 1], kind="balloon_inflate", tid=1, gfn=0, pages=100)
        )
    return str(path)


# -- the statistics


def test_permutation_agrees_with_all_swaps_done_by_hand() -> None:
    rng = np.random.default_rng(3)
    first, second = rng.normal(10, 1, (10, 1)), rng.normal(10.8, 1, (10, 1))
    observed = abs(float(total(second) - total(first)))
    reached = 0
    for swaps in itertools.product((False, True), repeat=10):
        a = np.where(np.array(swaps)[:, None], second, first)
        b = np.where(np.array(swaps)[:, None], first, second)
        reached += abs(float(total(b) - total(a))) >= observed - 1e-9
    # 2^10 swaps are fewer than 4,999: scipy goes through all of them.
    assert infer(Sample(first, second, paired=True), total).p == pytest.approx(reached / 2**10)


def test_p_values_of_equal_sides_are_uniform_and_intervals_hold_zero() -> None:
    rng = np.random.default_rng(1)
    p_values, holds = [], 0
    for _ in range(120):
        first, second = rng.gamma(4, 1, (2, BLOCKS, 1))
        found = infer(Sample(first, second, paired=True), total)
        p_values.append(found.p)
        holds += found.low <= 0 <= found.high
    # Binomial, 120 draws: 12 +- 3.3 at p <= 0.1; 114 +- 2.4 intervals, less for a bootstrap of only 24.
    assert 2 <= sum(p <= 0.1 for p in p_values) <= 23
    assert 0.35 < float(np.mean(p_values)) < 0.65
    assert holds >= 104


def test_a_shift_of_a_quarter_is_found_over_runs_and_over_blocks() -> None:
    rng = np.random.default_rng(2)
    first = rng.normal(100, 5, (BLOCKS, 1))
    assert infer(Sample(first, first * 1.25, paired=True), total).p < 0.001
    runs = infer(Sample(first[:6], first[6:12] * 1.25, paired=False), mean)
    assert runs.p < 0.01
    assert runs.low < 25 < runs.high


def test_quantiles_of_counts_are_those_of_the_values() -> None:
    rng = np.random.default_rng(4)
    values = rng.lognormal(9, 1, 50_000)
    counts = np.zeros((BLOCKS, BINS))
    np.add.at(counts, (rng.integers(0, BLOCKS, len(values)), np.floor(50 * np.log10(values)).astype(int)), 1)
    for share in (0.5, 0.99):
        exact = float(np.quantile(values, share))
        assert exact <= float(upper_quantile(share)(counts)) * 1.001
        assert float(upper_quantile(share)(counts)) <= exact * 1.05
    assert float(upper_quantile(0.5)(np.zeros((BLOCKS, BINS)))) > 0  # nothing there: no crash, and no nan


def test_p_values_are_adjusted_for_their_number() -> None:
    assert adjusted([]) == []
    assert adjusted([0.04, 0.5, 0.04, 0.9]) == pytest.approx([0.08, 2 / 3, 0.08, 0.9])


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({"second": 130.0, "low": 20.0, "high": 40.0, "p": 0.001}, "different"),
        ({"second": 130.0, "low": 20.0, "high": 40.0, "p": 0.2}, "not shown"),
        ({"second": 102.0, "low": 1.0, "high": 3.0, "p": 0.001}, "same"),
        ({"second": 102.0, "low": -9.0, "high": 13.0, "p": 0.6}, "not shown"),
        ({"second": 130.0, "low": 20.0, "high": 40.0}, "different"),
        ({"second": 130.0, "low": -1.0, "high": 40.0}, "not shown"),
        ({"second": 130.0}, "not shown"),
        ({"second": 130.0, "counted": True}, "different"),
        ({"second": 104.0, "counted": True}, "same"),
        ({"second": None}, "not shown"),
    ],
)
def test_verdicts(change: dict[str, Any], verdict: str) -> None:
    row: dict[str, Any] = {"metric": "m", "unit": "ns", "first": 100.0, "low": None, "high": None, "p": None}
    assert Difference(**{**row, **change}).judged(0.05, 0.01).verdict == verdict


def test_changes_are_written_with_their_interval() -> None:
    one = Difference("m", "ns", 200.0, 250.0, 40.0, 60.0, 0.001)
    assert (percent(one), interval(one)) == ("+25.0 %", "[+20.0, +30.0]")
    fresh = Difference("m", "bytes", 0.0, 4096.0, None, None, None, counted=True)
    assert (percent(fresh), interval(fresh)) == ("4.00 KiB", "exact")


# -- recordings


def test_blocks_hold_every_fault_once(tmp_path: Path) -> None:
    from tracekit.trace import open_trace

    (tally,) = tallies([open_trace(recording(tmp_path / "a.trace", 1))])
    assert tally.events == {"MMU fault 4 KiB": FAULTS}
    assert tally.latency["MMU fault 4 KiB"].sum(axis=1).tolist() == [FAULTS / BLOCKS] * BLOCKS
    assert tally.given_back == 100


def test_two_recordings_of_the_same_are_the_same(tmp_path: Path) -> None:
    found = compare([recording(tmp_path / "a.trace", 1), recording(tmp_path / "b.trace", 2)])
    assert not found.different
    verdicts = {d.metric: d.verdict for d in found.pairs[0].differences}
    assert verdicts["faults"] == verdicts["memory faulted in"] == verdicts["memory given back"] == "same"
    assert "different" not in verdicts.values()


def test_slower_faults_are_found_and_nothing_else(tmp_path: Path) -> None:
    found = compare([recording(tmp_path / "a.trace", 1), recording(tmp_path / "b.trace", 2, slower=1.3)])
    by_name = {d.metric: d for d in found.pairs[0].differences}
    assert found.different
    assert {n for n, d in by_name.items() if d.verdict == "different"} == {
        "stall, faults",
        "p50, faults",
        "p99, faults",
    }
    stall = by_name["stall, faults"]
    assert stall.relative == pytest.approx(0.3, abs=0.05)
    assert stall.low is not None
    assert stall.high is not None
    assert stall.first is not None
    assert stall.low < 0.3 * stall.first < stall.high
    assert compare([tmp_path / "a.trace", tmp_path / "b.trace"], tolerance=0.5).different is False  # type: ignore[list-item]


def test_more_faults_are_a_difference_without_any_test(tmp_path: Path) -> None:
    found = compare(
        [recording(tmp_path / "a.trace", 1), recording(tmp_path / "b.trace", 2, faults=FAULTS * 2)]
    )
    faults = found.pairs[0].differences[0]
    assert (faults.first, faults.second, faults.p, faults.verdict) == (FAULTS, FAULTS * 2, None, "different")


def test_enough_runs_a_side_are_tested_as_runs(tmp_path: Path) -> None:
    sides = [
        ",".join(
            recording(tmp_path / f"{side}{n}.trace", 10 * n + len(side), slower=slower, faults=600)
            for n in range(6)
        )
        for side, slower in (("a", 1.0), ("bb", 1.3))
    ]
    found = compare(sides)
    assert found.method == "permutation test over whole runs"
    stall = next(d for d in found.pairs[0].differences if d.metric == "stall, faults")
    # 924 ways to share out 12 runs: the least p there is, 2 / 924, adjusted upwards.
    assert stall.verdict == "different"
    assert stall.p is not None
    assert stall.p >= 2 / 924


def test_an_empty_recording_compares(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "e.trace", Meta(source="synthetic")):
        pass
    found = compare([str(tmp_path / "e.trace")] * 2)
    assert not found.different
    assert "Stall over time" not in render_comparison(found)


# -- provenance


@pytest.mark.parametrize(
    ("meta", "words"),
    [
        ({"source": "synthetic"}, "source differs"),
        ({"host": {"mmu_mode": "npt"}}, "MMU mode differs"),
        ({"host": {"cpu": "Another CPU"}}, "CPU differs"),
        ({"vms": [{"pid": 1, "vcpus": 2, "page_bytes": 4096}]}, "vCPUs differs"),
        ({"sampling": {"gfn_hash": 0.01}}, "sampling differs"),
        ({"probes": {"active": ["host_fault"]}}, "probes differs"),
    ],
)
def test_the_incomparable_is_refused_and_forcing_marks_it(
    tmp_path: Path, meta: dict[str, Any], words: str
) -> None:
    sides = [
        recording(tmp_path / "a.trace", 1, faults=240),
        recording(tmp_path / "b.trace", 2, faults=240, **meta),
    ]
    with pytest.raises(UsageError, match=words):
        compare(sides)
    forced = compare(sides, force=True)
    assert words in forced.forced
    assert "Forced." in render_comparison(forced)


def test_another_kernel_is_what_one_compares_for(tmp_path: Path) -> None:
    sides = [
        recording(tmp_path / "a.trace", 1, faults=240),
        recording(tmp_path / "b.trace", 2, faults=240, host={"kernel": "6.19.0"}),
    ]
    fact = next(f for f in compare(sides).facts if f.name == "kernel")
    assert (fact.values, fact.verdict) == (("6.18.1", "6.19.0"), "differs")


def test_sides_that_cannot_be_opened_say_why(tmp_path: Path) -> None:
    trace = recording(tmp_path / "a.trace", 1, faults=240)
    (tmp_path / "r.json").write_text(json.dumps([ledger_row("faults", "count", 10, 5)]))
    for sides, words in (
        ([trace], "two sides"),
        ([trace, ","], "empty"),
        ([trace, str(tmp_path / "no.trace")], "no trace at"),
        ([trace, str(tmp_path / "r.json")], "is a result, .* a recording"),
    ):
        with pytest.raises(UsageError, match=words):
            compare(sides)
    (tmp_path / "a.trace" / "events" / "00000.arrow").write_bytes(b"")
    with pytest.raises(DamagedError):
        compare([trace, trace])


# -- results


def result(path: Path, rows: list[dict[str, Any]], **about: Any) -> str:
    path.write_text(json.dumps({"about": about, "rows": rows}))
    return str(path)


def test_results_differ_where_all_of_the_interval_does(tmp_path: Path) -> None:
    stall = ledger_row("stall", "ns", 8e9, 2e9, low=1e9, high=3e9, label="bounded")
    sides = [
        result(tmp_path / "a.json", [ledger_row("faults", "count", 1000, 250), stall]),
        result(
            tmp_path / "b.json",
            [ledger_row("faults", "count", 1000, 400), {**stall, "saved": 2.4e9, "high": 3.4e9}],
        ),
    ]
    by_name = {d.metric: d for d in compare(sides).pairs[0].differences}
    assert (by_name["zeroing: faults"].difference, by_name["zeroing: faults"].verdict) == (150, "different")
    # The lowest saving stays, the stated and highest rise by 0.4 s: it may be that nothing changed.
    assert (by_name["zeroing: guest stall"].low, by_name["zeroing: guest stall"].high) == (
        0,
        pytest.approx(4e8),
    )
    assert by_name["zeroing: guest stall"].verdict == "not shown"
    assert compare([sides[0], sides[0]]).different is False


def test_results_of_other_parameters_or_no_common_scenario_are_refused(tmp_path: Path) -> None:
    rows = [ledger_row("faults", "count", 1000, 250)]
    named = [{"name": "zeroing", "params": {"zeroing": {"until_ms": n}}} for n in (0, 5)]
    sides = [result(tmp_path / f"{n}.json", rows, scenarios=[named[n]]) for n in (0, 1)]
    with pytest.raises(UsageError, match=r"scenarios differs .*other parameters"):
        compare(sides)
    other = result(tmp_path / "o.json", [ledger_row("faults", "count", 1000, 250, scenario="prealloc")])
    with pytest.raises(UsageError, match="no scenario in common"):
        compare([sides[0], other])


# -- the command


def test_exit_codes_are_for_ci(tmp_path: Path) -> None:
    recording(tmp_path / "a.trace", 1)
    recording(tmp_path / "slow.trace", 2, slower=1.5)
    different = command("compare", "a.trace", "slow.trace", "--json", "-o", "x.html", cwd=tmp_path)
    assert different.returncode == 1, different.stderr
    document = json.loads(different.stdout)
    assert document["different"] is True
    assert {d["verdict"] for d in document["differences"]} == {"different", "same"}
    assert (tmp_path / "x.html").read_text().count("<figure ") == 3
    same = command("compare", "a.trace", "a.trace", cwd=tmp_path)
    assert same.returncode == 0, same.stderr
    assert "0 of 6 metrics differ" in same.stdout
    assert all(len(line) <= 80 for line in same.stdout.splitlines())
    assert command("compare", "a.trace", "nowhere", cwd=tmp_path).returncode == 2
    (tmp_path / "no").mkdir(mode=0o500)
    unwritable = command("compare", "a.trace", "a.trace", "-o", "missing/x.html", cwd=tmp_path)
    assert unwritable.returncode == 2, "exit code 1 means different"


def test_hostile_names_are_inert(tmp_path: Path) -> None:
    rows = [ledger_row("faults", "count", 1000, 250, scenario=HOSTILE)]
    sides = [result(tmp_path / f"{n}.json", rows, seed=HOSTILE + str(n)) for n in (0, 1)]
    page = render_comparison(compare(sides))
    assert page.count("<script") == 3
    assert "\x1b" not in page
    done = command("compare", "0.json", "1.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert pl.DataFrame(rows).height == 1
