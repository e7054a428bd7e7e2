"""A batch of events block by block instead of in time order: for replays in which blocks don't meet.

Within a block the order of time stays. A replay whose mechanisms look at nothing but their own block, in an
open loop, comes to the same state either way, for all its sums are of whole numbers; but with the words of
one block in the cache until it is done, and the sorting shared by all replays of a pass. Only the stretches
of stall that were removed are joined over all lanes, so `settle` goes over them once more in order.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tracekit.replay import events as ev
from tracekit.replay.engine import fault_class, run_ahead
from tracekit.replay.events import BLOCK_PAGES, Columns
from tracekit.replay.jit import compiled, int64
from tracekit.replay.pages import World

__all__ = ["IN_ORDER", "Blocks", "block_order", "replay_blocks"]

IN_ORDER: Final = (np.zeros(0, np.int32), np.zeros(0, np.int64))
"""The last two arguments of the event loop over a batch in time order."""

_SHIFT: Final = BLOCK_PAGES.bit_length() - 1


class Blocks(NamedTuple):
    """A batch by block: its columns, and for each row the row of the batch that it was."""

    columns: Columns
    row: NDArray[np.int32]


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
    return Blocks(Columns(*columns), row)


def replay_blocks(
    drive: Callable[..., None], c: Columns, blocks: Blocks, s: World, on: int, own: Any
) -> None:
    """Drive a batch block by block, then join in time order what was saved of its stalls."""
    gains = np.zeros(len(c.t), np.int64)
    drive(blocks.columns, s, on, own, blocks.row, gains)
    _kernel(settle)(c, s, gains)


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
    """Put a column in the order of `row`: written in order, it is quicker than scattering whole rows."""
    for i in range(len(row)):
        ordered[i] = column[row[i]]


def settle(c: Columns, s: World, gains: NDArray[np.int64]) -> None:
    """Book in time order what faults got shorter: `gains` by row."""
    for i in range(len(c.t)):
        bits = int64(c.bits[i])
        if c.op[i] == ev.FAULT and not bits & ev.CONTINUED:
            measured = bits & ev.MEASURED != 0
            latency = int64(c.latency[i]) if measured else s.cost[fault_class(bits, int64(c.level[i]))]
            run_ahead(s, int64(c.lane[i]), int64(c.t[i]), latency, latency - gains[i])


@cache
def _kernel(function: Callable[..., None]) -> Callable[..., None]:
    return compiled(function)
