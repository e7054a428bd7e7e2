"""Replays of samples: exact where blocks are alike, right on average where not, or refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tracekit.errors import UsageError
from tracekit.replay import run
from tracekit.trace import Meta, Trace, TraceWriter, compact, events_batch, open_trace

BLOCKS = 400


def make(path: Path, touched: np.ndarray) -> Trace:
    """A VM of BLOCKS blocks; `touched[b]` pages of block b are written, 100 ns each, for 1 s after that."""
    gfn = np.concatenate([np.arange(n) + 512 * b for b, n in enumerate(touched)])
    with TraceWriter(path, Meta(vms=[{"vcpus": 1}], start_ns=1, stop_ns=1_000_000_000)) as writer:
        writer.add_memslot(
            vm=0, slot=0, gpa=0, size_bytes=BLOCKS << 21, hva=1 << 40, flags=0, from_ns=0, known_by="ioctl"
        )  # fmt: skip
        writer.append(
            events_batch(
                ts_ns=1000 * np.arange(1, len(gfn) + 1),
                kind="ept_violation",
                vcpu=0,
                gfn=gfn,
                level=1,
                access=2,
                latency_ns=100,
            )
        )
    return open_trace(path)


def figures(trace: Trace, scenario: str) -> dict[str, tuple[float, float]]:
    return {r["metric"]: (r["baseline"], r["saved"]) for r in run(trace, [scenario]).records()}


def test_alike_blocks_give_the_whole_answer_at_any_rate(tmp_path: Path) -> None:
    whole = make(tmp_path / "x.trace", np.full(BLOCKS, 30))
    compact(whole.path, tmp_path / "y.trace", sample=0.25)
    sample = open_trace(tmp_path / "y.trace")
    assert 50 < sample.rows / 30 < 150
    for scenario in ("zeroing", "hugepages,size=2m", "prealloc,via=pre_fault"):
        truth, found = figures(whole, scenario), figures(sample, scenario)
        for metric in ("faults", "exits", "stall"):
            assert found[metric] == pytest.approx(truth[metric]), (scenario, metric)
        assert found["critical_path"] == pytest.approx(truth["critical_path"]), scenario
        base, saved = truth["resident_mean"]
        tolerance = 0.1 if scenario.startswith("hugepages") else 0.03  # when those blocks came
        assert found["resident_mean"] == pytest.approx((base, saved), rel=tolerance, abs=0.02 * base)
    result = run(sample, ["zeroing"])
    assert set(result.rows["label"]) == {"assumed"}
    assert "a sample of 0.25" in result.about["notes"][-1]
    assert result.about["sampling"]["count_scale"] == pytest.approx(12_000 / sample.rows)
    peak = result.curves.filter(scenario="baseline")["resident_bytes"].max()
    assert peak == pytest.approx(12_000 * 4096)


def test_unlike_blocks_are_right_on_average_and_within_the_stated_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    whole = make(tmp_path / "x.trace", rng.integers(1, 60, BLOCKS))
    base, truth = figures(whole, "hugepages,size=2m")["faults"]
    found, stated = [], []
    for seed in range(12):
        compact(whole.path, tmp_path / "y.trace", sample=0.2, seed=seed, force=True)
        result = run(open_trace(tmp_path / "y.trace"), ["hugepages,size=2m"])
        (row,) = result.rows.filter(metric="faults").to_dicts()
        assert row["baseline"] == pytest.approx(base)  # counted when the sample was taken
        found.append(row["saved"] - truth)
        share = truth / base
        stated.append(base * np.sqrt(share * (1 - share)) * result.about["sampling"]["spread"])
    assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(12)
    assert np.mean(np.abs(found) < 2 * np.array(stated)) >= 0.9


def test_what_needs_the_whole_guest_is_refused(tmp_path: Path) -> None:
    whole = make(tmp_path / "x.trace", np.full(BLOCKS, 3))
    compact(whole.path, tmp_path / "y.trace", sample=0.5)
    sample = open_trace(tmp_path / "y.trace")
    for scenario in ("swap,limit_mib=1", "hot_hint", "hugepages,size=1g"):
        with pytest.raises(UsageError, match="sample"):
            run(sample, [scenario])


def test_a_trace_without_names_and_addresses_gives_the_same_figures(tmp_path: Path) -> None:
    whole = make(tmp_path / "x.trace", np.full(BLOCKS, 3))
    compact(whole.path, tmp_path / "y.trace", rebase=True)
    scenarios = ["zeroing", "hugepages,size=2m", "prealloc"]
    assert run(open_trace(tmp_path / "y.trace"), scenarios).rows.equals(run(whole, scenarios).rows)
