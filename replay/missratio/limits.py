"""What a memory limit costs, between the best and a poor way to choose what to evict."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from tracekit.replay.missratio.belady import Belady
from tracekit.replay.missratio.curve import MissRatioCurve, as_capacities
from tracekit.replay.missratio.policies import Fifo
from tracekit.replay.missratio.references import FORGET, as_references
from tracekit.replay.missratio.stackdistance import StackDistances

__all__ = ["limit_curve"]


def limit_curve(pages: ArrayLike, capacity_pages: ArrayLike, ops: ArrayLike | None = None) -> MissRatioCurve:
    """Return the miss ratio under each limit (1 page or more): LRU, from Belady's optimum to FIFO.

    One pass gives LRU at all limits; each limit takes one more pass for either end. `low` holds for every
    policy; `high` is what FIFO does (LRU if that is worse), which no theorem makes the worst.

    >>> limit_curve([1, 2, 3, 1, 2, 3], [1, 2, 3]).frame().to_numpy()[:, 1:4].astype(float).round(2)
    array([[1.  , 1.  , 1.  ],
           [1.  , 0.67, 1.  ],
           [0.5 , 0.5 , 0.5 ]])
    """
    page, op, top = as_references(pages, ops, allowed=FORGET)
    sizes = as_capacities(capacity_pages)
    lru = StackDistances(top).feed(page, op).curve(sizes)
    total = max(lru.references, 1)
    best = np.array([Belady(int(c), top).feed(page, op).misses for c in sizes]) / total
    poor = np.array([Fifo(int(c), top).feed(page, op).misses for c in sizes]) / total
    return MissRatioCurve(
        sizes,
        lru.miss_ratio,
        np.asarray(best, np.float64),
        np.maximum(poor, lru.miss_ratio),
        lru.references,
        lru.cold,
        "bounded",
        "policy",
    )
