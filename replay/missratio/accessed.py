"""What samples of the accessed bits say about trimming that did not happen: an interval, not a value.

A scan that finds a page's accessed bit set knows that it was used since the scan before, but not when.
So the gap between two uses found by scans i < j, with nothing between, is known to about a scan period
either way: longer than from the end of period i to the start of period j, shorter than from the start of
i to the end of j; with a period P, ((j - i - 1) P, (j - i + 1) P). A rule of thumb from synthetic
accesses: the refaults are known to some 10 % if the delay asked for is at least ten scan periods.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tracekit.errors import UsageError
from tracekit.replay.jit import compiled
from tracekit.replay.missratio.idle import beyond
from tracekit.replay.missratio.references import as_references

if TYPE_CHECKING:
    import polars as pl

__all__ = ["AccessedAnswers", "accessed_bits"]


@dataclass(frozen=True)
class AccessedAnswers:
    """Bounds on what acting after each delay would have done, page x time in page-ns.

    `refaults_*` and `saved_*` are of gaps that ended with a use; `cut_*` of pages not found used again.
    `coarse`: the delay is less than ten scan periods, so expect a wide interval.
    """

    delay_ns: NDArray[np.int64]
    refaults_low: NDArray[np.int64]
    refaults_high: NDArray[np.int64]
    saved_page_ns_low: NDArray[np.float64]
    saved_page_ns_high: NDArray[np.float64]
    cut_low: NDArray[np.int64]
    cut_high: NDArray[np.int64]
    cut_page_ns_low: NDArray[np.float64]
    cut_page_ns_high: NDArray[np.float64]
    coarse: NDArray[np.bool_]

    def frame(self) -> pl.DataFrame:
        """Return one row per delay."""
        import polars as pl

        return pl.DataFrame(vars(self))


def pair(
    pages: NDArray[np.int64],
    scans: NDArray[np.int64],
    edges: NDArray[np.int64],
    last: NDArray[np.int64],
    low: NDArray[np.int64],
    high: NDArray[np.int64],
    seen: NDArray[np.int64],
) -> int:
    """Write the least and the greatest gap of each pair of finds; return how many pairs."""
    found = 0
    for i in range(len(pages)):
        before = last[pages[i]]
        scan = scans[i]
        if before == scan:
            continue
        seen[scan] += 1
        if before >= 0:
            low[found] = edges[scan] - edges[before + 1]
            high[found] = edges[scan + 1] - edges[before]
            found += 1
        last[pages[i]] = scan
    return found


@cache
def _kernel() -> Callable[..., int]:
    return compiled(pair)


def accessed_bits(
    pages: ArrayLike, scans: ArrayLike, scan_ns: ArrayLike, delay_ns: ArrayLike
) -> AccessedAnswers:
    """Bound what a policy that acts after each delay (> 0) would have done.

    One entry of `pages` and `scans` per page found accessed, scans ascending from 0; `scan_ns`: when the
    bits were first cleared, then when each scan read and cleared them (number of scans + 1, ascending).

    >>> from tracekit.replay.missratio import accessed_bits
    >>> answers = accessed_bits([7, 7], [0, 3], scan_ns=[0, 10, 20, 30, 40], delay_ns=[15, 25, 45])
    >>> answers.refaults_low, answers.refaults_high  # the gap is between 20 and 40
    (array([1, 0, 0]), array([1, 1, 0]))
    """
    page, _, top = as_references(pages)
    scan = np.ascontiguousarray(scans, np.int64)
    edges = np.ascontiguousarray(scan_ns, np.int64)
    delays = np.atleast_1d(np.asarray(delay_ns)).astype(np.int64)
    if len(scan) != len(page):
        raise UsageError(f"{len(page)} pages but {len(scan)} scans", hint="pass one scan for each page")
    if len(edges) < 2 or bool((np.diff(edges) <= 0).any()):
        raise UsageError("scan times must ascend", hint="pass the first clearing and then each scan")
    if len(scan) and (scan[0] < 0 or scan[-1] >= len(edges) - 1 or bool((np.diff(scan) < 0).any())):
        raise UsageError("scans must ascend from 0 to the number of scans - 1", hint="sort by scan first")
    if len(delays) and delays.min() <= 0:
        raise UsageError("a delay must be above 0", hint="the shortest useful one is ten scan periods")
    last = np.full(top, -1, np.int64)
    low, high = np.empty(len(page), np.int64), np.empty(len(page), np.int64)
    seen = np.zeros(len(edges) - 1, np.int64)
    found = _kernel()(page, scan, edges, last, low, high, seen)
    at_end = last[last >= 0]
    # Longer than the lower end for sure, so "longer than the delay" includes being equal to it: delay - 1.
    least, saved_least = beyond(np.sort(low[:found]), delays - 1)
    most, saved_most = beyond(np.sort(high[:found]), delays)
    cut_least, cut_saved_least = beyond(np.sort(edges[-1] - edges[at_end + 1]), delays)
    cut_most, cut_saved_most = beyond(np.sort(edges[-1] - edges[at_end]), delays)
    inside, saved_inside = _inside(edges, seen, delays)
    return AccessedAnswers(
        delays,
        least,
        most + inside,
        saved_least - least,
        saved_most + saved_inside,
        cut_least,
        cut_most,
        cut_saved_least,
        cut_saved_most,
        delays < 10 * np.diff(edges).max(),
    )


def _inside(
    edges: NDArray[np.int64], seen: NDArray[np.int64], delays: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Bound the gaps between uses in one scan period: none is longer than a delay of a period or more."""
    lengths, times = np.unique(np.diff(edges), return_inverse=True)
    finds = np.bincount(times, weights=seen).astype(np.int64)
    count = -(-lengths // delays[:, None]) - 1
    rest = np.maximum(lengths - delays[:, None], 0)
    return (count * finds).sum(axis=1), (rest * finds).sum(axis=1).astype(np.float64)
