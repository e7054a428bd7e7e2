"""The loop of framing.py: the checksum of two pieces from those of each, as zlib's crc32_combine."""

from __future__ import annotations

from typing import Any

import numpy as np

from tracekit.trace.loops import loop

__all__ = ["joined"]

_POLYNOMIAL = 0xEDB88320  # of crc32, its bits reversed, as zlib has it
_ONE = 1 << 31  # x to the power 0


@loop("uint64", "uint64", "uint64", "int64")
def joined(first: Any, second: Any, size: Any) -> Any:
    """Return the crc32 of two pieces, one behind the other, from their own; the second has `size` bytes.

    A byte of zeros behind the first multiplies its crc32 by x to the power 8, modulo the polynomial.
    """
    power = np.uint64(1 << 23)  # x to the power 8, then its squares
    shifted = first
    while size:
        for doing in range(2):  # multiply, if the bit is set, and square
            if doing == 0 and not size & 1:
                continue
            other = power if doing else shifted
            product = np.uint64(0)
            factor = power
            for bit in range(32):
                if other & np.uint64(_ONE >> bit):
                    product ^= factor
                factor = (factor >> np.uint64(1)) ^ (np.uint64(_POLYNOMIAL) * (factor & np.uint64(1)))
            if doing:
                power = product
            else:
                shifted = product
        size >>= 1
    return shifted ^ second
