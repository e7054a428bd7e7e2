"""The loops of decode.py: records of the ring, as they lie, to one contiguous column a field.

The numbers of bytes and words here are those of wire.RECORD; decode.py holds the two against each other.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tracekit.trace.loops import loop

__all__ = ["overtaken", "transpose"]

# Of a record: the ring's header, seven wide fields, (tid, pages), (vm, vcpu, kind, level, flags, valid).
_WORDS = 10
_WIDE = 7
_BLOCK = 256  # records that stay in the nearest cache
_ERROR = 6  # the wide field `arg`: of faults, the error code
_WORD_OF_PAGES = 8
_WORD_OF_KIND = 9
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
    bit 33 stands for. `same` has room for a number a word: whether it is the same in all records. The columns
    of such a word are not written, and where the kind's and the error code's are, no error code is decoded;
    the first number, of the ring's header, says whether the records are in time order.
    """
    for word in range(_WORDS):
        same[word] = np.uint64(1)
    decoded = 0
    latest = records[1] if rows > 0 else np.uint64(0)
    for start in range(0, rows, _BLOCK):
        end = min(start + _BLOCK, rows)
        for word in range(1, _WORDS):
            begin = start
            if same[word] != np.uint64(0):
                first = records[word]
                differ = np.uint64(0)
                for row in range(start, end):
                    differ |= records[row * _WORDS + word] ^ first
                if differ == np.uint64(0):
                    continue
                same[word] = np.uint64(0)
                begin = 0  # the rows before were left out
            if word <= _WIDE:
                column = (word - 1) * rows
                for row in range(begin, end):
                    wide[column + row] = records[row * _WORDS + word]
            elif word == _WORD_OF_PAGES:
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
                    narrow8[3 * rows + row] = np.uint8(0)
        if same[1] == np.uint64(0) and same[0] != np.uint64(0):
            back = np.uint64(0)
            for row in range(start, end):
                back |= np.uint64(wide[row] < latest)
                latest = wide[row]
            if back != np.uint64(0):
                same[0] = np.uint64(0)
        alike = same[_WORD_OF_KIND] != np.uint64(0)
        ready = not alike and same[_ERROR + 1] == np.uint64(0)
        if end == rows and not ready:
            # Nothing is to be decoded where all are of one kind and code, or of a kind that has none.
            kind = np.uint8(records[_WORD_OF_KIND] >> np.uint64(32))
            ready = not alike or (decodings[kind] != 0 and same[_ERROR + 1] == np.uint64(0))
            if ready and alike:
                same[_WORD_OF_KIND] = np.uint64(0)
                value = records[_WORD_OF_KIND]
                for row in range(rows):
                    narrow16[row] = np.uint16(value)
                    narrow16[rows + row] = np.uint16(value >> np.uint64(16))
                    narrow32[2 * rows + row] = np.uint32((value >> np.uint64(48)) & np.uint64(255))
                for row in range(rows):
                    narrow8[row] = kind
                    narrow8[rows + row] = np.uint8(value >> np.uint64(40))
                    narrow8[2 * rows + row] = np.uint8(value >> np.uint64(56))
                    narrow8[3 * rows + row] = np.uint8(0)
            if ready and same[_ERROR + 1] != np.uint64(0):
                same[_ERROR + 1] = np.uint64(0)
                for row in range(rows):
                    wide[_ERROR * rows + row] = records[_ERROR + 1]
        if not ready:
            continue
        for row in range(decoded, end):
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
        decoded = end


@loop("int64", "uint64*", "int64", "uint64*", "int64*")
def overtaken(times: Any, rows: Any, latest: Any, places: Any) -> Any:
    """Find the rows that move when all are put into the order of time; returns how many, the last first.

    A row stays where all before it are no later, and all behind no earlier. `latest` has room for all rows.
    """
    top = np.uint64(0)
    for row in range(rows):
        top = max(top, times[row])
        latest[row] = top
    found = 0
    earliest = top
    stays = True  # what is behind
    for back in range(rows):
        row = rows - 1 - back
        earliest = min(earliest, times[row])
        apart = row == 0 or latest[row - 1] <= earliest
        if not (apart and stays):
            places[found] = row
            found += 1
        stays = apart
    return found
