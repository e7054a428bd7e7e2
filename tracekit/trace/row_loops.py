"""The loops of zstd_rows.py: in which bits rows of 8 bytes change, and blocks of the bytes that do."""

from __future__ import annotations

from typing import Any

import numpy as np

from tracekit.trace.loops import loop

__all__ = ["blocks", "changed_bits", "edges", "run_bits"]

_BLOCK = 64
# Of a zstd frame's blocks, as zstd_rows.py explains them.
_ROW = 8
_MOST_ROWS = 1 << 14
_COMPRESSED = 2 << 1
_LITERALS = 0b1100
_STATED_ONCE = 0x54
_AS_BEFORE = 0
_LEAST_MATCH = 3


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


@loop("void", "uint64*", "int64", "int64*", "int64", "uint64*")
def run_bits(words: Any, back: Any, bounds: Any, runs: Any, bits: Any) -> None:
    """Return in `bits` those in which rows of a run differ from the ones `back` rows before.

    A run is every other part between two `bounds`, beginning with the first; they count from row `back`.
    """
    for run in range(runs):
        found = np.uint64(0)
        for row in range(bounds[2 * run], bounds[2 * run + 1]):
            found |= words[row + back] ^ words[row]
        bits[run] = found


@loop("int64", "uint64*", "int64", "int64", "int64", "int64", "int64*", "int64", "uint8*")
def blocks(words: Any, start: Any, end: Any, low: Any, high: Any, runs: Any, count: Any, frame: Any) -> Any:
    """Write the blocks of a zstd frame that hold rows `start` to before `end`; returns how many bytes.

    Of each row the bytes from `low` to before `high`; of those in the `count` runs (first row, end, byte
    behind the last: three numbers each) more. zstd_rows.py says what a block is made of.
    """
    at = 0
    for run in range(count + 1):
        first_of_run = min(runs[3 * run], end) if run < count else end
        end_of_run = min(runs[3 * run + 1], end) if run < count else end
        for inside in range(2):
            row = max(first_of_run, start) if inside else start
            last = end_of_run if inside else first_of_run
            width = (runs[3 * run + 2] if inside and run < count else high) - low
            shift = np.uint64(8 * low)
            while row < last:
                rows = min(_MOST_ROWS, last - row)
                size = rows * width
                coded = 6 if rows < 128 else 7
                header = (3 + size + coded) << 3 | _COMPRESSED
                literals = size << 4 | _LITERALS
                for byte in range(3):
                    frame[at + byte] = np.uint8(header >> 8 * byte)
                    frame[at + 3 + byte] = np.uint8(literals >> 8 * byte)
                at += 6
                if width == 1:
                    for i in range(rows):
                        frame[at + i] = np.uint8(words[row + i] >> shift)
                elif width == 2:
                    for i in range(rows):
                        word = words[row + i] >> shift
                        frame[at + 2 * i] = np.uint8(word)
                        frame[at + 2 * i + 1] = np.uint8(word >> np.uint64(8))
                elif width == 3:
                    for i in range(rows):
                        word = words[row + i] >> shift
                        frame[at + 3 * i] = np.uint8(word)
                        frame[at + 3 * i + 1] = np.uint8(word >> np.uint64(8))
                        frame[at + 3 * i + 2] = np.uint8(word >> np.uint64(16))
                else:
                    for i in range(rows):
                        word = words[row + i] >> shift
                        for byte in range(width):
                            frame[at + width * i + byte] = np.uint8(word)
                            word >>= np.uint64(8)
                at += size
                if rows < 128:
                    frame[at] = np.uint8(rows)
                else:
                    frame[at] = np.uint8(128 + (rows >> 8))
                    frame[at + 1] = np.uint8(rows & 255)
                at += coded - 5
                frame[at] = np.uint8(_STATED_ONCE)
                frame[at + 1] = np.uint8(width)
                frame[at + 2] = np.uint8(_AS_BEFORE)
                frame[at + 3] = np.uint8(_ROW - width - _LEAST_MATCH)
                frame[at + 4] = np.uint8(1)
                at += 5
                row += rows
        start = max(start, end_of_run)
    return at
