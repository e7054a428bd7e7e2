"""Tails and cost distributions: known shapes are found, and formulas are judged by distance, not by p."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from tracekit.errors import UsageError
from tracekit.replay.uncertainty import Empirical, fits, split, tail
from tracekit.replay.uncertainty.tails import _GOOD


@pytest.mark.parametrize("alpha", [1.3, 1.6, 2.5, 4.0])
def test_pareto_tails_have_the_shape_of_their_exponent(alpha: float) -> None:
    found = tail(stats.pareto(alpha).rvs(50_000, random_state=7))
    assert found is not None
    assert found.shape == pytest.approx(1 / alpha, abs=3 * found.shape_error)
    assert found.infinite_variance == (alpha < 2)


def test_light_tails_are_not_heavy() -> None:
    rng = np.random.default_rng(2)
    for values in (rng.exponential(size=20_000), rng.normal(size=20_000), rng.random(20_000)):
        found = tail(values)
        assert found is not None
        assert found.shape < 0.1


def test_the_threshold_climbs_over_a_body_that_is_not_pareto() -> None:
    # Latencies in ns: 92.5 % minor, 7 % major (lognormal), 0.5 % from 200 us on with Pareto exponent 1.6.
    rng = np.random.default_rng(1)
    n = 1_000_000
    kind = rng.random(n)
    x = np.exp(rng.normal(np.log(1900), 0.35, n))
    major, far = (kind >= 0.925) & (kind < 0.995), kind >= 0.995
    x[major] = np.exp(rng.normal(np.log(90_000), 0.5, major.sum()))
    x[far] = 200_000 * (1 + rng.pareto(1.6, far.sum()))
    found = tail(x)
    assert found is not None
    assert found.share <= 0.005
    assert found.shape == pytest.approx(0.625, abs=0.12)
    truth = 200_000 * (0.005 / 1e-5) ** (1 / 1.6)  # the 99.999 % quantile
    assert found.quantile(1 - 1e-5) == pytest.approx(truth, rel=0.25)


def test_three_in_four_true_gpd_samples_pass_the_threshold_rule() -> None:
    rng = np.random.default_rng(6)
    passed = []
    for shape in (0.0, 0.25, 0.5, 0.7):
        for _ in range(30):
            x = stats.genpareto(shape).rvs(400, random_state=rng)
            fitted = stats.genpareto(*stats.genpareto.fit(x, 0.1, floc=0, scale=1.0))
            passed.append(stats.ks_1samp(x, fitted.cdf).statistic * 20 <= _GOOD)
    assert 0.6 <= np.mean(passed) <= 0.9


def test_no_tail_without_values_above() -> None:
    assert tail(np.ones(5000)) is None
    assert tail(np.arange(300)) is None
    found = tail(np.random.default_rng(0).exponential(size=5000))
    assert found is not None
    with pytest.raises(ValueError, match="tail starts"):
        found.quantile(0.5)


def test_costs_are_resampled_by_class_as_measured() -> None:
    classes = np.array([1, 2, 1, 2, 2])
    table = split(classes, [10.0, 100.0, 30.0, 100.0, 400.0])
    rng = np.random.default_rng(0)
    assert set(table[1].sample(1000, rng)) == {10.0, 30.0}
    drawn = table[2].sample(30_000, rng)
    assert np.mean(drawn == 100.0) == pytest.approx(2 / 3, abs=0.01)
    assert table[2].quantile(0.5) == 100.0
    with pytest.raises(UsageError, match="at least one cost"):
        Empirical.of([])
    with pytest.raises(UsageError, match="negative"):
        Empirical.of([1.0, np.nan])


def test_totals_are_as_uncertain_as_the_calibration() -> None:
    # 400 measured costs of 1 us ± 10 %: the mean is known to 0.5 %, and so is the total of a million.
    measured = np.random.default_rng(5).normal(1000, 100, 400)
    totals = Empirical.of(measured).totals(1_000_000, 400, np.random.default_rng(1))
    assert totals.mean() == pytest.approx(1e6 * measured.mean(), rel=0.001)
    assert totals.std() / totals.mean() == pytest.approx(0.005, rel=0.2)


@pytest.mark.parametrize(
    ("family", "law"),
    [("lognorm", stats.lognorm(0.6, scale=2e3)), ("weibull_min", stats.weibull_min(1.7, scale=5e3))],
)
def test_the_family_that_made_the_costs_is_the_closest(family: str, law: object) -> None:
    best, *_, worst = fits(law.rvs(30_000, random_state=3))  # type: ignore[attr-defined]
    assert best.family == family
    assert best.distance < 0.01 < worst.distance
    assert best.worst_quantile < 1.15
    (median,) = [(measured, fitted) for q, measured, fitted in best.qq if q == 0.5]
    assert median[1] == pytest.approx(median[0], rel=0.02)


def test_a_mixture_shows_in_the_distance_and_splitting_by_class_removes_it() -> None:
    """Why there is no mixture fit: fault classes separate what a mixture would have to guess."""
    rng = np.random.default_rng(8)
    major = rng.random(20_000) < 0.07
    cost = np.where(
        major, rng.lognormal(np.log(90_000), 0.5, 20_000), rng.lognormal(np.log(1900), 0.35, 20_000)
    )
    together = fits(cost)[0].distance
    apart = [fits(one.ordered)[0].distance for one in split(major, cost).values()]
    assert together > 0.1
    assert max(apart) < 0.03


def test_quantiles_past_the_data_come_from_the_tail() -> None:
    cost = Empirical.of(stats.pareto(2.5).rvs(5000, random_state=4))
    assert cost.quantile(0.99) in cost.ordered
    assert cost.quantile(0.9999) == pytest.approx(0.0001 ** (-1 / 2.5), rel=0.5)
