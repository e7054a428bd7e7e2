"""SHARDS: the LRU miss-ratio curve from a fixed-rate sample of pages.

Waldspurger, Park, Garthwaite, Ahmad, "Efficient MRC construction with SHARDS", FAST 2015: a page is in the
sample if a hash of its number is below a threshold, so all uses of a sampled page are seen, and a distance
among sampled pages stands for 1/rate times as many pages.

Whether a very hot page is in the sample must not matter. SHARDS_adj credits the difference between the
expected and the real number of sampled references to the first bucket, as hits: the miss ratio is then
sampled *misses* over rate times *all* references, and hot pages hardly miss. Here the rate is not the
nominal one but sampled over all *first touches*, which a bit per page counts exactly: the first touches,
often most of the misses, then have no error at all, and neither has the scale of the distances.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Final, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tracekit.errors import UsageError
from tracekit.replay.jit import compiled, hot
from tracekit.replay.missratio.curve import MissRatioCurve, as_capacities, spread
from tracekit.replay.missratio.references import FORGET, TOUCH, as_references
from tracekit.replay.missratio.stackdistance import StackDistances

__all__ = ["Shards"]

SPACE: Final = 1 << 32
GROUPS: Final = 8
T_95: Final = 2.3646
"""97.5 % quantile of Student's t with GROUPS - 1 degrees of freedom."""
BLOCK: Final = 32
PART: Final = 1 << 20
HOT_SHARE: Final = 0.1

NAMED: Final = 0
TOUCHED: Final = 1
COLD: Final = 2
PICKED: Final = 3
EMPTY: Final = -1
ONE: Final = np.int64(1)  # shifted by 63 it wraps as the words do


@hot
def mixed(page: int, seed: int) -> int:
    """Return a 32-bit hash of a page number (the finaliser of MurmurHash3, Appleby, public domain)."""
    x = (page ^ (page >> 32) ^ seed) & 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & 0xFFFFFFFF
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & 0xFFFFFFFF
    return x ^ (x >> 16)


@hot
def name_of(
    page: int, value: int, keys: NDArray[np.int64], names: NDArray[np.int64], cells: NDArray[np.int64]
) -> int:
    """Return the number of a sampled page within the sample, a new one if it has none yet."""
    at = value & (len(keys) - 1)
    while keys[at] != page:
        if keys[at] == EMPTY:
            keys[at] = page
            names[at] = cells[NAMED]
            cells[NAMED] += 1
            break
        at = (at + 1) & (len(keys) - 1)
    number: int = names[at]
    return number


def count_cold(pages: NDArray[np.int64], ops: NDArray[np.uint8], seen: NDArray[np.int64]) -> int:
    """Return how many touches are first ones (again, after a forget); a bit of `seen` per page."""
    cold = 0
    if len(ops) == 0:
        for i in range(len(pages)):
            page = pages[i]
            word = seen[page >> 6]
            bit = ONE << (page & 63)
            cold += word & bit == 0
            seen[page >> 6] = word | bit
    else:
        for i in range(len(pages)):
            page = pages[i]
            word = seen[page >> 6]
            bit = ONE << (page & 63)
            cold += ops[i] == TOUCH and word & bit == 0
            seen[page >> 6] = word | bit if ops[i] == TOUCH else word & ~bit
    return cold


def pick(
    pages: NDArray[np.int64],
    ops: NDArray[np.uint8],
    threshold: int,
    seed: int,
    keys: NDArray[np.int64],
    names: NDArray[np.int64],
    cells: NDArray[np.int64],
    picked: NDArray[np.int64],
    picked_op: NDArray[np.uint8],
    group: NDArray[np.uint8],
) -> int:
    """Copy the references of sampled pages, by their number in the sample, until `keys` is half full.

    Returns how many references were looked at; cells[PICKED] is how many were copied.
    """
    found = 0
    done = 0
    while done < len(pages) and 2 * (cells[NAMED] + BLOCK) <= len(keys):
        begin = done
        done = min(begin + BLOCK, len(pages))
        block = pages[begin:done]
        least = threshold
        for k in range(len(block)):  # vector code hashes many at once; most blocks hold no sampled page
            least = min(least, mixed(block[k], seed))
        if least == threshold:
            continue
        for k in range(len(block)):
            value = mixed(block[k], seed)
            if value < threshold:
                picked[found] = name_of(block[k], value, keys, names, cells)
                if len(ops) > 0:
                    picked_op[found] = ops[begin + k]
                group[found] = value % GROUPS
                found += 1
    cells[PICKED] = found
    return done


def enlarge(
    keys: NDArray[np.int64],
    names: NDArray[np.int64],
    seed: int,
    new_keys: NDArray[np.int64],
    new_names: NDArray[np.int64],
) -> None:
    """Put all pages of one table into a larger one."""
    for k in range(len(keys)):
        if keys[k] != EMPTY:
            at = mixed(keys[k], seed) & (len(new_keys) - 1)
            while new_keys[at] != EMPTY:
                at = (at + 1) & (len(new_keys) - 1)
            new_keys[at] = keys[k]
            new_names[at] = names[k]


@cache
def _kernels() -> tuple[Callable[..., int], Callable[..., int], Callable[..., None]]:
    return compiled(count_cold), compiled(pick), compiled(enlarge)


class Shards:
    """Estimates the LRU miss-ratio curve from about `rate` of the pages, batch by batch.

    The band is a 95 % interval from 8 random groups of the sample: each group alone gives a curve at an
    eighth of the rate, whose spread, shrunk by sqrt(8), is the error of the whole sample; and a distance of
    d pages is only known to about sqrt(d / rate) pages, by which the band is widened sideways.

    >>> import numpy as np
    >>> from tracekit.replay.missratio import Shards
    >>> loop = np.tile(np.arange(50_000), 4)  # misses always below 50,000 pages, once above
    >>> curve = Shards(rate=0.05, seed=3).feed(loop).curve([40_000, 60_000])
    >>> curve.miss_ratio.round(2)
    array([1.  , 0.25])
    """

    def __init__(self, *, rate: float = 0.01, seed: int = 0, pages: int = 0) -> None:
        """Start empty; 0 < `rate` <= 1; `pages`: room for so many pages, grows."""
        self._threshold = round(rate * SPACE)
        if not 0 < self._threshold <= SPACE:
            raise UsageError(
                f"a sampling rate of {rate}", hint="give a rate above 0 and up to 1, such as 0.01"
            )
        self.rate = self._threshold / SPACE
        self._seed = seed & (SPACE - 1)
        self._keys = np.full(1 << 12, EMPTY, np.int64)
        self._names = np.empty(1 << 12, np.int64)
        self._seen = np.zeros((pages >> 6) + 1, np.int64)
        self._picked = (np.empty(PART, np.int64), np.empty(PART, np.uint8), np.empty(PART, np.uint8))
        self._cells = np.zeros(4, np.int64)
        self._uses = np.zeros(0, np.int64)
        self._whole = StackDistances()
        self._groups = [StackDistances() for _ in range(GROUPS)]

    def feed(self, pages: ArrayLike, ops: ArrayLike | None = None) -> Self:
        """Take the next references (touches and forgets)."""
        page, op, top = as_references(pages, ops, allowed=FORGET)
        words = (top >> 6) + 1
        if words > len(self._seen):
            more = max(words, min(2 * len(self._seen), words + (1 << 16))) - len(self._seen)
            self._seen = np.concatenate([self._seen, np.zeros(more, np.int64)])
        self._cells[COLD] += _kernels()[0](page, op, self._seen)
        begin = 0
        while begin < len(page):
            part = slice(begin, begin + PART)
            begin += self._feed(page[part], op[part])
        return self

    def _feed(self, page: NDArray[np.int64], op: NDArray[np.uint8]) -> int:
        picked, picked_op, group = self._picked
        table = (self._keys, self._names, self._cells)
        done = _kernels()[1](page, op, self._threshold, self._seed, *table, picked, picked_op, group)
        if done < len(page):
            self._enlarge()
        found = int(self._cells[PICKED])
        picked, picked_op, group = picked[:found], picked_op[: found if len(op) else 0], group[:found]
        self._cells[TOUCHED] += done - int(np.count_nonzero(op[:done]))
        self._whole.feed(picked, picked_op)
        for number, distances in enumerate(self._groups):
            own = group == number
            distances.feed(picked[own], picked_op[own[: len(picked_op)]])
        uses = np.bincount(picked[picked_op == TOUCH] if len(op) else picked, minlength=len(self._uses))
        uses[: len(self._uses)] += self._uses
        self._uses = uses
        return done

    def _enlarge(self) -> None:
        keys = np.full(4 * len(self._keys), EMPTY, np.int64)
        names = np.empty(len(keys), np.int64)
        _kernels()[2](self._keys, self._names, self._seed, keys, names)
        self._keys, self._names = keys, names

    @property
    def references(self) -> int:
        """Touches so far, sampled or not."""
        return int(self._cells[TOUCHED])

    @property
    def sampled(self) -> int:
        """Touches of sampled pages so far."""
        return int(self._uses.sum())

    @property
    def hottest_share(self) -> float:
        """Share of the sampled touches that fall on a single page."""
        return float(self._uses.max(initial=0) / max(self.sampled, 1))

    def curve(self, capacity_pages: ArrayLike | None = None) -> MissRatioCurve:
        """Return the estimated miss ratio at these sizes (default: about 512 up to the largest distance)."""
        top = round((len(self._whole.histogram) - 1) / self.rate)
        sizes = spread(top) if capacity_pages is None else as_capacities(capacity_pages)
        value = self._estimate(self._whole, sizes)
        sideways = np.sqrt(sizes * (1 - self.rate) / self.rate) + (1 - self.rate) / self.rate
        return MissRatioCurve(
            sizes,
            value,
            np.minimum(self._end(sizes + sideways, -1), value),
            np.maximum(self._end(sizes - sideways, +1), value),
            self.references,
            int(self._cells[COLD]),
            "measured",
            "sampling",
            self._notes(),
        )

    def _end(self, sizes: NDArray[Any], sign: int) -> NDArray[np.float64]:
        """Return one end of the band, from the spread of the groups at these sizes."""
        at = np.maximum(sizes, 0)
        each = np.array([self._estimate(group, at) for group in self._groups])
        half = T_95 * each.std(axis=0, ddof=1) / np.sqrt(GROUPS) * np.sqrt(1 - self.rate)
        return np.asarray(np.clip(self._estimate(self._whole, at) + sign * half, 0.0, 1.0))

    def _notes(self) -> tuple[str, ...]:
        notes = []
        if self.hottest_share > HOT_SHARE:
            notes.append(
                f"one page holds {self.hottest_share:.0%} of the sampled references: "
                f"nothing is known below {1 / self.rate:.0f} pages"
            )
        expected = self.rate * self.references
        if expected and abs(self.sampled / expected - 1) > HOT_SHARE:
            notes.append(
                f"{self.sampled} references were sampled where {expected:.0f} were expected: "
                "the difference counts as hits (SHARDS_adj)"
            )
        return tuple(notes)

    def _estimate(self, sample: StackDistances, sizes: NDArray[Any]) -> NDArray[np.float64]:
        """Return cold misses as counted plus the sample's others, scaled and interpolated."""
        counts = sample.histogram
        cold = int(self._cells[COLD])
        rate = counts[0] / max(cold, 1)
        if not rate:
            return np.ones(len(sizes))
        # The k-th sampled page from the top is, in the mean, the ((k - 1) / rate + 1)-th of all pages.
        distance = (np.arange(len(counts)) - 1) / rate + 1
        distance[0] = 0
        refaults = counts.sum() - np.cumsum(counts)
        ratio = (cold + np.interp(sizes, distance, refaults) / rate) / max(self.references, 1)
        return np.where(np.asarray(sizes) < 1, 1.0, np.minimum(ratio, 1.0))
