"""How long pages stay away before they are used again, when the trace ends too early for some.

A page taken away and not used again by the end is *censored*: its gap is longer than what was seen, not
infinite. A page used whose taking was not seen had an *unknown state* at the start and has no gap at all.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tracekit.replay.uncertainty.answers import Statistical

__all__ = ["Gaps", "gaps_of", "returned_within"]


@dataclass(frozen=True)
class Gaps:
    """Gaps in ns: `observed` ended with a use, `censored` were cut by the end of the trace.

    `unknown` counts first uses of pages whose state at the start is not known (mapped or taken before the
    recording); they are neither of the two.
    """

    observed: NDArray[np.float64]
    censored: NDArray[np.float64]
    unknown: int


def gaps_of(page: ArrayLike, ts_ns: ArrayLike, taken: ArrayLike, end_ns: int) -> Gaps:
    """Pair each taking of a page with its next use.

    One entry per event, in any order: the page, the time, and whether it was taken away (unmap, discard,
    swap-out) or used (fault). A second taking of a page that is away changes nothing. `end_ns` is when the
    recording stopped.

    >>> found = gaps_of([1, 1, 2, 3], [10, 25, 20, 30], [True, False, True, False], end_ns=100)
    >>> found.observed, found.censored, found.unknown
    (array([15.]), array([80.]), 1)
    """
    pages, times, away = np.asarray(page), np.asarray(ts_ns).astype(np.int64), np.asarray(taken, bool)
    order = np.lexsort((times, pages))
    pages, times, away = pages[order], times[order], away[order]
    first = np.ones(len(pages), bool)
    first[1:] = pages[1:] != pages[:-1]
    leaves = away.copy()  # the takings that find the page present: not right after another taking
    leaves[1:] &= ~(away[:-1] & ~first[1:])
    pages, times, away, first = (x[leaves | ~away] for x in (pages, times, away, first))
    last = np.ones(len(pages), bool)
    last[:-1] = pages[1:] != pages[:-1]
    ended = np.flatnonzero(away & ~last)
    open_ = np.flatnonzero(away & last)
    return Gaps(
        observed=(times[ended + 1] - times[ended]).astype(np.float64),
        censored=(end_ns - times[open_]).astype(np.float64),
        unknown=int(np.count_nonzero(first & ~away)),
    )


def returned_within(
    gaps: Gaps, within_ns: ArrayLike, *, level: float = 0.95
) -> list[tuple[float, Statistical]]:
    """Return for each time the probability that a page taken away is used again within it.

    Kaplan-Meier (scipy.stats.ecdf), log-log confidence intervals after Greenwood. Assumes that when the
    trace ends has nothing to do with the gaps, and that gaps are independent: gaps of neighbours aren't,
    so the interval is the narrowest honest one. Past the longest gap observed the curve says nothing: the
    probability is then the last known one, from there up to 1.

    >>> import numpy as np
    >>> some = Gaps(np.array([10.0, 20.0, 30.0]), np.array([15.0]), unknown=0)
    >>> [round(p, 3) for p, _ in returned_within(some, [10, 20])]
    [0.25, 0.625]
    """
    from scipy.stats import CensoredData, ecdf

    asked = np.atleast_1d(np.asarray(within_ns, np.float64))
    units = len(gaps.observed) + len(gaps.censored)
    if not len(gaps.observed):
        note = "no page came back" if units else "no page was taken away"
        return [(0.0, Statistical(None, None, level, units, note))] * len(asked)
    curve = ecdf(CensoredData(uncensored=gaps.observed, right=gaps.censored)).cdf
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # undefined where the curve is 0 or 1: said below
        ends: Any = curve.confidence_interval(level, method="log-log")
    # Where the formula has no lower end (all came back), that of shorter times still holds.
    lows = np.maximum.accumulate(np.nan_to_num(ends.low.probabilities, nan=0.0))
    highs = np.nan_to_num(ends.high.probabilities, nan=1.0)
    none_yet = 1 - ((1 - level) / 2) ** (1 / units)  # Clopper-Pearson for 0 of all
    known_until = max(float(gaps.observed.max()), float(gaps.censored.max(initial=0.0)))
    answers = []
    for within in asked:
        at = int(np.searchsorted(curve.quantiles, within, side="right")) - 1
        value = float(curve.probabilities[at]) if at >= 0 else 0.0
        low, high = (float(lows[at]), float(highs[at])) if value > 0 else (0.0, none_yet)
        note = ""
        if within > known_until and value < 1:
            high, note = 1.0, f"no gap could be watched for longer than {known_until:.4g} ns"
        answers.append((value, Statistical(min(low, value), max(high, value), level, units, note)))
    return answers
