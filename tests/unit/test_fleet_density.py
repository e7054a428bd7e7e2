"""VMs per host: closed forms, exhaustive small cases, exact convolutions, and intervals that cover."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tracekit.errors import UsageError
from tracekit.replay.fleet import Curves, density, load_curves
from tracekit.replay.fleet.capacity import Fleet
from tracekit.replay.fleet.curves import Grid
from tracekit.replay.fleet.demand import MOST_VMS, first_overflow
from tracekit.replay.fleet.overflow import Rates, overflow
from tracekit.replay.uncertainty import generator

Steps = list[list[float]]


def grid_of(curves: Steps | NDArray[np.float64]) -> Grid:
    lengths = np.array([len(curve) for curve in curves])
    return Grid(np.concatenate([np.asarray(c, float) for c in curves]), np.cumsum(lengths) - lengths, lengths)


def curves_of(**scenarios: Steps | NDArray[np.float64]) -> Curves:
    """Curves that are on their grid already, one step a nanosecond."""
    some = next(iter(scenarios.values()))
    names = tuple(f"vm{i}" for i in range(len(some)))
    grids = {name: grid_of(curves) for name, curves in scenarios.items()}
    return Curves(names, ("",) * len(names), 1e9, grids, 0.0)


def test_independent_normal_demands_are_the_closed_form() -> None:
    from scipy.stats import norm

    rng = np.random.default_rng(11)
    values = rng.normal(8.0, 2.0, (64, 1024))
    mean, sigma = values.mean(), values.std()
    for room, risk in ((768.0, 1e-3), (768.0, 1e-2), (256.0, 1e-3)):
        n = np.arange(1, 200)
        tails = norm.sf((room - n * mean) / (sigma * np.sqrt(n)))
        truth = int(n[tails <= risk][-1])
        found = density(curves_of(baseline=values), room, risk, moments=100_000, populations=2).fits[0]
        assert abs(found.vms - truth) <= 1
        assert found.chance[0] <= truth <= found.chance[1] + 1
        assert found.risk <= risk < found.risk_of_one_more


def exact_risk(curves: Steps, n: int, room: float, together: float) -> float:
    """Enumerate every choice of VMs, of who joins, and of steps, with its probability."""
    longest = max(len(curve) for curve in curves)
    total = 0.0
    for vms in itertools.product(range(len(curves)), repeat=n):
        for joins in itertools.product([True, False], repeat=n):
            p = float(np.prod([together if j else 1 - together for j in joins])) / len(curves) ** n
            if not p:
                continue
            own = [range(1 if j else len(curves[vm])) for vm, j in zip(vms, joins, strict=True)]
            cases = list(itertools.product(range(longest), *own))
            over = 0
            for shared, *steps in cases:
                need = sum(
                    curves[vm][shared % len(curves[vm]) if j else step]
                    for vm, j, step in zip(vms, joins, steps, strict=True)
                )
                over += need > room
            total += p * over / len(cases)
    return total


@pytest.mark.parametrize("together", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("room", [5.0, 9.0])
def test_small_cases_equal_exhaustive_enumeration(together: float, room: float) -> None:
    curves: Steps = [[1, 4, 2, 0], [3, 0], [2, 2, 5]]
    moments = 100_000
    (first,) = first_overflow([grid_of(curves)], room, moments, together=together, rng=generator(3))
    for n in (1, 2, 3):
        truth = exact_risk(curves, n, room, together)
        error = np.sqrt(truth * (1 - truth) / moments)
        assert np.mean(first <= n) == pytest.approx(truth, abs=5 * error + 1e-12)


def test_random_phases_equal_the_exact_convolution() -> None:
    rng = np.random.default_rng(4)
    curves = [rng.integers(0, 9, rng.integers(5, 30)).astype(float) for _ in range(12)]
    pmf = np.mean([np.bincount(curve.astype(int), minlength=9) / len(curve) for curve in curves], axis=0)
    room, risk = 150.0, 0.01
    tails, total = [], np.array([1.0])
    for _ in range(80):
        total = np.convolve(total, pmf)
        tails.append(total[int(room) + 1 :].sum())
    truth = int(np.flatnonzero(np.array(tails) <= risk)[-1]) + 1
    found = density(curves_of(baseline=curves), room, risk, moments=400_000, populations=2).fits[0]
    assert found.vms == truth
    assert found.risk == pytest.approx(tails[truth - 1], rel=0.1)


def test_aligned_curves_are_the_worst_moment_of_their_sum() -> None:
    # Two VMs alike, peak 10 in one of 100 steps, else 1. Aligned: n VMs need 10 n at 1 % of moments.
    curve = [10.0] + [1.0] * 99
    curves = curves_of(baseline=[curve, curve])
    aligned = density(curves, 100.0, 0.005, together=1, moments=50_000).fits[0]
    assert aligned.vms == 10
    assert density(curves, 100.0, 0.02, together=1, moments=50_000).fits[0].vms == 100
    assert density(curves, 100.0, 0.005, together=0, moments=50_000).fits[0].vms > 60


def test_boundaries_by_hand() -> None:
    flat = curves_of(baseline=[[10.0]], half=[[5.0]])
    answer = density(flat, 100.0, 0.001, moments=1000)
    assert [fit.vms for fit in answer.fits] == [10, 20]  # exactly full is not over
    assert answer.fits[1].extra == 10
    assert answer.fits[0].interval.low is None
    assert "8 are needed" in answer.fits[0].interval.note
    tiny = density(flat, 7.0, 0.001, moments=1000)
    assert [fit.vms for fit in tiny.fits] == [0, 1]
    assert "not even one VM" in " ".join(tiny.notes)
    nothing = density(curves_of(baseline=[[0.0]]), 7.0, 0.001, moments=10)
    assert nothing.fits[0].vms == MOST_VMS
    assert nothing.fits[0].overflow is None


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_less_memory_never_fits_fewer_vms(data: Any) -> None:
    shape = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=5))
    curve = st.integers(1, 20)
    base = [[float(data.draw(curve)) for _ in range(length)] for length in shape]
    less = [[value * data.draw(st.sampled_from([0.25, 0.5, 1.0])) for value in one] for one in base]
    together = data.draw(st.sampled_from([0.0, 0.3, 1.0]))
    room = data.draw(st.integers(20, 200))
    found = density(curves_of(baseline=base, less=less), room, 0.05, together=together, moments=300).fits
    assert found[1].extra >= 0
    more = density(curves_of(baseline=base), room + 10, 0.05, together=together, moments=300).fits
    assert more[0].vms >= found[0].vms


def population(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    """VMs of very different sizes, each wandering around its own."""
    size = rng.lognormal(1.0, 0.5, count)[:, None]
    return np.asarray(size * rng.uniform(0.6, 1.4, (count, 32)))


def test_intervals_hold_what_a_large_fleet_would_show() -> None:
    rng = np.random.default_rng(2)
    truth = density(
        curves_of(baseline=population(rng, 4000)), 60.0, 0.02, moments=60_000, populations=0
    ).fits[0]
    runs, held = 30, 0
    for seed in range(runs):
        seen = curves_of(baseline=population(rng, 30))
        found = density(seen, 60.0, 0.02, moments=4000, populations=40, seed=seed).fits[0].interval
        assert found.low is not None
        assert found.high is not None
        held += found.low <= truth.vms <= found.high
    assert held >= 24  # about 91 % of 30 is 27; 24 is two standard errors below


def test_the_same_seed_gives_the_same_bits() -> None:
    seen = population(np.random.default_rng(7), 12)
    one, two = (density(curves_of(baseline=seen, less=seen * 0.8), 50.0, 0.01, populations=20) for _ in "ab")
    assert one == two
    assert density(curves_of(baseline=seen), 50.0, 0.01, populations=20, seed=1) != one
    alone = density(curves_of(baseline=seen), 50.0, 0.01, populations=20).fits[0]
    assert alone == one.fits[0]  # another scenario beside it changes nothing


def test_hosts_and_money_by_hand() -> None:
    flat = curves_of(baseline=[[10.0]] * 9, half=[[5.0]] * 9)
    found = density(flat, 100.0, 0.01, moments=500, populations=10, fleet=Fleet(1001, 9000.0)).fits
    before, after = (fit.saving for fit in found)
    assert before is not None
    assert after is not None
    assert (before.hosts, before.hosts_saved) == (101, 0)  # 1001 / 10, rounded up
    assert (after.hosts, after.hosts_saved, after.money_saved) == (51, 50, 450_000)
    assert after.interval.low == after.interval.high == 50  # all VMs are alike


def test_overflow_by_hand() -> None:
    # One VM, room 10. Over by 2, 5 for 2 steps, then by 1 for one step: 3 of 8 steps in 2 episodes.
    grid = grid_of([[0, 12, 15, 0, 0, 11, 3, 3]])
    step_ns = 10.8e12  # 3 hours: 8 steps are a day
    rates = Rates(swap=2.0, balloon=3 / 10_800)
    found = overflow(grid, 1, 10.0, step_ns, together=1, rates=rates, rng=generator(1))
    assert found.share_of_time == 3 / 8
    assert found.hosts_ever == 1
    assert found.episodes == pytest.approx(2)
    assert found.mean_s == pytest.approx(1.5 * 10_800)
    assert (found.mean_bytes, found.peak_bytes) == (pytest.approx(8 / 3), 5)
    assert found.swap_bytes == pytest.approx(2 + 3 + 1)  # what is newly over
    assert found.swap_s == pytest.approx(3)
    # Balloons take 3 a step: all of 2, of 5 all (2 + 3), all of 1: never over any more.
    assert found.balloon_share_of_time == 0
    # Mean size 44 / 8 = 5.5: one VM covers 2 and 5, another one covers 1.
    assert found.oom_kills == pytest.approx(2)
    slow = overflow(grid, 1, 10.0, step_ns, together=1, rates=Rates(2.0, 1 / 10_800), rng=generator(1))
    assert slow.balloon_share_of_time == 2 / 8  # 1 of 2 taken, 2 of 5 taken, 1 of 1 taken


def test_overflow_agrees_with_the_risk_that_was_asked() -> None:
    seen = population(np.random.default_rng(3), 200)
    found = density(curves_of(baseline=seen), 100.0, 0.05, moments=100_000, populations=2).fits[0]
    assert found.overflow is not None
    assert found.overflow.share_of_time == pytest.approx(found.risk, abs=0.015)


def rows(trace: str, scenario: str, points: list[tuple[int, float]]) -> pl.DataFrame:
    return pl.DataFrame(points, schema=["ts_ns", "resident_bytes"], orient="row").with_columns(
        trace=pl.lit(trace), scenario=pl.lit(scenario)
    )


def test_steps_hold_their_largest_value() -> None:
    # 0-100 ns at 4 steps: 7 holds from 10 to 60 and so fills the first three steps.
    table = rows("a", "baseline", [(1000, 1), (1010, 7), (1060, 2), (1080, 3), (1100, 9)])
    found = Curves.of(table, steps=4)
    assert found.grids["baseline"].values.tolist() == [7, 7, 7, 3]
    exact = (10 * 1 + 50 * 7 + 20 * 2 + 20 * 3) / 100
    assert found.rounding == pytest.approx(6 / exact - 1)


def test_curves_of_different_lengths_and_missing_scenarios() -> None:
    table = pl.concat(
        [
            rows("long", "baseline", [(0, 1), (100, 1)]),
            rows("long", "half", [(0, 2), (80, 2)]),
            rows("short", "half", [(5, 4), (30, 4)]),
            rows("short", "baseline", [(5, 3), (30, 3)]),
            rows("point", "baseline", [(5, 8)]),
            rows("point", "half", [(5, 6)]),
            rows("poor", "baseline", [(0, 1), (9, 1)]),
        ]
    )
    found = Curves.of(table, steps=20)
    assert found.traces == ("long", "point", "short")
    assert found.left_out == ("poor",)
    assert list(found.grids) == ["baseline", "half"]
    assert found.grids["baseline"].lengths.tolist() == [20, 1, 5]
    assert found.grids["half"].lengths.tolist() == [16, 1, 5]
    assert found.grids["half"].at(np.array([0, 1, 2]), np.array([15, 3, 8])).tolist() == [2, 6, 4]
    assert "poor" in density(found, 100.0, 0.1, moments=50).notes[0]


def test_curves_are_read_from_parquet_folders_and_results(tmp_path: Path) -> None:
    folder = tmp_path / "RESULTS"
    for name, vm_class in (("a", "web"), ("b", "db")):
        target = folder / "curves" / f"vm_class={vm_class}"
        target.mkdir(parents=True)
        rows(name, "baseline", [(0, 1), (9, 1)]).write_parquet(target / f"{name}.parquet")
    found = load_curves([str(folder)])
    assert (found.traces, found.classes) == (("a", "b"), ("web", "db"))
    assert found.of_class("db").traces == ("b",)
    with pytest.raises(UsageError, match="no VM of class 'x'"):
        found.of_class("x")
    result = tmp_path / "c.json"
    curve = rows("", "baseline", [(0, 1), (9, 2)]).drop("trace").to_dicts()
    result.write_text(json.dumps({"rows": [], "curves": curve}))
    assert load_curves([str(folder), str(result)]).traces == (str(result), "a", "b")


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (pl.DataFrame({"trace": ["a"]}), "column scenario is missing"),
        (rows("a", "baseline", [(0, -1.0)]), "negative"),
        (rows("a", "baseline", [(0, float("nan"))]), "unknown"),
        (pl.concat([rows("a", "x", [(0, 1.0)]), rows("b", "y", [(0, 1.0)])]), "every scenario"),
    ],
)
def test_what_is_no_curve_is_refused(table: pl.DataFrame, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Curves.of(table)


def test_bad_questions_and_files_are_refused(tmp_path: Path) -> None:
    flat = curves_of(baseline=[[10.0]])
    for arguments, words in (((0.0, 0.1), "memory"), ((1.0, 0.0), "risk"), ((1.0, 1.0), "risk")):
        with pytest.raises(UsageError, match=words):
            density(flat, *arguments)
    with pytest.raises(UsageError, match="together"):
        density(flat, 1.0, 0.1, together=2)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "empty.json").write_text('{"rows": []}')
    for name, words in (
        ("bad.parquet", "cannot read"),
        ("bad.json", "cannot read"),
        ("empty.json", "no resident curves"),
        ("none.parquet", "cannot read"),
    ):
        with pytest.raises(UsageError, match=words):
            load_curves([str(tmp_path / name)])
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match="no Parquet files"):
        load_curves([str(tmp_path / "folder")])
    with pytest.raises(UsageError, match="no results"):
        load_curves([])


def band_rows(trace: str, scenario: str, point: float, low: float | None, high: float | None) -> pl.DataFrame:
    return rows(trace, scenario, [(0, point), (100, point)]).with_columns(
        low_bytes=pl.lit(low, pl.Float64()), high_bytes=pl.lit(high, pl.Float64())
    )


def test_the_band_is_all_vms_at_one_end_and_no_part_of_the_interval() -> None:
    known = pl.concat(
        [band_rows(f"vm{i}", "baseline", 10, 10, 10) for i in range(9)]
        + [band_rows(f"vm{i}", "half", 5, 4, 10) for i in range(9)]
    )
    base, half = density(Curves.of(known), 100.0, 0.01, moments=500, populations=10).fits
    assert (base.vms, half.vms, half.extra) == (10, 20, 10)
    assert (base.band.low, base.band.high) == (10, 10)
    assert (half.band.low, half.band.high) == (10, 25)  # 100 / 10 and 100 / 4
    assert (half.extra_band.low, half.extra_band.high) == (0, 15)
    assert half.interval.low == half.interval.high == 20  # all VMs are alike: chance has no part in it
    points = known.drop("low_bytes", "high_bytes")
    alone = density(Curves.of(points), 100.0, 0.01, moments=500, populations=10).fits
    assert [fit.vms for fit in alone] == [10, 20]
    assert alone[1].interval == half.interval
    assert (alone[1].band.low, alone[1].band.high) == (None, None)  # nobody said


def test_a_baseline_that_is_unsure_makes_what_is_gained_unsure() -> None:
    table = pl.concat([band_rows("a", "baseline", 10, 10, 20), band_rows("a", "half", 5, 5, None)])
    base, half = density(Curves.of(table), 100.0, 0.01, moments=200).fits
    assert (base.band.low, base.band.high) == (5, 10)
    assert (half.band.low, half.band.high) == (None, 20)  # one VM without an upper bound: none for the host
    assert (half.extra_band.low, half.extra_band.high) == (None, 15)
    crossed = band_rows("a", "baseline", 10, 11, 12)
    with pytest.raises(UsageError, match="outside its own"):
        Curves.of(crossed)


@pytest.mark.parametrize("together", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("risk", [0.02, 0.2])
def test_the_answer_is_the_largest_number_within_the_enumerated_risk(together: float, risk: float) -> None:
    """At most the risk with so many VMs, more with one more; only where two risks are too close to tell."""
    curves: Steps = [[1, 4, 2, 0], [3, 0], [2, 2, 5]]
    room = 9.0
    exact = [exact_risk(curves, n, room, together) for n in (1, 2, 3, 4)]
    assert min(abs(one - risk) for one in exact) > 0.005  # else chance could decide
    truth = sum(one <= risk for one in exact)
    found = density(curves_of(baseline=curves), room, risk, together=together, moments=100_000).fits[0]
    if truth < 4:
        assert found.vms == truth
        assert found.risk <= risk < found.risk_of_one_more
