"""Quantiles of a stall histogram, as the edges of the cell that holds them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tracekit.replay.accounts import histogram_cells

__all__ = ["moved", "quantile", "values_of"]


def quantile(cells: NDArray[np.int64], q: float) -> tuple[float, float]:
    """Return the least and the greatest whole ns of the cell that holds a quantile; 0, 0 if empty.

    >>> quantile(np.bincount(histogram_cells(np.array([1000, 5000, 5000]))), 0.5)
    (4992.0, 5023.0)
    """
    total = int(cells.sum())
    if not total:
        return 0.0, 0.0
    cell = int(np.searchsorted(np.cumsum(cells), max(1, int(np.ceil(q * total)))))
    if cell == 0:
        return 0.0, 0.0
    low, end = _edge(cell), _edge(cell + 1)
    return low, max(low, float(np.ceil(end)) - 1)


def moved(
    cells: NDArray[np.int64], n: NDArray[np.int64], there: NDArray[np.int64], to: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the histogram with `n[k]` times of `there[k]` ns taken as `to[k]` ns instead."""
    out = cells.copy()
    for k, old, new in zip(
        n.tolist(), histogram_cells(there).tolist(), histogram_cells(to).tolist(), strict=True
    ):
        count = min(k, int(out[old]))
        out[old] -= count
        out[new] += count
    return out


def values_of(cells: NDArray[np.int64], most: int) -> NDArray[np.float64]:
    """Return the values of a histogram (lower edges of their cells) in order, or `most` evenly ranked ones.

    >>> values_of(np.bincount(histogram_cells(np.array([64, 65, 65]))), 1000).tolist()
    [64.0, 65.0, 65.0]
    """
    total = int(cells.sum())
    ranks = np.linspace(0, total - 1, min(total, most)).round()
    octave, part = np.divmod(np.searchsorted(np.cumsum(cells), ranks, side="right") - 1, 128)
    return np.where(octave < 0, 0.0, 2.0**octave * (1 + part / 128))


def _edge(cell: int) -> float:
    octave, part = divmod(cell - 1, 128)
    return float(2.0**octave * (1 + part / 128))
