"""What more memory would do, from faults and evictions alone.

A fault trace does not see hits, but with the evictions it identifies the miss-ratio curve to the right of
the memory that the guest had: of the pages that are evicted at a fault, those evicted later than the
faulting page would have to fit as well. So the page's position is the resident pages plus its rank among
the pages still evicted, latest first (not the kernel's distance in evictions, mm/workingset.c, which also
counts pages that came back). To the left only the recorded faults are known: less memory has no fewer.
"""

from __future__ import annotations

from typing import Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tracekit.errors import UsageError
from tracekit.replay.missratio.curve import MissRatioCurve, as_capacities, spread
from tracekit.replay.missratio.references import EVICT, TOUCH, as_references
from tracekit.replay.missratio.stackdistance import StackDistances

__all__ = ["POLICY_ERROR", "more_memory"]

EvictionPolicy = Literal["lru", "clock", "random"]

POLICY_ERROR: Final[dict[str, tuple[float, float]]] = {
    "lru": (0.0, 0.0),
    "clock": (-0.12, 0.08),
    "random": (-0.40, 0.20),
}
"""Relative error of the predicted misses if the host evicts like this: an empirical band, not a bound.

The widest of synthetic skewed, looping, mixed and phase-changing accesses at 1.05 to 3 times the memory
(tests/unit/test_missratio_evictions.py repeats it). Steady accesses stay within -1 … +7 % and -16 … +8 %;
it is working sets that move which cost most. "random" is also the answer if the policy is not known.
"""


def more_memory(
    pages: ArrayLike,
    ops: ArrayLike,
    *,
    policy: EvictionPolicy = "random",
    resident_at_start: int | None = None,
    capacity_pages: ArrayLike | None = None,
) -> MissRatioCurve:
    """Predict the faults that stay with more memory, per recorded fault.

    `pages` and `ops` (FAULT, EVICT, FORGET) in time order. Exact if the host evicts in LRU order; for other
    policies `low` and `high` are the empirical band of POLICY_ERROR. Sizes below the frames that were in use
    have no value: there `low` is 1 (the recorded faults stay) and `high` is unknown. `resident_at_start`:
    pages mapped before the recording (from a snapshot); default: those seen evicted before any fault of
    theirs, which misses the pages that were never evicted.

    >>> from tracekit.replay.missratio import EVICT, FAULT
    >>> pages = [1, 2, 3, 1, 1, 2, 2, 3]  # 2 frames under LRU, pages used: 1 2 3 1 2
    >>> ops = [FAULT, FAULT, FAULT, EVICT, FAULT, EVICT, FAULT, EVICT]
    >>> more_memory(pages, ops, policy="lru", capacity_pages=[1, 2, 3]).miss_ratio
    array([nan, 1. , 0.6])
    """
    page, op, top = as_references(pages, ops)
    if len(op) != len(page) or bool((op == TOUCH).any()):
        raise UsageError("a touch among faults", hint="pass FAULT, EVICT or FORGET for each page")
    if policy not in POLICY_ERROR:
        raise UsageError(f"no eviction policy {policy!r}", hint=f"use one of {', '.join(POLICY_ERROR)}")
    if resident_at_start is None:
        resident_at_start = _evicted_first(page, op, top)
    distances = StackDistances(top, resident_at_start=resident_at_start).feed(page, op)
    frames, longest = distances.frames, len(distances.histogram) - 1
    if capacity_pages is None:
        sizes = frames + spread(max(longest - frames, 0))
    else:
        sizes = as_capacities(capacity_pages)
    exact = distances.curve(sizes)
    least = exact.cold / max(exact.references, 1)
    below, above = POLICY_ERROR[policy]
    known = sizes >= frames
    return MissRatioCurve(
        sizes,
        np.where(known, exact.miss_ratio, np.nan),
        np.where(known, np.maximum(exact.miss_ratio / (1 + above), least), 1.0),
        np.where(known, np.minimum(exact.miss_ratio / (1 + below), 1.0), np.nan),
        exact.references,
        exact.cold,
        "assumed",
        "policy",
        (f"assumes that the host evicts like {policy}", *_notes(distances)),
    )


def _evicted_first(page: NDArray[np.int64], op: NDArray[np.uint8], top: int) -> int:
    """Return how many pages were evicted before any other event of theirs."""
    first = np.zeros(top, np.uint8)
    first[page[::-1]] = op[::-1]  # of several values for one page the last is kept: its first event
    return int(np.count_nonzero(first == EVICT))


def _notes(distances: StackDistances) -> tuple[str, ...]:
    odd = distances.contradictions
    if not odd:
        return ()
    return (f"{odd} faults of resident pages or evictions of evicted ones were left out: events are missing",)
