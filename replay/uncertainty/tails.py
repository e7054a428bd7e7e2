"""How heavy the upper tail of a cost is: a generalised Pareto distribution over a high threshold."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["INFINITE_VARIANCE", "Tail", "tail"]

INFINITE_VARIANCE: Final = 0.5
"""From this GPD shape on the variance is infinite, and from 1 on the mean too."""

_SHARES: Final = (0.1, 0.05, 0.025, 0.01, 0.005, 0.003, 0.001, 0.0005, 0.0002, 0.0001)
_MOST: Final = 2_000
_FEWEST: Final = 50
_GOOD: Final = 0.7
"""A threshold is high enough when D sqrt(k) is at most this. With both parameters fitted, about three in four
true GPD samples pass (simulated in tests/unit/test_uncertainty_tails.py); the fourth costs some precision by
moving to a higher threshold, which is better than a bias from one that is too low."""


@dataclass(frozen=True)
class Tail:
    """The exceedances over `threshold`, as GPD(shape, scale); units are those of the values.

    `exceedances` values lie above the threshold, which is `share` of all; `distance` is the
    Kolmogorov-Smirnov D of the fit. `shape_error` is the standard error of the shape, (1 + shape) / sqrt(k)
    (Smith 1987).
    """

    shape: float
    shape_error: float
    scale: float
    threshold: float
    share: float
    exceedances: int
    distance: float

    @property
    def infinite_variance(self) -> bool:
        """Whether intervals of means and sums would be wrong: shape >= 0.5."""
        return self.shape >= INFINITE_VARIANCE

    def quantile(self, q: float) -> float:
        """Return the extrapolated q-quantile, for q above 1 - share (below it, the data know better)."""
        beyond = (1 - q) / self.share
        if beyond > 1:
            raise ValueError(f"the tail starts at the {1 - self.share:g} quantile, above {q:g}")
        if abs(self.shape) < 1e-9:
            return self.threshold - self.scale * math.log(beyond)
        return self.threshold + self.scale * (math.pow(beyond, -self.shape) - 1) / self.shape


def tail(values: ArrayLike) -> Tail | None:
    """Fit the upper tail over the lowest threshold that a generalised Pareto distribution fits.

    Thresholds tried are the 90 % … 99.99 % quantiles with at least 50 exceedances (of more than 2,000 an
    evenly ranked subset is fitted); where none fits, the best one is taken. None when there are too few
    values or all above the threshold are equal.

    >>> import scipy.stats
    >>> found = tail(scipy.stats.pareto(1.6).rvs(20_000, random_state=1))
    >>> abs(found.shape - 1 / 1.6) < 2 * found.shape_error
    True
    """
    ordered = np.sort(np.asarray(values, np.float64).ravel())
    best: Tail | None = None
    for share in _SHARES:
        if len(ordered) * share < _FEWEST:
            break
        found = _over(ordered, len(ordered) - int(len(ordered) * share))
        if found is None:
            continue
        if found.distance * math.sqrt(found.exceedances) <= _GOOD:
            return found
        if best is None or found.distance < best.distance:
            best = found
    return best


def _over(ordered: NDArray[np.float64], start: int) -> Tail | None:
    from scipy.stats import genpareto, ks_1samp

    threshold = float(ordered[start - 1])
    above = ordered[np.searchsorted(ordered, threshold, side="right") :] - threshold
    count = len(above)
    if len(above) > _MOST:
        above = above[np.linspace(0, len(above) - 1, _MOST).round().astype(np.int64)]
    if len(above) < _FEWEST or above[0] == above[-1]:
        return None
    unit = float(above.mean())
    shape, _, scale = genpareto.fit(above / unit, 0.1, floc=0, scale=1.0)
    distance = float(ks_1samp(above / unit, genpareto(shape, 0, scale).cdf).statistic)
    return Tail(
        shape=float(shape),
        shape_error=(1 + max(float(shape), -0.5)) / math.sqrt(len(above)),
        scale=float(scale) * unit,
        threshold=threshold,
        share=count / len(ordered),
        exceedances=count,
        distance=distance,
    )
