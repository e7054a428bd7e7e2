"""Resident memory over time, as a result carries it: by hand, and never losing a peak."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from tracekit.replay import run
from tracekit.replay.curves import POINTS
from tracekit.trace import Meta, Trace, TraceWriter, events_batch, open_trace

S = 1_000_000_000
T0 = 1000 * S


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    """Ten seconds: 4 pages touched at 1 s, 3 of them gone at 5 s, one of those touched again at 9 s."""
    path = tmp_path_factory.mktemp("curves") / "x.trace"
    with TraceWriter(path, Meta(source="synthetic", start_ns=T0, stop_ns=T0 + 10 * S)) as writer:
        writer.add_memslot(
            vm=0,
            slot=0,
            gpa=0,
            size_bytes=1 << 20,
            hva=0,
            flags=0,
            from_ns=0,
            to_ns=None,
            known_by="synthetic",
        )
        touch = {"kind": "ept_violation", "vcpu": 0, "level": 1, "access": 2, "latency_ns": 1000}
        writer.append(
            events_batch(ts_ns=[T0 + S + n for n in (0, 5000, 10_000, 15_000)], gfn=[0, 1, 2, 3], **touch)
        )
        writer.append(events_batch(ts_ns=[T0 + 5 * S], kind="madvise", gfn=0, pages=3, arg=4))
        writer.append(events_batch(ts_ns=[T0 + 9 * S], gfn=[1], **touch))
    return open_trace(path)


def level(curves: pl.DataFrame, scenario: str, at_s: float) -> float:
    """Return the resident pages of a scenario at a time."""
    mine = curves.filter((pl.col("scenario") == scenario) & (pl.col("ts_ns") <= T0 + at_s * S)).sort("ts_ns")
    return float(mine["resident_bytes"][-1]) / 4096


def test_baseline_is_what_was_recorded_and_prealloc_is_full_from_the_start(trace: Trace) -> None:
    curves = run(trace, ["prealloc"]).curves
    assert curves["scenario"].unique(maintain_order=True).to_list() == ["baseline", "prealloc"]
    assert [level(curves, "baseline", at) for at in (0.9, 1.1, 4.9, 5.1, 8.9, 9.1)] == [0, 4, 4, 1, 1, 2]
    assert level(curves, "prealloc", 0.5) == 256  # 1 MiB
    per = curves.group_by("scenario").agg(pl.len(), pl.col("ts_ns").is_sorted().alias("sorted"))
    assert per["len"].max() <= POINTS  # type: ignore[operator]
    assert per["sorted"].all()


def test_the_peak_of_a_curve_is_the_peak_of_the_ledger(trace: Trace) -> None:
    result = run(trace, ["prealloc", "hugepages"])
    peaks = result.rows.filter(pl.col("metric") == "resident_peak")
    for scenario, baseline, counterfactual in peaks.select(
        "scenario", "baseline", "counterfactual"
    ).iter_rows():
        for name, peak in (("baseline", baseline), (scenario, counterfactual)):
            assert result.curves.filter(pl.col("scenario") == name)["resident_bytes"].max() == peak


def test_a_result_file_carries_the_curves(trace: Trace, tmp_path: Path) -> None:
    result = run(trace, ["prealloc"])
    result.save(tmp_path / "result.json")
    document = json.loads((tmp_path / "result.json").read_text())
    assert pl.DataFrame(document["curves"], schema=result.curves.schema).equals(result.curves)
