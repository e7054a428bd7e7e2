"""Which page comes next: permutations and scattered runs, computed without holding the pages in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Permutation", "scattered_runs"]

Pages = npt.NDArray[np.uint64]

_MULTIPLIERS = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
"""Odd constants of splitmix64 (Steele, Lea, Flood, OOPSLA 2014): odd, so each multiply is a bijection."""


class Permutation:
    """A random-looking permutation of 0..size-1 that needs no table, so it works at any size.

    A bijection of the next power of two, walked until it lands inside (cycle walking: Black and
    Rogaway, CT-RSA 2002). `permutation(indices)` takes and returns uint64 arrays of one shape.

    >>> import numpy as np
    >>> shuffled = Permutation(10, seed=1)(np.arange(10, dtype=np.uint64))
    >>> sorted(shuffled.tolist()) == list(range(10)), shuffled.tolist() != list(range(10))
    (True, True)
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        bits = max(2, (size - 1).bit_length())
        self._mask = np.uint64((1 << bits) - 1)
        self._half = np.uint64((bits + 1) // 2)
        keys = np.random.SeedSequence([seed & (2**64 - 1), size]).generate_state(len(_MULTIPLIERS), np.uint64)
        self._rounds = [(np.uint64(m), k) for m, k in zip(_MULTIPLIERS, keys, strict=True)]

    def __call__(self, indices: npt.NDArray[Any]) -> Pages:
        """Return the values at `indices`."""
        out = self._step(indices.astype(np.uint64))
        outside = np.flatnonzero(out >= self.size)
        while outside.size:
            walked = self._step(out[outside])
            out[outside] = walked
            outside = outside[walked >= self.size]
        return out

    def _step(self, x: Pages) -> Pages:
        for multiplier, key in self._rounds:
            x = ((x + key) * multiplier) & self._mask
            x ^= x >> self._half
        return x


def scattered_runs(
    region_pages: int, pages: int, *, slot_pages: int, mean_run: float, seed: int, block: int
) -> Iterator[Pages]:
    """Yield exactly `pages` distinct offsets in 0..region_pages-1, in runs of neighbours scattered at random.

    The region is cut into slots; slots come in random order, and each gives a run of geometric length (mean
    `mean_run`, at most `slot_pages`). When all slots were visited, what is left of them follows the same way.

    >>> import numpy as np
    >>> runs = list(scattered_runs(1000, 700, slot_pages=16, mean_run=4.0, seed=1, block=128))
    >>> every = np.concatenate(runs)
    >>> every.size, np.unique(every).size, int(every.max()) < 1000
    (700, 700, True)
    """
    slots = -(-region_pages // slot_pages)
    order = Permutation(slots, seed)
    step = max(1, int(block / mean_run))
    stop_odds = 1.0 / max(1.0, mean_run)
    left = pages
    for rest in (False, True):
        for first in range(0, slots, step):
            slot = order(np.arange(first, min(slots, first + step)))
            # One generator per block of slots: the second visit finds the same run lengths again.
            lengths = (
                np.random.default_rng([seed, first]).geometric(stop_odds, slot.size).clip(max=slot_pages)
            )
            starts = slot * np.uint64(slot_pages)
            if rest:
                starts, lengths = starts + lengths.astype(np.uint64), slot_pages - lengths
            ends = np.cumsum(lengths)
            within = np.arange(ends[-1] if ends.size else 0) - np.repeat(ends - lengths, lengths)
            offsets = np.repeat(starts, lengths) + within.astype(np.uint64)
            offsets = offsets[offsets < region_pages][:left]
            left -= offsets.size
            for at in range(0, offsets.size, block):
                yield offsets[at : at + block]
            if left == 0:
                return
