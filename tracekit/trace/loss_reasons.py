"""Reasons of the loss ledger that say more than a word: at most how many an unknown number can be."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["SWAP_OUT_UNPLACED", "most_of", "with_most"]

SWAP_OUT_UNPLACED: Final = "swap_out_unplaced"
"""Pages went out to swap, and it can't be told which of a guest's they were, or whether any."""

_MOST: Final = re.compile(r" \(at most ([\d,]+)\)$")


def with_most(reason: str, at_most: int | None) -> str:
    """Return a reason with what is known of a number that is not.

    >>> with_most("nested BPF programs", 1394)
    'nested BPF programs (at most 1,394)'
    """
    return reason if at_most is None else f"{reason} (at most {at_most:,})"


def most_of(reason: str) -> int | None:
    """Return how many were lost at most, where the reason says so.

    >>> most_of("nested BPF programs (at most 1,394)"), most_of("ring_full")
    (1394, None)
    """
    found = _MOST.search(reason)
    return None if found is None else int(found[1].replace(",", ""))
