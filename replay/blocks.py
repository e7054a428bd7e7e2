"""A batch of events block by block instead of in time order: for replays in which blocks don't meet.

Within a block the order of time stays. A replay whose mechanisms look at nothing but their own block, in an
open loop, comes to the same state either way, for all its sums are of whole numbers; but with the words of
one block in the cache until it is done, runs of like events behind each other, and the sorting shared by all
replays of a pass. Only the stretches of stall that were removed are joined over all lanes, in the order of
time: `settle` does that after each batch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tracekit.replay import events as ev
from tracekit.replay.accounts import saved_span
from tracekit.replay.events import BLOCK_PAGES, Columns
from tracekit.replay.jit import compiled
from tracekit.replay.pages import World

__all__ = ["IN_ORDER", "Blocks", "block_order", "replay_blocks"]

IN_ORDER: Final = (np.zeros(0, np.int32), np.zeros(0, np.int64))
"""The last two arguments of the event loop over a batch in time order."""

_SHIFT: Final = BLOCK_PAGES.bit_length() - 1


class Blocks(NamedTuple):
    """A batch by block: its columns, for each row which of the batch it was, and room for gains by that."""

    columns: Columns
    row: NDArray[np.int32]
    gains: NDArray[np.int64]


def block_order(c: Columns, blocks: int) -> Blocks | None:
    """Return the batch by block, for pages of so many blocks.

    None if a fault goes over several blocks: what becomes of the others follows from the first.
    """
    if np.any((c.op == ev.FAULT) & (c.bits & ev.CONTINUED != 0)):
        return None
    row = np.empty(len(c.t), np.int32)
    _kernel(_sort)(c.page, row, np.zeros(blocks + 3, np.int64))
    columns: Any = [np.empty_like(column) for column in c]
    for column, ordered in zip(c, columns, strict=True):
        _kernel(_gather)(column, row, ordered)
    return Blocks(Columns(*columns), row, np.zeros(len(row), np.int64))


def replay_blocks(
    drive: Callable[..., None], c: Columns, blocks: Blocks, s: World, on: int, own: Any
) -> None:
    """Drive a batch block by block, then join in time order what was saved of its stalls."""
    drive(blocks.columns, s, on, own, blocks.row, blocks.gains)
    _kernel(settle)(c, s, blocks.gains)


def _sort(page: NDArray[np.int64], row: NDArray[np.int32], starts: NDArray[np.int64]) -> None:
    """Sort rows by block, stably, by counting. Those without a page go first."""
    for i in range(len(page)):
        starts[(page[i] >> _SHIFT) + 2] += 1
    for block in range(1, len(starts)):
        starts[block] += starts[block - 1]
    for i in range(len(page)):
        block = (page[i] >> _SHIFT) + 1
        row[starts[block]] = i
        starts[block] += 1


def _gather(column: NDArray[Any], row: NDArray[np.int32], ordered: NDArray[Any]) -> None:
    """Put a column in the order of `row`: quicker than whole rows, for a batch's column is near the core."""
    for i in range(len(row)):
        ordered[i] = column[row[i]]


def settle(c: Columns, s: World, gains: NDArray[np.int64]) -> None:
    """Book in time order the stretches by which faults got shorter (`gains` by row), and clear them."""
    for i in range(len(c.t)):
        gain = gains[i]
        if gain != 0:
            gains[i] = 0
            if gain > 0:
                saved_span(s, c.t[i] - min(gain, c.gap[i]), c.t[i])


@cache
def _kernel(function: Callable[..., None]) -> Callable[..., None]:
    return compiled(function)
