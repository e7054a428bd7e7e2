"""Sobol indices: which share of a value's variance each parameter explains, alone and with the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tracekit.errors import UsageError
from tracekit.replay.uncertainty.answers import Statistical
from tracekit.replay.uncertainty.parameters import Evaluate, Parameter, evaluate_rows, rows_at

__all__ = ["Share", "sobol", "sobol_evaluations"]

_RESAMPLES: Final = 499
_FEWEST: Final = 20
"""Points that the variance must rest on: of fewer, resampling says next to nothing."""


@dataclass(frozen=True)
class Share:
    """One parameter's share of the variance of a value over the whole parameter space.

    `first`: what fixing it alone would remove. `total`: what stays if all others were fixed; the difference
    is its interactions. The intervals say how sure `n` points are; noise can push an index past 0 or 1.
    """

    parameter: str
    first: float
    first_interval: Statistical
    total: float
    total_interval: Statistical


def sobol_evaluations(parameters: int, n: int) -> int:
    """Return how many settings `sobol` evaluates: n (d + 2)."""
    return n * (parameters + 2)


def sobol(
    evaluate: Evaluate,
    parameters: Sequence[Parameter],
    *,
    n: int = 1024,
    level: float = 0.95,
    rng: np.random.Generator,
) -> list[Share]:
    """Return first-order and total Sobol indices, the largest total first.

    One call of `evaluate` with n (d + 2) rows: parameters uniform on their scale, independent. Estimators
    of Saltelli et al. 2010 (scipy.stats.sobol_indices); intervals by the percentile bootstrap over points.
    Where all points have the same value there is nothing to share: 0, without an interval; none
    either where the variance rests on a few points. Raises UsageError
    when `n` is not a power of two, FailedError for a value that isn't finite.

    >>> found = sobol(lambda x: 2 * x[:, 0] + x[:, 1], [Parameter("a", 0, 1), Parameter("b", 0, 1)],
    ...               rng=np.random.default_rng(1))
    >>> [(one.parameter, round(one.first, 2), round(one.total, 2)) for one in found]
    [('a', 0.8, 0.8), ('b', 0.2, 0.2)]
    """
    from scipy.stats import bootstrap, qmc, sobol_indices

    d = len(parameters)
    if n < 2 or n & (n - 1):
        raise UsageError(f"Sobol needs a power of two of points, not {n}", hint=f"n = {1 << n.bit_length()}")
    if d == 0:
        return []
    if d == 1:
        raise UsageError(
            "Sobol shares a variance among parameters: one alone has all of it", hint="--tornado"
        )
    points = qmc.Sobol(2 * d, rng=rng).random(n)
    a, b = points[:, :d], points[:, d:]
    mixed = [np.where(np.arange(d) == i, b, a) for i in range(d)]
    values = evaluate_rows(evaluate, rows_at(parameters, np.concatenate([a, b, *mixed])))
    if np.ptp(values) == 0:
        nothing = Statistical(
            None, None, level, units=n, note=f"the same value at all {len(values):,} settings"
        )
        return [Share(one.name, 0.0, nothing, 0.0, nothing) for one in parameters]
    table = values.reshape(d + 2, n)

    def indices(columns: NDArray[np.int64]) -> NDArray[np.float64]:
        chosen = table[:, columns]
        found = sobol_indices(func={"f_A": chosen[:1], "f_B": chosen[1:2], "f_AB": chosen[2:, None, :]}, n=n)
        return np.stack([np.ravel(found.first_order), np.ravel(found.total_order)])

    everything = np.arange(n)
    first, total = indices(everything)
    rests_on = _points_that_count(table[:2])
    if rests_on < _FEWEST:
        first, total = np.nan_to_num(first), np.nan_to_num(total)  # not one of them differs
        why = f"the variance rests on about {rests_on:.0f} of {2 * n:,} points, {_FEWEST} are needed"
        few = Statistical(None, None, level, units=n, note=why)
        return sorted(
            (
                Share(one.name, float(a), few, float(b), few)
                for one, a, b in zip(parameters, first, total, strict=True)
            ),
            key=lambda one: -one.total,
        )
    spread: Any = bootstrap(
        (everything,),
        indices,
        n_resamples=_RESAMPLES,
        vectorized=False,
        method="percentile",
        confidence_level=level,
        rng=rng,
    ).confidence_interval

    def interval(order: int, i: int) -> Statistical:
        return Statistical(float(spread.low[order, i]), float(spread.high[order, i]), level, units=n)

    shares = [
        Share(parameter.name, float(first[i]), interval(0, i), float(total[i]), interval(1, i))
        for i, parameter in enumerate(parameters)
    ]
    return sorted(shares, key=lambda one: -one.total)


def _points_that_count(values: NDArray[np.float64]) -> float:
    """Return on about how many of the values their variance rests: all, or a few that are far off."""
    off = values - values.mean()
    most = np.abs(off).max()
    if most == 0:
        return 0.0
    squares = np.square(off / most)
    return float(squares.sum()) ** 2 / float(np.square(squares).sum())
