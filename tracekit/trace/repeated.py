"""Columns of one value: memory that is filled once and shared, and known as such when it is compressed.

Most columns of a recording stay the same for thousands of rows (`vm`, `pages`, what no row has). To write
them out for each batch, and to find out again that they are all the same, costs more than the rest: it
drives what is still needed out of the nearest caches.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

__all__ = ["is_shared", "repeated", "writable"]

_LEAST_ROWS: Final = 2048  # fewer are as soon written
_ROWS: Final = 1 << 16
_MOST_KEPT: Final = 24  # of 0.5 MB at most


class _Kept:
    """The arrays that are shared, oldest first, and their addresses: nobody writes to them, or frees them."""

    def __init__(self) -> None:
        self.arrays: dict[tuple[str, int], np.ndarray] = {}
        self.addresses: set[int] = set()


_kept: Final = _Kept()


def repeated(value: int, dtype: np.dtype[Any], rows: int) -> np.ndarray:
    """Return that many times this value, in an array that is not to be written to.

    >>> zeros = repeated(0, np.dtype(np.uint64), 5000)
    >>> zeros.max(), len(zeros), is_shared(zeros.ctypes.data), zeros.flags.writeable
    (np.uint64(0), 5000, True, False)
    """
    if not _LEAST_ROWS <= rows <= _ROWS:
        return _filled(value, dtype, rows)
    key = dtype.char, value
    if key not in _kept.arrays:
        if len(_kept.arrays) == _MOST_KEPT:
            oldest = _kept.arrays.pop(next(iter(_kept.arrays)))
            _kept.addresses.remove(oldest.ctypes.data)
        made = _kept.arrays[key] = _filled(value, dtype, _ROWS)
        _kept.addresses.add(made.ctypes.data)
    return _kept.arrays[key][:rows]


def is_shared(address: int) -> bool:
    """Return whether memory that begins there is such an array's: all values are the same."""
    return address in _kept.addresses


def writable(columns: dict[str, np.ndarray], name: str) -> np.ndarray:
    """Return a column to write to: a copy, which takes its place, if the column is shared."""
    column = columns[name]
    if not column.flags.writeable:
        column = columns[name] = column.copy()
    return column


def _filled(value: int, dtype: np.dtype[Any], rows: int) -> np.ndarray:
    made = np.full(rows, value, dtype)
    made.flags.writeable = False
    return made
