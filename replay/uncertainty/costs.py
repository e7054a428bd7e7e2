"""Cost distributions: what was measured is resampled as it is; a formula only where data end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tracekit.errors import UsageError
from tracekit.replay.uncertainty.tails import Tail, tail

__all__ = ["Empirical", "Fit", "fits", "split"]

_FAMILIES: Final = ("lognorm", "weibull_min", "gamma", "invgauss")
_QQ: Final = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999)


@dataclass(frozen=True)
class Empirical:
    """The measured costs of one class of events (kind x level x state), ascending, in ns.

    >>> cost = Empirical.of([3.0, 1.0, 2.0, 2.0])
    >>> cost.mean, cost.quantile(0.5)
    (2.0, 2.0)
    """

    ordered: NDArray[np.float64]

    @classmethod
    def of(cls, values: ArrayLike) -> Empirical:
        """Take measured costs; UsageError when there are none or any is negative or not a number."""
        ordered = np.sort(np.asarray(values, np.float64).ravel())
        if not len(ordered) or not np.isfinite(ordered[-1]) or ordered[0] < 0:
            raise UsageError("a cost distribution needs at least one cost, none negative or unknown")
        return cls(ordered)

    @property
    def mean(self) -> float:
        """The mean cost."""
        return float(self.ordered.mean())

    @cached_property
    def tail(self) -> Tail | None:
        """The upper tail, fitted; None when there are too few values to see one."""
        return tail(self.ordered)

    def sample(self, count: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Draw measured costs with replacement."""
        return self.ordered[rng.integers(0, len(self.ordered), count)]

    def quantile(self, q: float) -> float:
        """Return the measured quantile; past what the data can show (10 values above), the fitted tail's."""
        upper = self.tail
        if upper is not None and (1 - q) * len(self.ordered) < 10:
            return upper.quantile(q)
        return float(np.quantile(self.ordered, q, method="inverted_cdf"))

    def totals(self, count: int, draws: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Return `draws` plausible totals of `count` events: each from another resample of the measurements.

        What is uncertain is the calibration (few measurements), not the sum of many events.
        """
        size = len(self.ordered)
        means = np.empty(draws)
        for i in range(draws):
            means[i] = self.sample(size, rng).mean()
        return count * means


def split(classes: ArrayLike, values: ArrayLike) -> dict[int, Empirical]:
    """Split measured costs by the class of their event.

    >>> {k: v.mean for k, v in split([2, 1, 2], [5.0, 1.0, 7.0]).items()}
    {1: 1.0, 2: 6.0}
    """
    keys, costs = np.asarray(classes), np.asarray(values, np.float64)
    order = np.argsort(keys, kind="stable")
    names, starts = np.unique(keys[order], return_index=True)
    return {
        int(name): Empirical.of(part)
        for name, part in zip(names, np.split(costs[order], starts[1:]), strict=True)
    }


@dataclass(frozen=True)
class Fit:
    """A scipy.stats family fitted by maximum likelihood, location fixed at 0.

    `distance` is the Kolmogorov-Smirnov D: the largest difference between the two distribution functions.
    No p-value: with a million values it is 0 for any formula. `qq` has (q, measured, fitted) rows.
    """

    family: str
    parameters: Mapping[str, float]
    distance: float
    qq: tuple[tuple[float, float, float], ...]

    @property
    def worst_quantile(self) -> float:
        """The largest ratio, either way, between a fitted and a measured quantile of `qq`."""
        ratios = [fitted / measured for _, measured, fitted in self.qq if measured > 0 and fitted > 0]
        return max((max(ratio, 1 / ratio) for ratio in ratios), default=1.0)


def fits(values: ArrayLike) -> list[Fit]:
    """Fit each family to positive costs; the closest first.

    More than 20,000 values are thinned to evenly spaced ranks. None is used for replay, which resamples;
    they describe, and extrapolate a what-if. Raises UsageError for costs that are not positive.

    >>> import numpy as np
    >>> fits(np.random.default_rng(1).lognormal(8, 0.5, 5000))[0].family
    'lognorm'
    """
    import scipy.stats

    ordered = Empirical.of(values).ordered
    if ordered[0] <= 0:
        raise UsageError("only positive costs have a fit: leave out those of 0")
    if len(ordered) > 20_000:
        ordered = ordered[np.linspace(0, len(ordered) - 1, 20_000).round().astype(np.int64)]
    unit = float(np.median(ordered))
    found = []
    for name in _FAMILIES:
        family = getattr(scipy.stats, name)
        shape, _, scale = family.fit(ordered / unit, floc=0)
        frozen = family(shape, 0, scale * unit)
        distance = float(scipy.stats.ks_1samp(ordered, frozen.cdf).statistic)
        qq = tuple(
            (q, float(np.quantile(ordered, q, method="inverted_cdf")), float(frozen.ppf(q)))
            for q in _QQ
            if min(q, 1 - q) * len(ordered) >= 5
        )
        found.append(Fit(name, {"shape": float(shape), "scale": float(scale) * unit}, distance, qq))
    return sorted(found, key=lambda fit: fit.distance)
