"""How far a guest's clock is from its host's, from what both saw of the same pages, as an interval.

The offset is what to add to a guest time to get the host's. Nothing is assumed about the clocks but
that they run alike (a constant drift is found). Four facts about a page bound it:

- *touched only while allocated*: between a page_free and the next page_alloc that does not zero, no
  first touch (ept_violation) of the page can fall. A touch lands right after its allocation, so this
  bounds the offset from above, tightly.
- *zeroed as it is allocated*: such a page is touched before its page_alloc, but not before its thread's
  last page_alloc or page_free, nor, in a guest_fault of the thread, before that fault began.
- *zeroed means touched*: when page_alloc reports a zeroed page, its first touch is over. Tight from
  below, because the zeroing itself is most often that touch.
- *reported only while free*: a free_page_report of the page falls outside its allocated times.

Each rules out an interval of offsets. The estimate is where the fewest are ruled out, near the peak of
(touch - allocation) over all pages; a few wrong pairs (events lost, pages swapped) do not move it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any, Final

import numpy as np

from tracekit.errors import FailedError

__all__ = ["ContradictedError", "Offset", "PageEvents", "Touches", "estimate_offset", "find"]

_PEAK_NS: Final = (1_000_000, 10_000_000, 100_000_000)
_DRIFT_WINDOWS_NS: Final = (1_000_000, 200_000, 50_000, 10_000)
_SEARCH_NS: Final = 1_000_000_000
_REACH: Final = 20
_LEAST_PAIRS: Final = 30
_SEGMENTS: Final = 16
_MOST_WRONG: Final = 0.15
_SLACK: Final = 0.002
"""Share of the pairs by which an offset inside the interval may be less consistent than the best."""


_Ruled = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Open intervals (low, high) of offsets that cannot be, each with the guest time it tells of."""


@dataclass(frozen=True)
class Touches:
    """First touches seen by the host, one per page: sorted gfn; start and end of the fault in host ns."""

    gfn: np.ndarray
    start: np.ndarray
    end: np.ndarray


@dataclass(frozen=True)
class PageEvents:
    """Allocations and frees seen by the guest, a row per 4 KiB page; times in guest ns, masks of bool.

    `began` is a time at which the thread had not begun with it yet, 0 where none is known.
    """

    gfn: np.ndarray
    ts: np.ndarray
    alloc: np.ndarray
    zeroed: np.ndarray
    began: np.ndarray
    start_ns: int
    stop_ns: int


class ContradictedError(FailedError):
    """The pages tell, and against each other: the two traces are hardly of one guest."""


@dataclass(frozen=True)
class Offset:
    """host time = guest time + `offset_ns` + `drift_ppm` * 1e-6 * (guest time - `at_ns`).

    The offset is inside [`low_ns`, `high_ns`] for all but `contradicting` of `pairs` pairs; with drift
    the interval covers the residuals of the line too. `given` = told by the user, not estimated;
    bounds are then None unless told as well.
    """

    offset_ns: int
    low_ns: int | None
    high_ns: int | None
    drift_ppm: float = 0.0
    at_ns: int = 0
    pairs: int = 0
    contradicting: int = 0
    given: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dict, as it stands in meta.json under `merge`."""
        return asdict(self)

    def to_host(self, ts: np.ndarray) -> np.ndarray:
        """Return host times (uint64) of guest times; FailedError when one would be below zero."""
        moved = ts.astype(np.int64) + self.offset_ns + _shift(ts, self.drift_ppm * 1e-6, self.at_ns)
        if len(moved) and int(moved.min()) < 0:
            raise FailedError("the offset puts guest events before the start of the host's clock")
        unsigned: np.ndarray = moved.astype(np.uint64)
        return unsigned


def estimate_offset(
    touches: Touches,
    pages: PageEvents,
    reports: tuple[np.ndarray, np.ndarray] | None = None,
    *,
    within_ns: int | None = None,
) -> Offset:
    """Estimate the offset; `reports` are (gfn, host ns) of free page reports.

    `within_ns`: where the offset is known to be no further from 0, touches further from an allocation are
    not of it. Raises FailedError when the two traces do not show enough of the same pages.
    """
    order = np.lexsort((pages.ts, pages.gfn))
    ts = pages.ts[order].astype(np.int64)
    rows = replace(pages, gfn=pages.gfn[order], ts=ts, alloc=pages.alloc[order], zeroed=pages.zeroed[order])
    rows = replace(rows, began=pages.began[order].astype(np.int64))
    at, known = find(touches.gfn, rows.gfn)
    if not known.any():
        raise _cannot("no page is in both traces")
    starts, ends = touches.start.astype(np.int64)[at], touches.end.astype(np.int64)[at]
    origin = (pages.start_ns + pages.stop_ns) // 2
    pairs = known & rows.alloc
    if within_ns is not None:
        pairs &= np.abs(starts - ts) <= within_ns + _PEAK_NS[0]
    drift, spread = _drift((starts - ts)[pairs], ts[pairs], origin)
    ruled_out = [
        _touched_before_taken(rows, known, starts),
        _touched_after_zeroing(rows, known, ends),
        _touched_after_freed(rows, known, starts),
    ]
    if reports is not None:
        ruled_out.append(_reported_while_in_use(rows, reports))
    low, high, when = (np.concatenate(column) for column in zip(*ruled_out, strict=True))
    steady = _fit(low, high, _peak((starts - ts)[pairs]), origin)
    if not drift:
        return _agreeing(steady, ruled_out[:2])
    shift = _shift(when, drift, origin)
    peak = _peak((starts - ts)[pairs] - _shift(ts[pairs], drift, origin))
    drifting = _fit(low - shift, high - shift, peak, origin)
    if steady.contradicting <= drifting.contradicting + _SLACK * drifting.pairs:
        return _agreeing(steady, ruled_out[:2])
    margin = int(spread * (pages.stop_ns - pages.start_ns) / 2)
    low_ns, high_ns = (drifting.low_ns or 0) - margin, (drifting.high_ns or 0) + margin
    drift_ppm = round(drift * 1e6, 4)
    found = replace(drifting, drift_ppm=drift_ppm, low_ns=low_ns, high_ns=high_ns)
    return _agreeing(found, ruled_out[:2])


def find(sorted_keys: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (where each wanted key is among the sorted ones, whether it is there at all).

    >>> at, known = find(np.array([2, 5, 9]), np.array([9, 3]))
    >>> at[known].tolist(), known.tolist()
    ([2], [True, False])
    """
    if not len(sorted_keys):
        return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), bool)
    at = np.minimum(np.searchsorted(sorted_keys, wanted), len(sorted_keys) - 1)
    found: np.ndarray = sorted_keys[at] == wanted
    return at, found


def _shift(ts: np.ndarray, drift: float, origin: int) -> np.ndarray:
    shift: np.ndarray = np.rint((ts.astype(np.int64) - origin) * drift).astype(np.int64)
    return shift


def _peak(differences: np.ndarray) -> tuple[int, int]:
    """Return where touch - allocation is densest, and how far from there the offset may be.

    True pairs gather there, others are spread. The sharper they gather the nearer the offset must be: far
    from there fewer pairs may contradict it only because the traces no longer overlap.
    """
    if len(differences) < _LEAST_PAIRS:
        raise _cannot(f"only {len(differences)} pages are in both traces")
    for window in _PEAK_NS:
        place, count, rival = _densest(np.sort(differences), window)
        if count >= _LEAST_PAIRS and count >= 3 * rival:
            return place, min(_REACH * window, _SEARCH_NS)
    raise _cannot(f"no offset stands out ({count} pairs agree on one, {rival} on another)")


def _densest(sorted_: np.ndarray, window: int) -> tuple[int, int, int]:
    """Return (where a window holds most, how many, how many the best one elsewhere holds)."""
    counts = np.searchsorted(sorted_, sorted_ + window, side="right") - np.arange(len(sorted_))
    best = int(np.argmax(counts))
    elsewhere = np.abs(sorted_ - sorted_[best]) > 10 * window
    return int(sorted_[best]), int(counts[best]), int(counts[elsewhere].max()) if elsewhere.any() else 0


def _drift(differences: np.ndarray, when: np.ndarray, origin: int) -> tuple[float, float]:
    """Return how fast the densest difference moves (ns per ns), and how far off that may be; 0 if unknown.

    Each round looks at the pairs straightened by the slope so far, through a narrower window.
    """
    from scipy.stats import theilslopes

    drift = spread = 0.0
    edges = np.quantile(when, np.linspace(0, 1, _SEGMENTS + 1)) if len(when) else np.zeros(1)
    for window in _DRIFT_WINDOWS_NS:
        straight = differences - _shift(when, drift, origin)
        middles, places = [], []
        for one, other in pairwise(edges.tolist()):
            inside = straight[(when >= one) & (when <= other)]
            if len(inside) >= _LEAST_PAIRS:
                middles.append((one + other) / 2 - origin)
                places.append(_densest(np.sort(inside), window)[0])
        if len(places) < _SEGMENTS // 2:
            return 0.0, 0.0
        line = theilslopes(np.array(places, float) - places[0], np.array(middles))
        drift += float(line.slope)
        spread = float(line.high_slope - line.low_slope) / 2
    return drift, spread


def _touched_before_taken(rows: PageEvents, known: np.ndarray, starts: np.ndarray) -> _Ruled:
    """A first touch is not between a free (or the start) and the next allocation."""
    first = np.concatenate([[True], rows.gfn[1:] != rows.gfn[:-1]])
    before = np.where(first, rows.start_ns, np.concatenate([[0], rows.ts[:-1]]))
    was_free = first | ~np.concatenate([[False], rows.alloc[:-1]])
    # A page that is zeroed is touched before its page_alloc event, but not before its thread began with it.
    until = np.where(rows.zeroed, rows.began, rows.ts)
    taken = known & rows.alloc & (until > before) & was_free
    return (starts - until)[taken], (starts - before)[taken], rows.ts[taken]


def _touched_after_freed(rows: PageEvents, known: np.ndarray, starts: np.ndarray) -> _Ruled:
    """A first touch is not after the last free."""
    last = np.concatenate([rows.gfn[1:] != rows.gfn[:-1], [True]])
    left = known & ~rows.alloc & last
    return starts[left] - rows.stop_ns, (starts - rows.ts)[left], rows.ts[left]


def _touched_after_zeroing(rows: PageEvents, known: np.ndarray, ends: np.ndarray) -> _Ruled:
    """The first touch of a page is over when its zeroed page_alloc comes."""
    zeroed = known & rows.alloc & rows.zeroed
    high = (ends - rows.ts)[zeroed]
    return high - 4 * _SEARCH_NS, high, rows.ts[zeroed]


def _reported_while_in_use(rows: PageEvents, reports: tuple[np.ndarray, np.ndarray]) -> _Ruled:
    """A free page report is not between an allocation and the free that ends it."""
    used = np.flatnonzero(rows.alloc[:-1] & ~rows.alloc[1:] & (rows.gfn[:-1] == rows.gfn[1:]))
    order = np.argsort(reports[0], kind="stable")
    gfn, when = reports[0][order], reports[1][order].astype(np.int64)
    left = np.searchsorted(gfn, rows.gfn[used], side="left")
    count = np.searchsorted(gfn, rows.gfn[used], side="right") - left
    each = np.repeat(used, count)
    at = np.repeat(left, count) + np.arange(len(each)) - np.repeat(np.cumsum(count) - count, count)
    return when[at] - rows.ts[each + 1], when[at] - rows.ts[each], rows.ts[each]


def _fit(low: np.ndarray, high: np.ndarray, peak: tuple[int, int], origin: int) -> Offset:
    left, right = peak[0] - peak[1], peak[0] + peak[1]
    near = (high > left) & (low < right) & (high > low)
    box = _least_ruled_out(low[near], high[near], left, right)
    if box is None:
        raise _cannot("nothing bounds the offset on both sides")
    middle = (box[0] + box[1]) // 2
    return Offset(middle, box[0], box[1], at_ns=origin, pairs=int(near.sum()), contradicting=box[2])


def _agreeing(found: Offset, allocated: list[_Ruled]) -> Offset:
    """Return the offset if nearly all allocations allow it: else what they say of zeroing does not hold."""
    low, high, when = (np.concatenate(column) for column in zip(*allocated, strict=True))
    at = found.offset_ns + _shift(when, found.drift_ppm * 1e-6, found.at_ns)
    wrong = int(np.count_nonzero((low < at) & (at < high)))
    if wrong > _MOST_WRONG * len(low):
        raise _cannot(f"{wrong:,} of {len(low):,} allocations contradict the others", ContradictedError)
    return found


def _least_ruled_out(low: np.ndarray, high: np.ndarray, left: int, right: int) -> tuple[int, int, int] | None:
    """Return (low, high, contradicting) of the offsets between two that the fewest intervals rule out."""
    edges = np.concatenate([low, high])
    steps = np.concatenate([np.ones(len(low), np.int64), -np.ones(len(high), np.int64)])
    order = np.argsort(edges, kind="stable")
    edges, ruled_out = edges[order], np.cumsum(steps[order])
    # Between edges[i] and edges[i + 1] there are ruled_out[i] contradictions.
    pieces = np.flatnonzero(edges[:-1] < edges[1:])
    start, end, count = edges[pieces], edges[pieces + 1], ruled_out[pieces]
    inside = (start >= left) & (end <= right)
    if not inside.any():
        return None
    fewest = int(count[inside].min())
    best = int(np.argmax(inside & (count == fewest)))
    bad = np.flatnonzero(count > fewest + int(_SLACK * len(low)))
    before, after = bad[bad < best], bad[bad > best]
    # Where nothing in reach ends the best stretch, nothing says how far it goes.
    if not len(before) or not len(after) or start[before[-1] + 1] < left or end[after[0] - 1] > right:
        return None
    return int(start[before[-1] + 1]), int(end[after[0] - 1]), fewest


def _cannot(why: str, kind: type[FailedError] = FailedError) -> FailedError:
    return kind(f"the clocks' offset cannot be estimated: {why}", hint="give it with --offset-ns N")
