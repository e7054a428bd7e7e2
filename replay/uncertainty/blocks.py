"""Cuts values into pieces that are independent enough to resample: blocks of time, or VMs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tracekit.errors import UsageError

__all__ = ["FEWEST_BLOCKS", "Blocks", "by_group", "by_time", "by_window", "correlation_length"]

FEWEST_BLOCKS: Final = 8
"""Below this many independent pieces no interval is stated."""

LENGTHS_PER_BLOCK: Final = 10.0
"""Blocks are this many correlation lengths long: shorter ones make intervals too narrow."""

_BINS: Final = 4096


@dataclass(frozen=True)
class Blocks:
    """Values and the piece that each belongs to.

    `values`: float64; `block`: int64 of the same length, 0 … count - 1. `block_ns` and `correlation_ns` are
    None for groups; pieces without any value count too (nothing happened there).
    """

    values: NDArray[np.float64]
    block: NDArray[np.int64]
    count: int
    block_ns: float | None = None
    correlation_ns: float | None = None


def by_group(values: ArrayLike, groups: ArrayLike) -> Blocks:
    """Take each group (a VM) as one independent piece.

    >>> by_group([1.0, 2.0, 3.0], ["vm1", "vm2", "vm1"]).count
    2
    """
    names, block = np.unique(np.asarray(groups), return_inverse=True)
    return Blocks(np.asarray(values, np.float64), block.astype(np.int64), len(names))


def by_time(
    values: ArrayLike,
    ts_ns: ArrayLike,
    *,
    span_ns: tuple[int, int] | None = None,
    block_ns: float | None = None,
) -> Blocks:
    """Cut time into equal blocks of at least ten correlation lengths.

    `values` and `ts_ns` have one entry per event, in any order; `span_ns` is the recording's start and stop
    (default: first and last event). The correlation length is that of the sums over 4,096 spans of time, or
    as many as there are events; `block_ns` overrides what follows from it.

    >>> import numpy as np
    >>> rng = np.random.default_rng(3)
    >>> by_time(rng.normal(size=4096), np.arange(4096), span_ns=(0, 4096)).count > 100
    True
    """
    amounts = np.asarray(values, np.float64)
    times = np.asarray(ts_ns)
    if amounts.shape != times.shape or amounts.ndim != 1:
        raise ValueError(f"{amounts.shape} values at {times.shape} times")
    if not len(amounts):
        return Blocks(amounts, np.empty(0, np.int64), 0)
    start, stop = (int(times.min()), int(times.max()) + 1) if span_ns is None else span_ns
    span = stop - start
    if span <= 0 or times.min() < start or times.max() > stop:
        raise UsageError(f"events lie outside the span {start} … {stop} ns")
    offset = (times - times.dtype.type(start)).astype(np.float64)
    bins = min(_BINS, len(amounts))
    sums = np.bincount(_cut(offset, span, bins), weights=amounts, minlength=bins)
    correlation_ns = correlation_length(sums) * span / bins
    if block_ns is None:
        block_ns = LENGTHS_PER_BLOCK * correlation_ns
    count = max(1, int(span // max(block_ns, span / bins)))
    return Blocks(amounts, _cut(offset, span, count), count, span / count, correlation_ns)


def by_window(values: ArrayLike) -> Blocks:
    """Cut a series of one value per window into blocks of ten correlation lengths, whole windows each.

    Blocks differ by one window at most: take the mean, and the total as so many times that.

    >>> by_window(np.random.default_rng(3).normal(size=256)).count > 30
    True
    """
    series = np.asarray(values, np.float64)
    n = len(series)
    correlation = correlation_length(series) if n else 0.5
    count = min(n, max(1, int(n / (LENGTHS_PER_BLOCK * correlation))))
    return Blocks(series, np.arange(n) * count // max(n, 1), count)


def correlation_length(series: ArrayLike) -> float:
    """Return over how many steps an evenly spaced series forgets: the e-folding length, at least 0.5.

    Half the integrated autocorrelation time, summed over lags up to five times itself (Sokal 1997), which
    is 1 / (1 - rho) - 0.5 for an AR(1) process; at least what that makes of rho at a lag of one. Of a short
    series the sum is often far too small by chance, and just then there would be an interval.

    >>> correlation_length([1.0, 1.0, 1.0])
    0.5
    """
    x = np.asarray(series, np.float64)
    x = x - x.mean()
    power = float(x @ x)
    if len(x) < 4 or power <= 1e-24 * max(1.0, float(np.abs(series).max()) ** 2) * len(x):
        return 0.5
    from scipy.fft import irfft, next_fast_len, rfft

    size = next_fast_len(2 * len(x), real=True)
    spectrum = rfft(x, size)
    rho = irfft(spectrum * spectrum.conj(), size)[: len(x)] / power
    time = 2 * np.cumsum(rho) - 1
    lags = np.arange(len(x))
    enough = np.flatnonzero(lags >= 5 * time)
    next_one = min(
        max(float(rho[1]) + 1 / len(x), 0.0), 1 - 1 / len(x)
    )  # the mean was taken off: 1/n too low
    return max(1 / (1 - next_one) - 0.5, float(time[enough[0]] if len(enough) else time[-1]) / 2)


def _cut(offset: NDArray[np.float64], span: float, pieces: int) -> NDArray[np.int64]:
    return np.minimum((offset * (pieces / span)).astype(np.int64), pieces - 1)
