"""Protobuf in bulk: one message as a pattern, and numpy to write each row's numbers into it.

Rows of one shape (the same fields set) differ in their numbers only, and protobuf writes a number as a
varint: seven bits a byte, every byte but the last marked. A varint may be padded with marked zeros, which
every reader takes; so all rows of a shape can have one length, and a column of numbers becomes some columns
of bytes. The message itself comes from its own class: where in it a number stands is found by changing it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Shape", "joined"]

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Numbers = np.ndarray[Any, np.dtype[np.uint64]]


@dataclass(frozen=True)
class Shape:
    """A message with its numbers left open: `slots` are each number's first bytes and its width."""

    pattern: Bytes
    slots: Mapping[str, tuple[Sequence[int], int]]

    @classmethod
    def of(cls, message: Callable[[Mapping[str, int]], bytes], numbers: Mapping[str, Numbers]) -> Shape:
        """Return the shape of `message(numbers)`, wide enough for the largest of each number.

        A number may stand in several places.
        """
        widths = {name: _varint_bytes(int(column.max(initial=0))) for name, column in numbers.items()}
        least = {name: 1 << 7 * (width - 1) for name, width in widths.items()}
        pattern = np.frombuffer(message(least), np.uint8)
        slots = {}
        for name, width in widths.items():
            # The greatest number of this width differs from the least in every byte (of ten, in nine).
            greatest = min((1 << 7 * width) - 1, (1 << 64) - 1)
            other = np.frombuffer(message({**least, name: greatest}), np.uint8)
            slots[name] = (np.flatnonzero(other != pattern)[:: min(width, 9)].tolist(), width)
        return cls(pattern, slots)

    def filled(self, numbers: Mapping[str, Numbers]) -> Bytes:
        """Return a row of bytes for each row of numbers.

        >>> shape = Shape.of(lambda n: bytes([8, n["x"] & 127 | 128, n["x"] >> 7]), {"x": np.array([300])})
        >>> shape.filled({"x": np.array([300, 5], np.uint64)}).tolist()
        [[8, 172, 2], [8, 133, 0]]
        """
        rows = np.tile(self.pattern, (len(next(iter(numbers.values()))), 1))
        for name, (places, width) in self.slots.items():
            for index in range(width):
                byte = (numbers[name] >> np.uint64(7 * index)).astype(np.uint8) & 0x7F
                marked = byte | 0x80 if index < width - 1 else byte
                for place in places:
                    rows[:, place + index] = marked
        return rows


def joined(parts: Sequence[tuple[np.ndarray[Any, Any], Bytes]]) -> bytes:
    """Join rows of several shapes: `parts` are (row numbers, their bytes), together the numbers 0 to n - 1.

    >>> b, a = np.frombuffer(b"bb", np.uint8)[None], np.frombuffer(b"a", np.uint8)[None]
    >>> joined([(np.array([1]), b), (np.array([0]), a)])
    b'abb'
    """
    lengths = np.zeros(sum(len(rows) for rows, _ in parts), np.int64)
    for rows, content in parts:
        lengths[rows] = content.shape[1]
    starts = np.cumsum(lengths) - lengths
    out = np.empty(int(lengths.sum()), np.uint8)
    for rows, content in parts:
        width = content.shape[1]
        if width and len(rows):
            # Every place where a row of this width fits, as a view: rows are written whole.
            places = np.lib.stride_tricks.sliding_window_view(out, width, writeable=True)
            places[starts[rows]] = content
    return out.tobytes()


def _varint_bytes(number: int) -> int:
    return max(1, -(-number.bit_length() // 7))
