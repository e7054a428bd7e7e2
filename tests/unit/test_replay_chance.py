"""Confidence intervals of a replay: windows of time, seeded, apart from what the trace leaves open."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from tests.unit.replay_kit import Tiny, costs, drop, fault
from tracekit.errors import UsageError
from tracekit.replay import run
from tracekit.replay.result import Result

NAME = "prealloc,via=pre_fault"


def steady(seed: int = 1) -> Tiny:
    """2,000 first touches at random times of one second, 1 to 9 us each."""
    rng = np.random.default_rng(seed)
    times = np.sort(rng.uniform(10, 1_000_000, 2_000))
    rows = [fault(float(us), k, float(rng.uniform(1, 9))) for k, us in enumerate(times)]
    return Tiny(rows, memory_pages=2_048, span_us=1_000_000)


def bootstrapped(trace: Tiny, *names: str, jobs: int = 1, seed: int = 3) -> Result:
    profile = costs(prefault_4k=0)
    return run(trace, names or [NAME], profile=profile, plain=True, bootstrap=499, jobs=jobs, seed=seed)


def test_the_interval_is_that_of_a_poisson_stream() -> None:
    # 2,000 faults at random times: another second has 2,000 +- 1.96 x 44.7 = 88 of them, if all are saved.
    row = bootstrapped(steady()).rows.row(by_predicate=pl.col("metric") == "faults", named=True)
    assert row["saved"] == 2_000
    assert row["chance_low"] < 2_000 < row["chance_high"]
    assert 120 < row["chance_high"] - row["chance_low"] < 260
    # It says nothing about what the trace leaves open, which is nothing.
    assert (row["low"], row["high"]) == (2_000, 2_000)
    assert row["chance_blocks"] >= 8


def test_it_is_the_same_for_any_number_of_jobs_and_company_and_another_for_another_seed() -> None:
    names = (NAME, "zeroing", "hot_hint,lead_ms=1")
    one, two = bootstrapped(steady(), *names), bootstrapped(steady(), *names, jobs=3)
    assert one.rows.equals(two.rows)
    alone = bootstrapped(steady())
    assert alone.rows.equals(one.rows.filter(pl.col("scenario") == NAME))
    assert not alone.rows.equals(bootstrapped(steady(), seed=4).rows)


def test_one_burst_gives_no_interval_but_a_reason() -> None:
    rows = [fault(500_000 + 100 * k, k, 4) for k in range(500)]
    found = bootstrapped(Tiny(rows, span_us=1_000_000)).rows
    row = found.row(by_predicate=pl.col("metric") == "stall", named=True)
    assert (row["chance_low"], row["chance_high"]) == (None, None)
    assert "independent pieces" in row["chance_note"]


def test_windows_that_all_save_the_same_leave_nothing_to_chance() -> None:
    # 256 windows of 1,000 us, ten faults in each: whatever is resampled, a window saves ten.
    rows = [fault(100.0 * k + 50, k, 4) for k in range(2_560)]
    row = bootstrapped(Tiny(rows, memory_pages=4_096, span_us=256_000)).rows.row(
        by_predicate=pl.col("metric") == "faults", named=True
    )
    assert (row["chance_low"], row["saved"], row["chance_high"]) == (2_560, 2_560, 2_560)


def test_stalls_of_infinite_variance_have_no_interval() -> None:
    # Too few windows to see it, but not too few faults: latencies are Pareto of exponent 1.3.
    rng = np.random.default_rng(6)
    rows = [fault(50.0 * (k + 1), k, float(1 + rng.pareto(1.3))) for k in range(2_000)]
    found = bootstrapped(Tiny(rows, memory_pages=2_048, span_us=100_100)).rows
    stall = found.row(by_predicate=pl.col("metric") == "stall", named=True)
    assert (stall["chance_low"], stall["chance_high"]) == (None, None)
    assert "tail is too heavy" in stall["chance_note"]
    assert found.row(by_predicate=pl.col("metric") == "faults", named=True)["chance_low"] is not None


def test_too_few_resamples_are_refused() -> None:
    with pytest.raises(UsageError, match="20 resamples are too few"):
        run(steady(), [NAME], plain=True, bootstrap=20)


def test_windows_add_up_to_the_whole_also_with_added_faults() -> None:
    rows = [fault(100 * k, k % 50, 4) for k in range(1, 400)] + [
        drop(100 * k + 1, 0, 30) for k in range(9, 400, 40)
    ]
    rows += [{"us": 150 * k, "kind": "access", "gfn": k % 50, "arg": 1, "vcpu": 0} for k in range(1, 200)]
    found = bootstrapped(Tiny(rows, span_us=50_000), "swap,limit_mib=0.1").rows
    for metric in ("faults", "stall", "refaults"):
        row = found.row(by_predicate=pl.col("metric") == metric, named=True)
        if row["chance_low"] is not None:
            assert row["chance_low"] <= row["saved"] <= row["chance_high"]


def test_under_shadow_paging_it_is_about_the_same_faults_as_the_figure() -> None:
    # Of eight neighbours that the host has, one fault maps all: seven of eight go, in each window.
    rows = [fault(50.0 * (k + 1), k, 4) for k in range(2_000)]
    trace = Tiny(rows, memory_pages=2_048, span_us=100_100, host={"mmu_mode": "shadow"})
    row = bootstrapped(trace, "prealloc").rows.row(by_predicate=pl.col("metric") == "faults", named=True)
    assert row["saved"] == 1_750
    assert row["chance_low"] <= 1_750 <= row["chance_high"]


def test_without_bootstrap_there_are_no_such_columns() -> None:
    assert "chance_low" not in run(steady(), [NAME], plain=True).rows.columns
