"""How long pages stay unused: every "act after a delay" policy, and the working set, from one sort.

A policy that takes a page away once it was idle for D pays a refault if the page's gap, from becoming idle
to its next use, is longer than D, and saves the rest of the gap. So the gaps, sorted once, answer every D
exactly. Gaps that the end of the trace cut are kept apart: what they saved until then is known, whether
they refault is not (`tracekit.replay.uncertainty.returned_within` estimates that).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Final, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tracekit.errors import UsageError
from tracekit.replay.jit import compiled, prefetch
from tracekit.replay.missratio.references import as_references

if TYPE_CHECKING:
    import polars as pl

__all__ = ["ENDS", "STARTS", "USE", "DelayAnswers", "IdleGaps", "SortedGaps"]

ENDS: Final = 1
"""The page was used, and when it becomes idle is told by other events (a fault after a free)."""
STARTS: Final = 2
"""The page became idle (freed, hinted, unmapped); of several in a row the first counts."""
USE: Final = ENDS | STARTS
"""The page was used, and is idle from then on (an access)."""

UNSEEN: Final = -2
BUSY: Final = -1
SPLIT: Final = 30
AHEAD: Final = 48
"""Events whose look-ups are called into the cache ahead of time."""


def collect(
    pages: NDArray[np.int64],
    ts_ns: NDArray[np.int64],
    marks: NDArray[np.uint8],
    since: NDArray[np.int64],
    gaps: NDArray[np.int64],
    cells: NDArray[np.int64],
) -> int:
    """Write the gaps that end in this batch; return how many. cells[0] counts uses of unseen pages."""
    found = 0
    for i in range(len(pages)):
        prefetch(since, pages[min(i + AHEAD, len(pages) - 1)])
        page = pages[i]
        began = since[page]
        mark = USE if len(marks) == 0 else marks[i]
        after = BUSY
        if mark & ENDS:
            if began >= 0:
                gaps[found] = ts_ns[i] - began
                found += 1
            elif began == UNSEEN:
                cells[0] += 1
        elif began >= 0:
            after = began
        if mark & STARTS and after < 0:
            after = ts_ns[i]
        since[page] = after
    return found


@cache
def _kernel() -> Callable[..., int]:
    return compiled(collect)


class IdleGaps:
    """Collects idle gaps batch by batch: 8 bytes for each page and for each gap that ended.

    >>> from tracekit.replay.missratio import IdleGaps
    >>> gaps = IdleGaps().feed([1, 2, 1, 1], [0, 10, 100, 130]).close(end_ns=150)
    >>> gaps.ended, gaps.cut, gaps.unknown
    (array([ 30, 100]), array([ 20, 140]), 2)
    """

    def __init__(self, pages: int = 0) -> None:
        """Start with nothing seen; `pages`: room for so many pages, grows."""
        self._since = np.full(pages, UNSEEN, np.int64)
        self._cells = np.zeros(1, np.int64)
        self._ended: list[NDArray[np.int64]] = []
        self._last_ns = 0

    def feed(self, pages: ArrayLike, ts_ns: ArrayLike, marks: ArrayLike | None = None) -> Self:
        """Take the next events, in time order; `marks` (ENDS, STARTS or USE) defaults to USE for all."""
        page, mark, top = as_references(pages, marks, allowed=USE)
        times = np.ascontiguousarray(ts_ns, np.int64)
        if len(times) != len(page):
            raise UsageError(f"{len(page)} pages but {len(times)} times", hint="pass one time for each page")
        if len(times) and (times[0] < self._last_ns or bool((times[1:] < times[:-1]).any())):
            raise UsageError("events out of time order, or before 0", hint="sort them by time first")
        if top > len(self._since):
            more = max(top, min(2 * len(self._since), top + (1 << 20))) - len(self._since)
            self._since = np.concatenate([self._since, np.full(more, UNSEEN, np.int64)])
        gaps = np.empty(len(page), np.int64)
        found = _kernel()(page, times, mark, self._since, gaps, self._cells)
        self._ended.append(gaps[:found].copy())
        self._last_ns = int(times[-1]) if len(times) else self._last_ns
        return self

    def close(self, end_ns: int) -> SortedGaps:
        """Return all gaps, those cut by the end of the recording apart."""
        if end_ns < self._last_ns:
            raise UsageError(
                "the recording ends before its last event", hint="pass when the recording stopped"
            )
        return SortedGaps(
            ended=np.sort(np.concatenate([np.empty(0, np.int64), *self._ended])),
            cut=np.sort(end_ns - self._since[self._since >= 0]),
            unknown=int(self._cells[0]),
        )


@dataclass(frozen=True)
class DelayAnswers:
    """What acting after each delay would have done: one entry per delay, page x time in page-ns.

    `refaults`: gaps longer than the delay, which end with a refault; `avoided`: the others, left alone;
    `saved_page_ns`: idle time beyond the delay. `cut` and `cut_page_ns`: pages taken away and not used again
    by the end, and what that saved until then; they may refault later.
    """

    delay_ns: NDArray[np.int64]
    refaults: NDArray[np.int64]
    avoided: NDArray[np.int64]
    saved_page_ns: NDArray[np.float64]
    cut: NDArray[np.int64]
    cut_page_ns: NDArray[np.float64]

    def frame(self) -> pl.DataFrame:
        """Return one row per delay."""
        import polars as pl

        return pl.DataFrame(vars(self))


@dataclass(frozen=True)
class SortedGaps:
    """Idle gaps in ns, ascending: `ended` with a use, `cut` by the end of the trace.

    `unknown` counts first uses: how long the page was idle before is not known.
    """

    ended: NDArray[np.int64]
    cut: NDArray[np.int64]
    unknown: int

    def after(self, delay_ns: ArrayLike) -> DelayAnswers:
        """Return what acting after each of these delays would have done; a use at the very moment wins.

        >>> SortedGaps(np.array([30, 100]), np.array([140]), 0).after([0, 50, 100]).frame().rows()
        [(0, 2, 0, 130.0, 1, 140.0), (50, 1, 1, 50.0, 1, 90.0), (100, 0, 2, 0.0, 1, 40.0)]
        """
        delays = np.atleast_1d(np.asarray(delay_ns)).astype(np.int64)
        refaults, saved = beyond(self.ended, delays)
        cut, cut_saved = beyond(self.cut, delays)
        return DelayAnswers(delays, refaults, len(self.ended) - refaults, saved, cut, cut_saved)

    def working_set(self, window_ns: ArrayLike, span_ns: int) -> NDArray[np.float64]:
        """Return Denning's mean working set in pages for each window, if every event was a USE.

        Each use keeps its page in the set for the window or until its next use (Denning, "The working set
        model for program behavior", CACM 11(5), 1968); `span_ns` is the length of the recording.

        >>> SortedGaps(np.array([30, 100]), np.array([20, 140]), 2).working_set([0, 50, 150], span_ns=150)
        array([0.        , 1.        , 1.93333333])
        """
        windows = np.atleast_1d(np.asarray(window_ns)).astype(np.int64)
        total = np.zeros(len(windows))
        for gaps in (self.ended, self.cut):
            _, over = beyond(gaps, windows)
            total += beyond(gaps, np.zeros(1, np.int64))[1][0] - over
        return total / max(span_ns, 1)


def beyond(
    gaps: NDArray[np.int64], delays: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return for each delay how many of the ascending gaps are longer, and by how much in all.

    Sums are exact before they become floats: 2**24 pages idle for an hour are more ns than an int64 holds.

    >>> beyond(np.array([1, 5, 7]), np.array([5, 0]))
    (array([1, 3]), array([ 2., 13.]))
    """
    at = np.searchsorted(gaps, delays, side="right")
    order = np.argsort(at)
    cuts = np.concatenate([at[order], [len(gaps)]])
    high = low = 0
    sums: list[float] = [0.0] * len(delays)
    for k in range(len(order) - 1, -1, -1):  # from the longest delay down, each part of the gaps once
        part = gaps[cuts[k] : cuts[k + 1]]
        high += int((part >> SPLIT).sum())
        low += int((part & ((1 << SPLIT) - 1)).sum())
        where = int(order[k])
        count = len(gaps) - int(at[where])
        sums[where] = float((high << SPLIT) + low - count * int(delays[where]))
    return (len(gaps) - at).astype(np.int64), np.array(sums)
