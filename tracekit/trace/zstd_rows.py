"""zstd frames of number columns, written down with numpy instead of searched for: a sixth of zstd's time.

Recorded numbers of 8 bytes change in their low bytes from row to row. zstd, looking for matches byte by
byte, finds in each row just that, the bytes that changed and then a match with the row before, and takes
17 to 21 ns a row and column: most of what recording costs. Here those sequences are written directly, for
runs of rows in which the same bytes change. Every row of a run then is the same sequence, which is stated
once, and nothing is left to store but the changed bytes. Any zstd decoder reads the frame (RFC 8878); it
is somewhat larger than zstd's own, which also squeezes the changed bytes.

Memory touched in order counts: its low byte is that of 256 rows before (of an address, 16), so that rows
compared with those differ in one byte only. And a column that does not change at all is one long match.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np

from tracekit.trace.row_loops import blocks, changed_bits, edges, run_bits

__all__ = ["compress_repeated", "compress_rows", "is_constant"]

_ROW: Final = 8
_LEAST_ROWS: Final = 64
_MOST_CONTENT: Final = 1 << 17  # of a block, in any zstd frame
_MOST_ROWS: Final = _MOST_CONTENT // _ROW
_MOST_CHANGED: Final = 5  # a zstd match has 3 bytes at least
_WORTH_IT: Final = 3  # bytes of most rows that change: beyond that, zstd finds more than this does
_MOST_AROUND: Final = 13  # bytes of a block that are no literals
_RARE: Final = 2048  # one run in so many rows may change more than the others: it takes a block of its own
_FARTHER: Final = (16, 256)
"""Rows back, beside the one before: where pages' addresses, or numbers, have the same low byte again."""
_TRIED: Final = 1024  # rows by which the distance is chosen

# RFC 8878. Frame: one segment, its size in 4 bytes. Block: raw or compressed. Literals: raw, size in 20 bits.
# Sequences: the three codes (literals, offset, match) stated once for all; they need no further bits, but for
# the first one, which says how far back all matches are: its offset value is bytes + 3, a one and its bits.
_FRAME: Final = struct.Struct("<IBI")
_MAGIC, _ONE_SEGMENT = 0xFD2FB528, 0xA0
_RAW, _COMPRESSED = 0 << 1, 2 << 1
_LAST: Final = 1
_LITERALS: Final = 0b1100
_STATED_ONCE: Final = 0x54
_AS_BEFORE: Final = 0  # the code of the offset used last, which has no bits
_NO_LITERALS = b"\0"
_LEAST_MATCH, _LONG_MATCH, _LONG_MATCH_CODE = 3, 131, 36  # from 131 bytes on: code 36 + the bits that follow


class _Run(NamedTuple):
    """Rows `first` to before `end` in which bytes below `upto` change."""

    first: int
    end: int
    upto: int


def compress_rows(values: np.ndarray, most: int = _WORTH_IT) -> bytes | None:
    """Return a zstd frame of a column (8-byte integers, contiguous), or None where zstd itself does better.

    `most`: how many bytes of most rows may change.

    >>> import pyarrow as pa
    >>> column = np.arange(1000, dtype=np.uint64) * np.uint64(37) + np.uint64(1 << 40)
    >>> frame = compress_rows(column)
    >>> len(frame), pa.Codec("zstd").decompress(frame, 8000).to_pybytes() == column.tobytes()
    (2052, True)
    """
    rows = len(values)
    if rows < _LEAST_ROWS:
        return None
    words = values.view(np.uint64)
    differences = _Differences(words, _distance(words))
    back, low = differences.back, _lowest_byte(differences.bits)
    high, more = _bytes_that_change(differences, low)
    if high - low > most or any(run.upto - low > _MOST_CHANGED for run in more):
        return None
    content = values.view(np.uint8)
    # The first rows as they are; the next, whose match says how far back all matches are; the others.
    upto = more[0].upto if more and more[0].first == back else high
    start = content[: back * _ROW + low]
    second = content[back * _ROW + low : back * _ROW + upto]
    pieces: list[bytes | memoryview] = [_FRAME.pack(_MAGIC, _ONE_SEGMENT, rows * _ROW)]
    pieces += [_header(_RAW, len(start)), start.data]
    pieces += _block(second.data, 1, *_offset(back * _ROW))
    pieces += _blocks(words, back + 1, low, high, more)
    # A match reaches into the next row as far as no byte changes; there is none behind the last.
    last = content[(rows - 1) * _ROW + low :]
    pieces += [_header(_RAW | _LAST, len(last)), last.data]
    return b"".join(pieces)


@lru_cache(maxsize=256)
def compress_repeated(value: bytes, count: int) -> bytes | None:
    """Return a zstd frame of so many times this value, or None where that is short.

    >>> import pyarrow as pa
    >>> value = (4711).to_bytes(4, "little")
    >>> frame = compress_repeated(value, 40_000)
    >>> len(frame), pa.Codec("zstd").decompress(frame, 160_000).to_pybytes() == value * 40_000
    (40, True)
    """
    size = len(value) * (count - 1)  # what follows the first value is a match of it
    if size < _LONG_MATCH:
        return None
    pieces = [_FRAME.pack(_MAGIC, _ONE_SEGMENT, len(value) * count), _header(_RAW, len(value)), value]
    blocks = -(-size // _MOST_CONTENT)
    code, bits = _offset(len(value))
    for block in range(blocks):
        match = (block + 1) * size // blocks - block * size // blocks - _LEAST_MATCH
        length = match.bit_length() - 1
        follow = int.from_bytes(bits, "little") << length | match - (1 << length)
        codes = bytes([1, _STATED_ONCE, 0, code, _LONG_MATCH_CODE + length])
        body = _NO_LITERALS + codes + follow.to_bytes((follow.bit_length() + 7) // 8, "little")
        pieces += [_header(_COMPRESSED | (_LAST if block == blocks - 1 else 0), len(body)), body]
    return b"".join(pieces)


def is_constant(values: np.ndarray) -> bool:
    """Return whether there are values (an array of one dimension), all the same."""
    return bool(len(values)) and values[0] == values[-1] and not (values != values[0]).any()


def _distance(words: np.ndarray) -> int:
    """Return how many rows back a row is that differs in the fewest bytes, as the first rows have it."""
    if len(words) < 2 * _TRIED:
        return 1
    changed = {}
    for back in (1, *_FARTHER):
        if changed_bits.compiled is not None:
            bits = changed_bits.compiled(words, _TRIED, back)
        else:
            bits = int(np.bitwise_or.reduce(words[back:_TRIED] ^ words[: _TRIED - back]))
        changed[back] = max(_bytes_in(bits) - _lowest_byte(bits), 1)
    return min(changed, key=changed.__getitem__)


class _Differences:
    """How each row differs from the one `back` rows before; counted from row `back`."""

    def __init__(self, words: np.ndarray, back: int) -> None:
        self.back, self._words = back, words
        self._all: np.ndarray | None = None
        if changed_bits.compiled is not None:
            self.bits = int(changed_bits.compiled(words, len(words), back))
        else:
            self._all = self.of(0, len(words) - back)
            self.bits = int(np.bitwise_or.reduce(self._all))

    def __len__(self) -> int:
        return len(self._words) - self.back

    def of(self, first: int, end: int) -> np.ndarray:
        """Return those of some rows."""
        words: np.ndarray = self._words[first + self.back : end + self.back] ^ self._words[first:end]
        return words

    def edges(self, least: int) -> list[int] | None:
        """Return where they begin or cease to be `least` or more; None where that is too often."""
        most = 2 * len(self) // _RARE
        if edges.compiled is not None:
            places = np.empty(most, np.int64)
            found = edges.compiled(self._words, len(self._words), self.back, least, places, most)
            return None if found > most else places[:found].tolist()
        assert self._all is not None
        over = self._all >= np.uint64(least)
        changes = np.flatnonzero(over[1:] != over[:-1]) + 1
        return None if len(changes) > most else changes.tolist()

    def in_runs(self, bounds: list[int]) -> list[tuple[tuple[int, int], int]]:
        """Return every other part between two bounds, beginning with the first, and the bits of its rows."""
        runs = list(zip(bounds[::2], bounds[1::2], strict=False))
        if run_bits.compiled is None:
            return [(run, int(np.bitwise_or.reduce(self.of(*run)))) for run in runs]
        bits = np.empty(len(runs), np.uint64)
        run_bits.compiled(self._words, self.back, np.array(bounds, np.int64), len(runs), bits)
        return list(zip(runs, bits.tolist(), strict=True))


def _bytes_that_change(differences: _Differences, low: int) -> tuple[int, list[_Run]]:
    """Return the byte behind the highest that changes in most rows, and the runs of rows that change more."""
    back = differences.back
    high = max(_bytes_in(differences.bits), low + 1)
    more: list[_Run] = []
    while high > low + 1:
        least = 1 << 8 * (high - 1)
        edges = differences.edges(least)
        if edges is None:
            break
        high -= 1
        # Every other part is over it, from the first or the second on.
        bounds = [0, *edges, len(differences)][int(differences.of(0, 1)[0]) < least :]
        more = [
            _Run(first + back, end + back, _bytes_in(bits))
            for (first, end), bits in differences.in_runs(bounds)
        ]
    return high, more


def _bytes_in(bits: int) -> int:
    return (bits.bit_length() + 7) // 8


def _lowest_byte(bits: int) -> int:
    return ((bits & -bits).bit_length() - 1) // 8 if bits else 0


def _blocks(words: np.ndarray, start: int, low: int, high: int, more: list[_Run]) -> list[bytes | memoryview]:
    """Return the blocks of rows `start` to before the last one."""
    end = len(words) - 1
    if blocks.compiled is not None:
        size = (end - start) * (high - low) + sum((run.end - run.first) * run.upto for run in more)
        frame = np.empty(size + _MOST_AROUND * (2 * len(more) + 2 + (end - start) // _MOST_ROWS), np.uint8)
        runs = np.array(more, np.int64)
        return [frame.data[: blocks.compiled(words, start, end, low, high, runs, len(more), frame)]]
    pieces: list[bytes | memoryview] = []
    common, width = _bytes_of(words, low, high).data, high - low
    table = words.view(np.uint8).reshape(len(words), _ROW)
    for run in _runs(start, end, high, more):
        if run.upto == high:
            changed = common[run.first * width : run.end * width]
        else:
            changed = memoryview(table[run.first : run.end, low : run.upto].tobytes())
        pieces += _block(changed, run.end - run.first, _AS_BEFORE, b"\1")
    return pieces


def _runs(start: int, end: int, high: int, more: list[_Run]) -> Iterator[_Run]:
    """Yield what each block between two rows holds."""
    for run in [*more, _Run(end, end, high)]:
        for first, last, upto in (
            (start, min(run.first, end), high),
            (max(run.first, start), min(run.end, end), run.upto),
        ):
            for row in range(first, last, _MOST_ROWS):
                yield _Run(row, min(row + _MOST_ROWS, last), upto)
        start = max(start, run.end)


def _bytes_of(words: np.ndarray, low: int, upto: int) -> np.ndarray:
    """Return bytes `low` to before `upto` of all rows, one row behind the other."""
    rows, width = len(words), upto - low
    taken = np.empty(rows * width, np.uint8)
    content = words.view(np.uint8)
    if width == 2 and not low % 2:
        taken.view(np.uint16)[:] = content.view(np.uint16)[low // 2 :: _ROW // 2]
        return taken
    for byte in range(width):
        taken[byte::width] = content[low + byte :: _ROW]
    return taken


def _block(literals: memoryview, rows: int, offset: int, bits: bytes) -> list[bytes | memoryview]:
    """Return a block of that many rows: in each some literals, then a match of what does not change."""
    before, behind = _around(len(literals), rows, offset, bits)
    return [before, literals, behind]


@lru_cache(maxsize=1024)
def _around(size: int, rows: int, offset: int, bits: bytes) -> tuple[bytes, bytes]:
    """Return what stands before and behind the literals of a block; rare runs are mostly of one size."""
    changed = size // rows
    count = bytes((rows,)) if rows < 128 else bytes((128 + (rows >> 8), rows & 255))
    codes = count + bytes((_STATED_ONCE, changed, offset, _ROW - changed - _LEAST_MATCH)) + bits
    return _header(_COMPRESSED, 3 + size + len(codes)) + (size << 4 | _LITERALS).to_bytes(3, "little"), codes


def _offset(size: int) -> tuple[int, bytes]:
    """Return the code of an offset of that many bytes, and the bits that follow it behind a one."""
    value = size + 3
    return value.bit_length() - 1, value.to_bytes((value.bit_length() + 7) // 8, "little")


def _header(kind: int, size: int) -> bytes:
    return (size << 3 | kind).to_bytes(3, "little")
