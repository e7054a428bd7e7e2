"""Chance between runs, as it is learned from repeated baselines and from nothing else."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from tracekit.lab.validate.chance import with_chance
from tracekit.lab.validate.check import Check, summarise

STEP = math.exp(0.02)
"""Baselines that lie so far apart: their logarithms have a standard deviation of 0.02 / sqrt(2)."""
T_5 = 2.570582
T_6 = 2.446912
"""Student's t of 5 and of 6 degrees of freedom at 97.5 %."""


def check(seed: int = 0, *, metric: str = "time", case: str = "touch", first: float = 1000.0) -> Check:
    befores = (first, first * STEP)
    return Check(
        "prealloc",
        case,
        "prealloc",
        seed,
        metric,
        "ns",
        sum(befores) / 2,
        500.0,
        480.0,
        520.0,
        500.0,
        False,
        False,
        befores,
        (first / 2, first / 2 * STEP),
    )


def test_the_factor_is_pooled_over_the_seeds_of_a_case() -> None:
    seeds = [check(seed, first=1000.0 + 100 * seed) for seed in range(6)]
    found = with_chance([replace(one, predicted=one.before / 2) for one in seeds])
    expected = math.exp(T_6 * 0.02 / math.sqrt(2) * math.sqrt(1.5))
    assert [one.factor for one in found] == [pytest.approx(expected)] * 6


def test_what_was_measured_has_no_part_in_any_interval() -> None:
    checks = [check(seed) for seed in range(6)]
    other = [replace(one, measured=one.measured * (3 + one.seed)) for one in checks]
    assert {one.factor for one in with_chance(checks)} == {one.factor for one in with_chance(other)}


def test_the_band_and_what_a_new_run_may_take_are_told_apart() -> None:
    checks = with_chance([check(seed) for seed in range(6)])
    beside = replace(checks[0], measured=520.0 * (checks[0].factor or 0) * 0.999)
    assert (beside.held, beside.held_new_run) == (False, True)
    assert not replace(beside, measured=520.0 * (checks[0].factor or 0) * 1.001).held_new_run
    assert beside.new_run == pytest.approx((480.0 / (beside.factor or 0), 520.0 * (beside.factor or 0)))
    (one,) = summarise([beside, *checks[1:]])
    assert (one.runs, one.held, one.held_new_run, one.reached) == (6, 5, 6, True)


def test_few_repeats_borrow_from_other_cases_of_the_same_metric() -> None:
    few = [check(case=f"case {n}") for n in range(6)]
    assert with_chance(few)[0].factor == pytest.approx(with_chance([check(n) for n in range(6)])[0].factor)
    apart = with_chance([*few[:2], *(check(n, metric="stall", first=9.0) for n in range(6))])
    assert apart[0].factor == pytest.approx(
        math.exp(4.302653 * 0.02 / math.sqrt(2) * math.sqrt(1.5))  # 2 degrees of freedom
    )


def test_prices_that_differ_from_seed_to_seed_are_in_the_factor_of_times() -> None:
    # 0.5 and 0.5 * e^0.1 of the baseline in turns: a standard deviation of 0.05 * sqrt(6 / 5).
    # Those of one seed lie 0.02 apart, so the mean of two scatters by 0.01. The rest is a price's, twice.
    one = check()
    found = [
        replace(one, seed=seed, predicted=one.before / 2 * math.exp(0.1 * (seed % 2))) for seed in range(6)
    ]
    beside = 0.02**2 / 2 / 2
    drift = 0.05**2 * 6 / 5 - beside
    expected = math.exp(T_5 * math.sqrt(0.02**2 / 2 + beside + 2 * drift))
    assert [one.factor for one in with_chance(found)] == [pytest.approx(expected)] * 6
    # Sizes have no price, and of a few seeds nothing is learned.
    sizes = [replace(one, metric="resident_end", unit="bytes") for one in found]
    plain = math.exp(T_6 * 0.02 / math.sqrt(2) * math.sqrt(1.5))
    assert [one.factor for one in with_chance(sizes)] == [pytest.approx(plain)] * 6
    few = with_chance([*found[:5], *(check(seed, case="other") for seed in range(6))])
    assert few[0].factor == pytest.approx(math.exp(T_5 * 0.02 / math.sqrt(2) * math.sqrt(1.5)))


def test_start_up_work_scatters_as_the_guests_time_does() -> None:
    startups = [
        replace(check(seed, metric="startup"), befores=(0.0, 0.0), predictions=(80.0, 80.0))
        for seed in range(6)
    ]
    found = with_chance([*(check(seed) for seed in range(6)), *startups])
    assert found[-1].factor == pytest.approx(math.exp(T_6 * 0.02 / math.sqrt(2)))


def test_counts_that_never_differ_stay_points_and_without_a_repeat_nothing_is_said() -> None:
    exact = [replace(check(n, metric="exits"), befores=(7.0, 7.0), predictions=(3.0, 3.0)) for n in range(6)]
    assert with_chance(exact)[0].factor == 1.0
    (single,) = with_chance([replace(check(), befores=(1000.0,), predictions=(500.0,), measured=521.0)])
    assert (single.factor, single.new_run, single.held_new_run) == (None, (480.0, 520.0), False)
