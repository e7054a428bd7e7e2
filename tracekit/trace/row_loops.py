"""The loops of zstd_rows.py: in which bits rows of 8 bytes change, and the bytes that do."""

from __future__ import annotations

from typing import Any

import numpy as np

from tracekit.trace.loops import loop

__all__ = ["changed_bits", "changing_bytes", "edges"]

_BLOCK = 64


@loop("uint64", "uint64*", "int64", "int64")
def changed_bits(words: Any, rows: Any, back: Any) -> Any:
    """Return the bits in which any row differs from the one `back` rows before."""
    bits = np.uint64(0)
    for row in range(back, rows):
        bits |= words[row] ^ words[row - back]
    return bits


@loop("int64", "uint64*", "int64", "int64", "uint64", "int64*", "int64")
def edges(words: Any, rows: Any, back: Any, least: Any, places: Any, most: Any) -> Any:
    """Find where rows begin or cease to differ by `least` or more from those `back` rows before.

    `least` is a power of two. Returns how many such places there are, or some number above `most`, for which
    `places` has room; they are counted from row `back`.
    """
    found = 0
    before = (words[back] ^ words[0]) >= least
    for start in range(back + 1, rows, _BLOCK):
        end = min(start + _BLOCK, rows)
        bits = np.uint64(0)
        for row in range(start, end):
            bits |= words[row] ^ words[row - back]
        if bits < least and not before:
            continue
        for row in range(start, end):
            over = (words[row] ^ words[row - back]) >= least
            if over != before:
                if found == most:
                    return most + 1
                places[found] = row - back
                found += 1
                before = over
    return found


@loop("void", "uint64*", "int64", "int64", "int64", "uint8*")
def changing_bytes(words: Any, rows: Any, low: Any, width: Any, taken: Any) -> None:
    """Put `width` bytes of each row, from byte `low` on, one row behind the other into `taken`."""
    shift = np.uint64(8 * low)
    if width == 1:
        for row in range(rows):
            taken[row] = np.uint8(words[row] >> shift)
    elif width == 2:
        for row in range(rows):
            word = words[row] >> shift
            taken[2 * row] = np.uint8(word)
            taken[2 * row + 1] = np.uint8(word >> np.uint64(8))
    elif width == 3:
        for row in range(rows):
            word = words[row] >> shift
            taken[3 * row] = np.uint8(word)
            taken[3 * row + 1] = np.uint8(word >> np.uint64(8))
            taken[3 * row + 2] = np.uint8(word >> np.uint64(16))
    else:
        for row in range(rows):
            word = words[row] >> shift
            for byte in range(width):
                taken[width * row + byte] = np.uint8(word)
                word >>= np.uint64(8)
