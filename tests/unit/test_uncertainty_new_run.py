"""What a new run may take by chance: by hand, and how often it holds where the truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tracekit.replay.uncertainty import Scatter, new_run_factor, scatter


def test_scatter_is_pooled_over_groups_with_means_of_their_own() -> None:
    # Logarithms 0, 1 | 5, 5, 8: squares about their means 0.5 and 6, with 1 and 2 degrees of freedom.
    found = scatter([[1.0, math.e], [math.exp(5), math.exp(5), math.exp(8)]])
    assert (found.log_sd, found.dof) == (pytest.approx(math.sqrt(6.5 / 3)), 3)


def test_what_was_not_repeated_or_is_not_there_tells_nothing() -> None:
    assert scatter([[3.0], [0.0, 2.0]]) == Scatter(math.inf, 0)
    assert new_run_factor(Scatter(math.inf, 0), Scatter(math.inf, 0), 1) == math.inf


def test_the_factor_by_hand() -> None:
    # Student's t of 10 degrees of freedom at 97.5 %: 2.228139 (any table).
    one = Scatter(0.1, 10)
    assert new_run_factor(one, one, 2) == pytest.approx(math.exp(2.228139 * 0.1 * math.sqrt(1.5)))
    # Predictions that do not scatter leave the new run's own chance.
    assert new_run_factor(one, Scatter(0.0, 10), 2) == pytest.approx(math.exp(0.2228139))
    assert new_run_factor(one, Scatter(math.inf, 0), 2) == pytest.approx(math.exp(0.2228139))
    # One degree of freedom, from a single pair: t is 12.7062.
    pair = Scatter(0.01, 1)
    assert new_run_factor(pair, pair, 2) == pytest.approx(math.exp(0.127062 * math.sqrt(1.5)))


@pytest.mark.parametrize(("seeds", "repeats"), [(1, 3), (5, 2), (20, 2)])
def test_it_holds_as_often_as_it_says(seeds: int, repeats: int) -> None:
    rng = np.random.default_rng(7)
    held, sessions = 0, 4000
    for _ in range(sessions):
        drift = rng.normal(0, 0.5, (seeds, 1))  # from hour to hour: not in the interval
        runs = np.exp(drift + rng.normal(0, 0.12, (seeds, repeats)))
        factor = new_run_factor(scatter(runs.tolist()), scatter((runs / 2).tolist()), repeats)
        predicted = runs[0].mean() / 2
        new = math.exp(drift[0, 0] + rng.normal(0, 0.12)) / 2
        held += predicted / factor <= new <= predicted * factor
    # 4,000 sessions: the standard error of 95 % is 0.34 points.
    assert 0.94 < held / sessions < 0.96


def test_it_holds_where_prices_drift_and_not_without_them() -> None:
    """8 seeds, each with a price of its own time and two baselines; the run has the price of another time."""
    rng = np.random.default_rng(8)
    held, without, sessions = 0, 0, 1500
    for _ in range(sessions):
        runs = np.exp(rng.normal(0, 0.05, (8, 2)))
        prices = np.exp(rng.normal(0, 0.2, 8))
        predictions = runs * prices[:, None]
        in_units = predictions.mean(axis=1) / runs.mean(axis=1)
        own = scatter(runs.tolist()), scatter(predictions.tolist()), 2
        factor, narrow = new_run_factor(*own, prices=scatter([in_units.tolist()])), new_run_factor(*own)
        away = abs(rng.normal(0, 0.05) + rng.normal(0, 0.2) - math.log(predictions[0].mean()))
        held += away <= math.log(factor)
        without += away <= math.log(narrow)
    assert 0.93 < held / sessions < 0.97
    assert without / sessions < 0.5
