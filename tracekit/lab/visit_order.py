"""The orders in which a guest visits its pages, as plain Python: the reference for its machine code."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

__all__ = ["Mixer", "Order", "order_indices", "random_bits"]

Order = Literal["seq", "random", "stride"]


@dataclass(frozen=True)
class Mixer:
    """A bijection on k-bit numbers: xor-shift, odd multiply, twice; its constants come from a seed.

    A random order is this bijection of a counter, less what lies outside the share: it visits every page once
    and needs no table, whose pages would disturb the count.

    >>> mixer = Mixer.from_seed(7, bits=4)
    >>> sorted(mixer.mix(i) for i in range(16)) == list(range(16))
    True
    """

    bits: int
    shift: int
    multipliers: tuple[int, int]
    offset: int

    @classmethod
    def from_seed(cls, seed: int, *, bits: int) -> Mixer:
        """Return the mixer of a seed."""
        source = random.Random(seed)  # noqa: S311 - a reproducible order, not a secret
        first, second = (source.getrandbits(31) | 1 for _ in range(2))
        return cls(bits, max(1, bits // 2), (first, second), source.getrandbits(bits))

    def mix(self, counter: int) -> int:
        """Return the image of a counter, as the guest computes it."""
        mask = (1 << self.bits) - 1
        value = (counter + self.offset) & mask
        for multiplier in self.multipliers:
            value ^= value >> self.shift
            value = value * multiplier & mask
        return value ^ value >> self.shift


def random_bits(pages: int) -> int:
    """Return k, the bits of the random order's bijection: the least with 2^k >= pages.

    >>> [random_bits(n) for n in (1, 2, 3, 1024, 1025)]
    [1, 1, 2, 10, 11]
    """
    return max(1, (pages - 1).bit_length())


def order_indices(order: Order, pages: int, *, seed: int, stride: int, bits: int) -> Iterator[int]:
    """Yield a share's page indices in the order the guest visits them.

    >>> list(order_indices("stride", 5, seed=0, stride=2, bits=3))
    [0, 2, 4, 1, 3]
    >>> sorted(order_indices("random", 5, seed=1, stride=1, bits=3))
    [0, 1, 2, 3, 4]
    """
    if order == "seq":
        yield from range(pages)
    elif order == "stride":
        for start in range(min(stride, pages)):
            yield from range(start, pages, stride)
    else:
        mixer = Mixer.from_seed(seed, bits=bits)
        yield from (value for value in map(mixer.mix, range(1 << bits)) if value < pages)
