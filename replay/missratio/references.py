"""What happened to a page: the alphabet that stack distances and policies read.

A reference string is two arrays of equal length in time order: dense page numbers (int64, 0 … guest
pages - 1) and operations (uint8). Without operations every reference is a touch.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tracekit.errors import UsageError

__all__ = ["EVICT", "FAULT", "FORGET", "TOUCH", "as_references"]

TOUCH: Final = 0
"""The page was used, whether it was resident or not."""
FORGET: Final = 1
"""The page was given back with its content (balloon, free page report, madvise): its next use is a first."""
FAULT: Final = 2
"""The page was used and was not resident: all that a fault trace sees of its uses."""
EVICT: Final = 3
"""The host took the page away and kept its content (swap-out, unmap)."""

NO_OPS: Final = np.empty(0, np.uint8)


def as_references(
    pages: ArrayLike, ops: ArrayLike | None = None, *, allowed: int = EVICT
) -> tuple[NDArray[np.int64], NDArray[np.uint8], int]:
    """Return pages as int64, operations as uint8 (empty = all touches) and the highest page plus one.

    Raises UsageError for negative pages, arrays of different lengths and operations above `allowed`.

    >>> as_references([3, 1, 3])
    (array([3, 1, 3]), array([], dtype=uint8), 4)
    """
    given = np.asarray(pages)
    if given.size and given.dtype.kind not in "iu":
        raise UsageError("pages must be whole numbers", hint="pass dense page numbers, not addresses")
    page = np.ascontiguousarray(given, np.int64)
    if page.ndim != 1:
        raise UsageError(f"pages must be one array, not {page.ndim}-dimensional", hint="pass it flat")
    op = NO_OPS if ops is None else np.ascontiguousarray(ops, np.uint8)
    if len(op) not in {0, len(page)}:
        raise UsageError(
            f"{len(page)} pages but {len(op)} operations", hint="pass one operation for each page, or none"
        )
    if len(op) and int(op.max()) > allowed:
        raise UsageError(
            f"operation {int(op.max())} has no meaning here",
            hint=f"use 0 to {allowed}: see tracekit.replay.missratio",
        )
    if not len(page):
        return page, NO_OPS, 0
    top = int(page.view(np.uint64).max())  # a negative page looks huge: one pass checks both ends
    if top >= 1 << 40:
        raise UsageError(
            f"page numbers must be dense, 0 … guest pages - 1, not {int(page.min())} … {int(page.max())}",
            hint="number the pages first: tracekit.replay.index.PageIndex",
        )
    return page, op, top + 1
