"""What a new run of the same thing may take: chance between runs, learned from runs that were repeated.

A figure of two runs of the same work differs by the machine's mood: its caches, its neighbours, its
frequency. On a log scale that is a factor, about as large for a long run as for a short one. Runs repeated
close in time show it without the drift from hour to hour; what many such groups show is pooled.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

__all__ = ["LEVEL", "Scatter", "new_run_factor", "scatter"]

LEVEL: Final = 0.95


@dataclass(frozen=True)
class Scatter:
    """Standard deviation of the logarithm between runs of the same thing, and its degrees of freedom."""

    log_sd: float
    dof: int


UNKNOWN: Final = Scatter(math.inf, 0)
"""Of what was not repeated."""


def scatter(groups: Iterable[Sequence[float]]) -> Scatter:
    """Return how far the values of a group lie apart, pooled over groups (their means may differ).

    A group with a value that is not above zero tells nothing, nor does one of a single value.

    >>> scatter([[1.0, 1.0], [5.0], [0.0, 3.0]])
    Scatter(log_sd=0.0, dof=1)
    """
    squares, dof = 0.0, 0
    for group in groups:
        if len(group) < 2 or min(group) <= 0:
            continue
        logs = [math.log(value / min(group)) for value in group]  # equal values lie 0 apart, exactly
        middle = math.fsum(logs) / len(logs)
        squares += math.fsum((one - middle) ** 2 for one in logs)
        dof += len(logs) - 1
    return Scatter(math.sqrt(squares / dof) if dof else math.inf, dof)


def new_run_factor(
    runs: Scatter, predictions: Scatter, averaged: int, level: float = LEVEL, *, prices: Scatter = UNKNOWN
) -> float:
    """Return the factor by which one new run may lie above or below what is predicted for it, by chance.

    The prediction is the mean over `averaged` recorded runs, of which each alone would scatter by
    `predictions`; the new run scatters by `runs`. Where a prediction is proportional to its run, this is the
    prediction interval for a single future observation of a lognormal sample, s t sqrt(1 + 1/n) on the log
    scale, with a pooled s (Hahn & Meeker, "Statistical Intervals", 4.8). Infinite where nothing was repeated.

    `prices`: how far such predictions lie apart by prices that were measured at different times, each in
    units of its run. What they have beyond `predictions` is a price's, and the new run has its own again.
    """
    beside = predictions.log_sd**2 / averaged if predictions.dof else 0.0
    drift = max(prices.log_sd**2 - beside, 0.0) if prices.dof else 0.0
    dof = min(runs.dof, predictions.dof or runs.dof, prices.dof if drift else runs.dof)
    if not dof:
        return math.inf
    half = _quantile((1 + level) / 2, dof) * math.sqrt(runs.log_sd**2 + beside + 2 * drift)
    return math.exp(min(half, 700.0))


@cache
def _quantile(share: float, dof: int) -> float:
    """Return Student's t below which that share lies."""
    from scipy.stats import t

    return float(t.ppf(share, dof))
