"""Miss-ratio curves: the result that every method of this package gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tracekit.errors import UsageError

if TYPE_CHECKING:
    import polars as pl

__all__ = ["Band", "Label", "MissRatioCurve", "as_capacities", "mean_absolute_error", "spread"]

Label = Literal["measured", "bounded", "assumed"]
Band = Literal["exact", "sampling", "policy", "identification"]
"""What `low` and `high` mean: the same as the value, a 95 % interval of sampling, other eviction policies, or
everything that is consistent with what was recorded."""


@dataclass(frozen=True)
class MissRatioCurve:
    """Misses per reference at each memory size; sizes ascend.

    `miss_ratio` is NaN where only bounds are known; `high` is NaN where nothing bounds it from above.
    `references` is what a ratio of 1 stands for (for a fault trace: the recorded faults), `cold` how many of
    them no memory could have kept: first uses, and uses after the page was given back.

    >>> curve = MissRatioCurve.exact([1, 2, 4], misses=[4, 3, 3], references=4, cold=3)
    >>> curve.at([0, 3]).miss_ratio
    array([1.  , 0.75])
    """

    capacity_pages: NDArray[np.int64]
    miss_ratio: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    references: int
    cold: int
    label: Label
    band: Band
    notes: tuple[str, ...] = ()

    @classmethod
    def exact(
        cls, capacity_pages: ArrayLike, misses: ArrayLike, references: int, cold: int
    ) -> MissRatioCurve:
        """Return the curve of counted misses: no band."""
        ratio = np.asarray(misses, np.float64) / max(references, 1)
        capacity = np.asarray(capacity_pages, np.int64)
        return cls(capacity, ratio, ratio, ratio, references, cold, "measured", "exact")

    def at(self, capacity_pages: ArrayLike) -> MissRatioCurve:
        """Return the curve at other sizes: that of the next smaller size known, 1 below the smallest."""
        asked = as_capacities(capacity_pages)
        where = np.searchsorted(self.capacity_pages, asked, side="right") - 1

        def step(values: NDArray[np.float64]) -> NDArray[np.float64]:
            return np.where(where >= 0, values[np.maximum(where, 0)] if len(values) else 1.0, 1.0)

        return MissRatioCurve(
            asked,
            step(self.miss_ratio),
            step(self.low),
            step(self.high),
            self.references,
            self.cold,
            self.label,
            self.band,
            self.notes,
        )

    def frame(self) -> pl.DataFrame:
        """Return columns capacity_pages, miss_ratio, low, high (null = not known), label, band."""
        import polars as pl

        values = {"miss_ratio": self.miss_ratio, "low": self.low, "high": self.high}
        return pl.DataFrame({"capacity_pages": self.capacity_pages, **values}).with_columns(
            pl.col(values).fill_nan(None), label=pl.lit(self.label), band=pl.lit(self.band)
        )


def as_capacities(capacity_pages: ArrayLike) -> NDArray[np.int64]:
    """Return memory sizes as an int64 array; raises UsageError for negative ones.

    >>> as_capacities(7)
    array([7])
    """
    sizes = np.atleast_1d(np.asarray(capacity_pages)).astype(np.int64)
    if sizes.size and sizes.min() < 0:
        raise UsageError(f"a memory size of {sizes.min()} pages", hint="give sizes in pages, 0 or more")
    return sizes


def spread(top: int, points: int = 512) -> NDArray[np.int64]:
    """Return about `points` sizes from 0 to `top`, half of them evenly and half logarithmically spaced.

    >>> spread(3)
    array([0, 1, 2, 3])
    """
    half = max(points // 2, 2)
    even = np.linspace(0, top, half)
    ratio = np.geomspace(1, max(top, 1), half)
    return np.unique(np.minimum(np.concatenate([even, ratio]).round().astype(np.int64), top))


def mean_absolute_error(a: MissRatioCurve, b: MissRatioCurve, top: int, points: int = 1000) -> float:
    """Return the mean of |a - b| over evenly spaced sizes up to `top` pages.

    >>> one = MissRatioCurve.exact([0, 10], misses=[4, 2], references=4, cold=2)
    >>> two = MissRatioCurve.exact([0, 10], misses=[4, 3], references=4, cold=2)
    >>> mean_absolute_error(one, two, top=10, points=2)  # 0 at 5 pages, 0.25 at 10
    0.125
    """
    sizes = np.unique(np.linspace(max(top // points, 1), top, points).round().astype(np.int64))
    return float(np.abs(a.at(sizes).miss_ratio - b.at(sizes).miss_ratio).mean())
