"""Is it a difference or is it noise: scipy's permutation test and bootstrap over blocks or runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from tracekit.report.comparison.blocks import BINS, Floats
from tracekit.report.outline import BINS_PER_DECADE

__all__ = ["CONFIDENCE", "Inference", "Sample", "adjusted", "infer", "total", "upper_quantile"]

CONFIDENCE: Final = 0.95
_PERMUTATIONS: Final = 4999
_RESAMPLES: Final = 1999
_BATCH: Final = 256

Ints = np.ndarray[Any, np.dtype[np.int64]]
Statistic = Callable[[Floats], Floats]
"""From values [..., units, width] to one number per leading index."""


@dataclass(frozen=True)
class Sample:
    """Units of two sides that can be exchanged if nothing differs.

    `first` and `second` hold one row per unit. `paired`: unit k is the same point of progress on both
    sides (blocks); else units are whole runs.
    """

    first: Floats
    second: Floats
    paired: bool


@dataclass(frozen=True)
class Inference:
    """A statistic on both sides, their difference with its confidence interval, and the test's p-value."""

    first: float
    second: float
    low: float
    high: float
    p: float

    @property
    def difference(self) -> float:
        """Second minus first."""
        return self.second - self.first


def total(rows: Floats) -> Floats:
    """Return the sum over units.

    >>> total(np.array([[1.0], [2.0]])).tolist()
    3.0
    """
    summed: Floats = rows[..., 0].sum(axis=-1)
    return summed


def mean(rows: Floats) -> Floats:
    """Return the mean over units: what whole runs are compared by."""
    averaged: Floats = rows[..., 0].mean(axis=-1)
    return averaged


def upper_quantile(share: float) -> Statistic:
    """Return the statistic that reads a quantile, in ns, off latency counts summed over units.

    >>> counts = np.zeros((2, BINS)); counts[:, 100] = 5
    >>> round(float(upper_quantile(0.5)(counts)), 2)
    104.71
    """

    def read(rows: Floats) -> Floats:
        below = rows.sum(axis=-2).cumsum(axis=-1)
        reached = (below < share * below[..., -1:]).sum(axis=-1)
        quantile: Floats = 10.0 ** ((np.minimum(reached, BINS - 1) + 1) / BINS_PER_DECADE)
        return quantile

    return read


def infer(sample: Sample, statistic: Statistic, *, seed: int = 0) -> Inference:
    """Test whether `statistic` differs between the sides, and bound by how much.

    Blocks are swapped between the sides in pairs, runs freely; 4,999 random permutations or all there
    are (`scipy.stats.permutation_test`); the interval is a percentile bootstrap over the same units.
    """
    from scipy import stats

    count = len(sample.first)
    rows = np.concatenate([sample.first, sample.second])
    sides = (np.arange(count), np.arange(count, len(rows)))

    def difference(first: Ints, second: Ints, axis: int = -1) -> Floats:
        # The units are along the last axis, as scipy hands them over when it is told axis=-1.
        return statistic(rows[second]) - statistic(rows[first])

    test = stats.permutation_test(
        sides,
        difference,
        permutation_type="samples" if sample.paired else "independent",
        vectorized=True,
        n_resamples=_PERMUTATIONS,
        batch=_BATCH,
        axis=-1,
        rng=np.random.default_rng(seed),
    )
    interval = stats.bootstrap(
        sides,
        difference,
        paired=sample.paired,
        vectorized=True,
        n_resamples=_RESAMPLES,
        batch=_BATCH,
        axis=-1,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    first, second = (float(statistic(side)) for side in (sample.first, sample.second))
    return Inference(first, second, float(interval.low), float(interval.high), float(test.pvalue))


def adjusted(p_values: list[float]) -> list[float]:
    """Return p-values adjusted for their number (Benjamini and Hochberg, `scipy.stats`).

    >>> adjusted([0.01, 0.02, 0.9])
    [0.03, 0.03, 0.9]
    """
    from scipy import stats

    if not p_values:
        return []
    return [float(p) for p in stats.false_discovery_control(p_values)]


def enough_runs(first: int, second: int, alpha: float) -> bool:
    """Whether so many runs a side can show a difference at `alpha`, also after adjustment.

    The least p-value of all ways to share out the runs must leave room for one metric in four to differ.

    >>> enough_runs(5, 5, 0.01), enough_runs(6, 6, 0.01)
    (False, True)
    """
    return 4 * 2 / math.comb(first + second, first) <= alpha
