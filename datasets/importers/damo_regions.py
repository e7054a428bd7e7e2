"""The regions in a block of damo's raw report, `START-END (SIZE) ACCESSES …`, as columns of numbers."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from tracekit.replay.jit import compiled, hot

__all__ = ["Regions", "is_region", "regions_of"]

Numbers = npt.NDArray[np.uint64]

_NEWLINE, _DASH, _SPACE, _OPEN, _CLOSE = b"\n- ()"
_MOST_BYTES = ((1 << 32) - 2) << 12  # what a row's `pages` can hold


class Regions(NamedTuple):
    """The regions of a block: `number` is each one's line (from 0); `ends` is where each line ends."""

    ends: npt.NDArray[np.int64]
    number: npt.NDArray[np.int64]
    start: Numbers
    end: Numbers
    accesses: Numbers

    def others(self, block: bytes) -> pl.DataFrame:
        """Return the lines that are no regions: number (from 0), text."""
        rest = np.ones(self.ends.size, bool)
        rest[self.number] = False
        numbers = np.flatnonzero(rest)
        begins = np.append(0, self.ends[:-1] + 1)[rest].tolist()
        spans = zip(begins, self.ends[rest].tolist(), strict=True)
        text = [block[begin:end].decode(errors="replace").rstrip("\r") for begin, end in spans]
        return pl.DataFrame({"number": numbers, "text": text}, schema={"number": pl.Int64, "text": pl.String})


def is_region(start: Numbers, end: Numbers) -> npt.NDArray[np.bool_]:
    """Tell which regions end behind their start and have a number of pages that a row can hold."""
    return (start <= end) & (end - start <= np.uint64(_MOST_BYTES))


def regions_of(block: bytes) -> Regions:
    r"""Find the regions of a block of lines.

    >>> # A cached kernel remembers its module's name, so it is called by the name that users import.
    >>> from tracekit.datasets.importers.damo_regions import regions_of
    >>> found = regions_of(b"nr_regions: 1\n1000-a000 (36 KiB)  3  7\n")
    >>> found.number.tolist(), found.start.tolist(), found.end.tolist(), found.accesses.tolist()
    ([1], [4096], [40960], [3])
    """
    data = np.frombuffer(block, np.uint8)
    ends = np.flatnonzero(data == _NEWLINE)
    if not block.endswith(b"\n"):
        ends = np.append(ends, data.size)
    numbers = np.zeros((3, ends.size), np.uint64)
    found = np.zeros(ends.size, np.bool_)
    _read(data, ends, numbers, found)
    found &= is_region(numbers[0], numbers[1])
    return Regions(ends, np.flatnonzero(found), *numbers[:, found])


@hot
def _digit(byte: int, base: int) -> int:
    value = byte - 48 if 48 <= byte <= 57 else byte - 87 if 97 <= byte <= 102 else -1
    return value if value < base else -1


@hot
def _number(data: np.ndarray, at: int, end: int, base: int) -> tuple[int, Any]:
    """Read a number; returns where it ends (-1: there is none that fits in 64 bits), and its value."""
    value, begin, limit = np.uint64(0), at, 16 if base == 16 else 19
    while at < end:
        digit = _digit(int(data[at]), base)
        if digit < 0:
            break
        value = value * np.uint64(base) + np.uint64(digit)
        at += 1
    return (at, value) if 0 < at - begin <= limit else (-1, np.uint64(0))


@hot
def _after_size(data: np.ndarray, at: int, end: int) -> int:
    """Skip ` (SIZE) ` and the spaces behind it; returns where that ends, or -1."""
    if at + 1 >= end or data[at] != _SPACE or data[at + 1] != _OPEN:
        return -1
    while at < end and data[at] != _CLOSE:
        at += 1
    first = at = at + 1
    while at < end and data[at] == _SPACE:
        at += 1
    return at if at > first else -1


@compiled
def _read(data: np.ndarray, ends: np.ndarray, numbers: np.ndarray, found: np.ndarray) -> None:
    begin = 0
    for line in range(ends.size):
        at, end = begin, ends[line]
        begin = end + 1
        at, start = _number(data, at, end, 16)
        if at < 0 or at >= end or data[at] != _DASH:
            continue
        at, stop = _number(data, at + 1, end, 16)
        if at < 0:
            continue
        at = _after_size(data, at, end)
        if at < 0:
            continue
        at, accesses = _number(data, at, end, 10)
        if at < 0:
            continue
        numbers[0, line], numbers[1, line], numbers[2, line] = start, stop, accesses
        found[line] = True
