"""The distribution that fits a cost's samples best, with how well it does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

__all__ = ["Fit", "best_fit"]

_FAMILIES: Final = ("lognorm", "gamma", "norm")
_FEWEST: Final = 7


@dataclass(frozen=True)
class Fit:
    """A distribution of scipy.stats with its parameters (ns), and its distance to the samples.

    `ks` is the Kolmogorov-Smirnov statistic D, the largest distance of the two distribution functions. No p
    value goes with it: the parameters were fitted to the same samples.
    """

    family: str
    parameters: tuple[float, ...]
    ks: float


def best_fit(values: Sequence[float]) -> Fit | None:
    """Return the nearest of lognormal, gamma (both from 0 on) and normal; None for too few or equal values.

    >>> best_fit([1.0, 2.0]) is None
    True
    >>> best_fit([100.0, 110.0, 120.0, 130.0, 150.0, 170.0, 200.0, 400.0]).family
    'lognorm'
    """
    from scipy import stats

    if len(values) < _FEWEST or min(values) <= 0 or min(values) == max(values):
        return None
    found = []
    for family in _FAMILIES:
        distribution = getattr(stats, family)
        fixed = {} if family == "norm" else {"floc": 0}
        parameters = distribution.fit(values, **fixed)
        distance = stats.kstest(values, family, args=parameters).statistic
        found.append(Fit(family, tuple(float(one) for one in parameters), float(distance)))
    return min(found, key=lambda fit: fit.ks)
