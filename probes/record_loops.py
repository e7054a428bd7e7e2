"""The loop of decode.py: records of the ring, as they lie, to one contiguous column a field.

The numbers of bytes and words here are those of wire.RECORD; decode.py holds the two against each other.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tracekit.trace.loops import loop

__all__ = ["transpose"]

# Of a record: the ring's header, seven wide fields, (tid, pages), (vm, vcpu, kind, level, flags, valid).
_WORDS = 10
_WIDE = 7
_BLOCK = 256  # records that stay in the nearest cache
_ERROR = 6  # the wide field `arg`: of faults, the error code
_HAS_ERROR = 1 << 7  # its bit in `valid`


@loop(
    *("void", "uint64*", "int64", "uint64*", "uint32*", "uint16*", "uint8*"),
    *("uint8*", "uint64*", "uint8*", "uint32*", "uint64*"),
)
def transpose(
    records: Any,
    rows: Any,
    wide: Any,
    narrow32: Any,
    narrow16: Any,
    narrow8: Any,
    decodings: Any,
    masks: Any,
    access_of: Any,
    flags_of: Any,
    same: Any,
) -> None:
    """Write the columns of that many records, each of `rows` values, and decode the error codes of faults.

    `wide` are seven; `narrow32` tid, pages, flags; `narrow16` vm, vcpu; `narrow8` kind, level, valid, access.
    `decodings` says by kind how an error code is to be read (0 = there is none): `masks` are its bits that
    count, which index the decoding's 512 entries of `access_of` and `flags_of`; from 8 on, the flag that its
    bit 33 stands for. `same` has room for a number a word: whether it is the same in all records.
    """
    for word in range(_WORDS):
        same[word] = np.uint64(1)
    for start in range(0, rows, _BLOCK):
        end = min(start + _BLOCK, rows)
        for word in range(1, _WORDS):
            first = records[word]
            differ = np.uint64(0)
            for row in range(start, end):
                differ |= records[row * _WORDS + word] ^ first
            if differ == np.uint64(0) and same[word] != np.uint64(0):
                continue
            begin = 0 if same[word] != np.uint64(0) else start  # the rows before were left out
            same[word] = np.uint64(0)
            if word <= _WIDE:
                column = (word - 1) * rows
                for row in range(begin, end):
                    wide[column + row] = records[row * _WORDS + word]
            elif word == _WIDE + 1:
                for row in range(begin, end):
                    value = records[row * _WORDS + word]
                    narrow32[row] = np.uint32(value)
                    narrow32[rows + row] = np.uint32(value >> np.uint64(32))
            else:
                for row in range(begin, end):
                    value = records[row * _WORDS + word]
                    narrow16[row] = np.uint16(value)
                    narrow16[rows + row] = np.uint16(value >> np.uint64(16))
                    narrow8[row] = np.uint8(value >> np.uint64(32))
                    narrow8[rows + row] = np.uint8(value >> np.uint64(40))
                    narrow32[2 * rows + row] = np.uint32((value >> np.uint64(48)) & np.uint64(255))
                    narrow8[2 * rows + row] = np.uint8(value >> np.uint64(56))
    for word in range(1, _WIDE + 1):
        if same[word] != np.uint64(0):
            value = records[word]
            column = (word - 1) * rows
            for row in range(rows):
                wide[column + row] = value
    if same[_WIDE + 1] != np.uint64(0):
        value = records[_WIDE + 1]
        for row in range(rows):
            narrow32[row] = np.uint32(value)
        for row in range(rows):
            narrow32[rows + row] = np.uint32(value >> np.uint64(32))
    if same[_WIDE + 2] != np.uint64(0):
        value = records[_WIDE + 2]
        for row in range(rows):
            narrow16[row] = np.uint16(value)
        for row in range(rows):
            narrow16[rows + row] = np.uint16(value >> np.uint64(16))
        for row in range(rows):
            narrow32[2 * rows + row] = np.uint32((value >> np.uint64(48)) & np.uint64(255))
        for row in range(rows):
            narrow8[row] = np.uint8(value >> np.uint64(32))
            narrow8[rows + row] = np.uint8(value >> np.uint64(40))
            narrow8[2 * rows + row] = np.uint8(value >> np.uint64(56))
    for row in range(rows):
        narrow8[3 * rows + row] = np.uint8(0)
    # The error codes. Where all are the same, so is what the first one says.
    alike = same[_WIDE + 2] != np.uint64(0) and same[_ERROR + 1] != np.uint64(0)
    for row in range(min(1, rows) if alike else rows):
        how = np.int64(decodings[narrow8[row]])
        if how == 0:
            continue
        error = wide[_ERROR * rows + row]
        if narrow8[2 * rows + row] & _HAS_ERROR:
            at = 512 * how + np.int64(error & masks[how])
            narrow8[3 * rows + row] = access_of[at]
            walk = (error >> np.uint64(33) & np.uint64(1)) * masks[8 + how]
            narrow32[2 * rows + row] |= flags_of[at] | np.uint32(walk)
            narrow8[2 * rows + row] = narrow8[2 * rows + row] ^ np.uint8(_HAS_ERROR)
        wide[_ERROR * rows + row] = np.uint64(0)
    if alike and rows > 0 and decodings[narrow8[0]] != 0:
        for row in range(1, rows):
            narrow32[2 * rows + row] = narrow32[2 * rows]
        for row in range(1, rows):
            wide[_ERROR * rows + row] = np.uint64(0)
        for row in range(1, rows):
            narrow8[2 * rows + row] = narrow8[2 * rows]
            narrow8[3 * rows + row] = narrow8[3 * rows]
