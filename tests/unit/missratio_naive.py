"""Slow and obvious references for the miss-ratio tests, straight from the definitions."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tracekit.replay.missratio import EVICT, FAULT, FORGET

NEVER_AGAIN = 1 << 60
Counts = tuple[int, int]  # misses, cold misses


def lru(pages: Sequence[int], ops: Sequence[int], capacity: int) -> Counts:
    stack: list[int] = []
    seen: set[int] = set()
    misses = cold = 0
    for page, op in zip(pages, ops, strict=True):
        if op == FORGET:
            seen.discard(page)
            if page in stack:
                stack.remove(page)
            continue
        if page in stack:
            stack.remove(page)
        else:
            misses += 1
            cold += page not in seen
            if len(stack) == capacity:
                stack.pop(0)
        stack.append(page)
        seen.add(page)
    return misses, cold


def queue(pages: Sequence[int], ops: Sequence[int], capacity: int, second_chance: bool) -> Counts:
    waiting: OrderedDict[int, bool] = OrderedDict()
    seen: set[int] = set()
    misses = cold = 0
    for page, op in zip(pages, ops, strict=True):
        if op == FORGET:
            seen.discard(page)
            waiting.pop(page, None)
        elif page in waiting:
            waiting[page] = True
        else:
            misses += 1
            cold += page not in seen
            while len(waiting) == capacity:
                first, used = waiting.popitem(last=False)
                if second_chance and used:
                    waiting[first] = False
            waiting[page] = False
            seen.add(page)
    return misses, cold


def fifo(pages: Sequence[int], ops: Sequence[int], capacity: int) -> Counts:
    return queue(pages, ops, capacity, second_chance=False)


def clock(pages: Sequence[int], ops: Sequence[int], capacity: int) -> Counts:
    return queue(pages, ops, capacity, second_chance=True)


def belady(pages: Sequence[int], ops: Sequence[int], capacity: int) -> Counts:
    """Look ahead: evict the page whose next use is furthest."""
    next_use = [NEVER_AGAIN] * len(pages)
    where: dict[int, int] = {}
    for i in range(len(pages) - 1, -1, -1):
        if ops[i] == FORGET:
            where[pages[i]] = NEVER_AGAIN
        else:
            next_use[i] = where.get(pages[i], NEVER_AGAIN)
            where[pages[i]] = i
    resident: dict[int, int] = {}
    seen: set[int] = set()
    misses = cold = 0
    for i, (page, op) in enumerate(zip(pages, ops, strict=True)):
        if op == FORGET:
            resident.pop(page, None)
            seen.discard(page)
            continue
        if page not in resident:
            misses += 1
            cold += page not in seen
            if len(resident) == capacity:
                resident.pop(max(resident, key=resident.__getitem__))
        seen.add(page)
        resident[page] = next_use[i]
    return misses, cold


def fault_trace(
    pages: Sequence[int],
    ops: Sequence[int],
    capacity: int,
    policy: str,
    *,
    ahead: int = 0,
    evict_first: bool = False,
    seed: int = 0,
) -> tuple[list[int], list[int]]:
    """Run a host and keep only what a probe sees: faults, evictions and pages given back.

    `ahead`: frames that the host keeps free, evicting in batches before they are needed (as kswapd does).
    Random eviction does not know pages that are given back.
    """
    choose = random.Random(seed)
    resident: OrderedDict[int, bool] = OrderedDict()
    order: list[int] = []  # the resident pages, for a fast choice at random
    out: list[tuple[int, int]] = []

    def evict_one() -> None:
        if policy == "random":
            at = choose.randrange(len(order))
            order[at], order[-1] = order[-1], order[at]
            victim = order.pop()
        else:
            victim = next(iter(resident))
            while policy == "clock" and resident[victim]:
                resident[victim] = False
                resident.move_to_end(victim)
                victim = next(iter(resident))
        del resident[victim]
        out.append((victim, EVICT))

    for page, op in zip(pages, ops, strict=True):
        if op == FORGET:
            resident.pop(page, None)
            out.append((page, FORGET))
        elif page in resident:
            resident[page] = True
            if policy == "lru":
                resident.move_to_end(page)
        else:
            full = len(resident) == capacity
            if full and evict_first:
                evict_one()
            out.append((page, FAULT))
            if full and not evict_first:
                evict_one()
            resident[page] = False
            if policy == "random":
                order.append(page)
            if ahead and len(resident) > capacity - 1:
                for _ in range(ahead):
                    evict_one()
    return [page for page, _ in out], [op for _, op in out]


def zipf(n: int, pages: int, alpha: float, seed: int) -> NDArray[np.int64]:
    rng = np.random.default_rng(seed)
    weight = np.cumsum(1 / np.arange(1, pages + 1) ** alpha)
    return rng.permutation(pages)[np.searchsorted(weight / weight[-1], rng.random(n))].astype(np.int64)


def mixed(n: int, pages: int, seed: int) -> NDArray[np.int64]:
    """Sequential runs of 25 pages on average; half start anywhere, half where others did (skewed)."""
    rng = np.random.default_rng(seed)
    length = rng.geometric(1 / 25, n // 20 + 100)
    where = rng.random(len(length))
    start = (np.where(rng.random(len(length)) < 0.5, where**4, where) * pages).astype(np.int64)
    offset = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
    return np.minimum(np.repeat(start, length) + offset, pages - 1)[:n]


def looping(n: int, pages: int, seed: int) -> NDArray[np.int64]:
    """Half a loop over a third of the pages, half anywhere in the rest."""
    rng = np.random.default_rng(seed)
    anywhere = rng.integers(pages // 3, pages, n)
    return np.where(rng.random(n) < 0.5, np.arange(n) % (pages // 3), anywhere).astype(np.int64)


def phases(n: int, pages: int, seed: int) -> NDArray[np.int64]:
    """Skewed use of one quarter of the pages after another."""
    inside = zipf(n, pages // 4, 0.8, seed)
    return inside + np.arange(n) * 8 // n % 4 * (pages // 4)
