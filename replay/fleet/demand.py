"""Draws hosts: which VMs stand on them, and how far their curves are shifted against each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tracekit.replay.fleet.curves import Grid

__all__ = ["MOST_VMS", "first_overflow"]

MOST_VMS: Final = 100_000
"""Nobody asks for more VMs than this on a host."""

_ROWS: Final = 4096
_VMS: Final = 32


def first_overflow(
    grids: Sequence[Grid],
    room_bytes: float,
    moments: int,
    *,
    together: float,
    rng: np.random.Generator,
    population: NDArray[np.int64] | None = None,
) -> list[NDArray[np.int64]]:
    """Return, for each grid and random moment, how many VMs it takes to need more than `room_bytes`.

    VMs are drawn one after the other (with replacement, from `population`, default: every curve once). Each
    is seen at a time of its own, except that with probability `together` it is seen at the time that all
    such VMs of that moment share. All grids see the same VMs at the same times. One more than MOST_VMS
    stands for "more than MOST_VMS".

    The risk with n VMs is the share of moments with a first overflow of at most n.
    """
    people = np.arange(len(grids[0].starts)) if population is None else population
    counts = [np.full(moments, MOST_VMS + 1, np.int64) for _ in grids]
    # A generator for each chunk: its draws don't depend on how many VMs an earlier one needed.
    for first, chunk in zip(range(0, moments, _ROWS), rng.spawn(-(-moments // _ROWS)), strict=True):
        rows = min(_ROWS, moments - first)
        shared = chunk.random((rows, 1))
        totals = [np.zeros(rows) for _ in grids]
        done = 0
        while done < MOST_VMS and any((total <= room_bytes).any() for total in totals):
            vm = people[chunk.integers(0, len(people), (rows, _VMS))]
            own = chunk.random((rows, _VMS))
            joins = chunk.random((rows, _VMS)) < together if together > 0 else None
            for grid, total, count in zip(grids, totals, counts, strict=True):
                needed = np.cumsum(grid.at(vm, _steps(grid, vm, own, shared, joins)), axis=1)
                needed += total[:, None]
                over = needed > room_bytes
                fresh = (total <= room_bytes) & over[:, -1]
                count[first : first + rows][fresh] = done + 1 + over[fresh].argmax(axis=1)
                total[:] = needed[:, -1]
            done += _VMS
    return counts


def _steps(
    grid: Grid,
    vm: NDArray[np.int64],
    own: NDArray[np.float64],
    shared: NDArray[np.float64],
    joins: NDArray[np.bool_] | None,
) -> NDArray[np.int64]:
    """Return at which step each VM is seen: the shared one for those that join, else one of its own."""
    steps = (own * grid.lengths[vm]).astype(np.int64)
    if joins is None:
        return steps
    return np.where(joins, (shared * int(grid.lengths.max())).astype(np.int64), steps)
