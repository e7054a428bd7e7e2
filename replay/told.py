"""Which memory the guest is told is zero: that of boot, what was hot-added, ranges by number or name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tracekit.errors import UsageError
from tracekit.replay.index import MAX_GFN
from tracekit.replay.timeline import Timeline
from tracekit.trace.schema import PAGE_BYTES

__all__ = ["MEMORY", "told_ranges"]

MEMORY: Final = ("all", "boot", "hot_add")

BOOT_SLOTS_NS: Final = 1_000_000_000
"""A VMM lays out memory in the first second after a VM's first memslot; other addresses are hot-added."""
SWIOTLB_PAGES: Final = (64 << 20) // PAGE_BYTES
FOUR_GIB: Final = (4 << 30) // PAGE_BYTES

Range = tuple[int, int, int]
"""A VM, its first gfn and the one past the end."""


def told_ranges(timeline: Timeline, memory: str, named: str) -> NDArray[np.int64]:
    """Return rows of VM, first gfn, past-the-end gfn; no rows = all of memory.

    `memory`: one of `MEMORY`. `named`: `FIRST-END/…` in gfns (END is not in it), for each VM; `swiotlb` is
    the 64 MiB that Linux clears at boot, taken to be the top of memory below 4 GiB. Empty: no further limit.
    Raises UsageError for ranges that can't be read, and where the trace does not tell what came when.
    """
    if memory == "all" and not named:
        return np.zeros((0, 3), np.int64)
    boot, added = _by_arrival(timeline)
    every = [(vm, 0, MAX_GFN) for vm in range(timeline.vms)]
    allowed: Iterable[Range] = {"all": every, "boot": boot, "hot_add": added}[memory]
    if memory != "all" and not allowed:
        raise UsageError(
            f"this trace tells of no {'hot-added' if memory == 'hot_add' else 'boot'} memory",
            hint="tracekit info TRACE   shows its memslots; zeroing.memory=all",
        )
    if named:
        wanted = [one for word in named.split("/") for one in _named(word.strip(), timeline.vms, boot)]
        allowed = [
            (vm, max(first, low), min(end, high))
            for vm, first, end in allowed
            for other, low, high in wanted
            if other == vm and max(first, low) < min(end, high)
        ]
        # Ranges that no memory is in are told of all the same: nothing is there to be spared.
        allowed = allowed or [(0, 0, 0)]
    return np.array(list(allowed), np.int64).reshape(-1, 3)


def _by_arrival(timeline: Timeline) -> tuple[list[Range], list[Range]]:
    """Return the memory of each VM's boot, and what came later where nothing had been."""
    slots = timeline.trace.memslots
    if not len(slots):
        return [], []
    since = slots.select(
        early=pl.col("from_ns") <= pl.col("from_ns").min().over("vm") + BOOT_SLOTS_NS
    )["early"].fill_null(True)  # fmt: skip
    rows: list[Range] = [tuple(row) for row in timeline.slots.tolist()]
    boot = [row for row, early in zip(rows, since, strict=True) if early]
    added = [row for row, early in zip(rows, since, strict=True) if not early]
    for vm, first, end in boot:
        added = [part for one in added for part in _without(one, vm, first, end)]
    return boot, added


def _without(one: Range, vm: int, first: int, end: int) -> list[Range]:
    mine, low, high = one
    if mine != vm or high <= first or end <= low:
        return [one]
    parts = [(vm, low, min(first, high)), (vm, max(end, low), high)]
    return [part for part in parts if part[1] < part[2]]


def _named(word: str, vms: int, boot: list[Range]) -> list[Range]:
    if word == "swiotlb":
        found = []
        for vm in range(vms):
            low = [(min(end, FOUR_GIB), first) for at, first, end in boot if at == vm and first < FOUR_GIB]
            if low:
                end, first = max(low, key=lambda one: one[0] - one[1])
                found.append((vm, max(end - SWIOTLB_PAGES, first), end))
        if not found:
            raise UsageError("swiotlb lies below 4 GiB, and this trace tells of no memory there")
        return found
    first_text, dash, end_text = word.partition("-")
    try:
        first, end = int(first_text, 0), int(end_text, 0)
    except ValueError:
        first, end = 0, 0
    if not dash or not 0 <= first < end <= MAX_GFN:
        raise UsageError(
            f"zeroing.ranges are FIRST-END in gfns, joined by /, or swiotlb; not {word!r}",
            hint="zeroing,ranges=0x100000-0x140000",
        )
    return [(vm, first, end) for vm in range(vms)]
