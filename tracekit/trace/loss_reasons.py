"""Reasons of the loss ledger that say more than a word: at most how many an unknown number can be."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

__all__ = ["SWAP_OUT_UNPLACED", "most_of", "summed", "with_most"]

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


def summed(losses: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one row of a loss ledger for each reason and CPU, in order of their first.

    Losses that last are entered four times a second: thousands of rows say less than their sum.

    >>> row = {"cpu": 0, "t0_ns": 3, "t1_ns": 4, "lost": None, "reason": "x (at most 3)"}
    >>> summed([row, row | {"t1_ns": 6, "reason": "x (at most 5)"}])
    [{'cpu': 0, 't0_ns': 3, 't1_ns': 6, 'lost': None, 'reason': 'x (at most 8)'}]
    """
    sums: dict[tuple[int | None, str, bool], dict[str, Any]] = {}
    most: dict[tuple[int | None, str, bool], int] = {}
    for row in losses:
        at_most = most_of(row["reason"])
        reason = _MOST.sub("", row["reason"])
        key = row["cpu"], reason, at_most is None
        if key not in sums:
            sums[key] = {**row, "reason": reason}
        else:
            one = sums[key]
            unknown = one["lost"] is None or row["lost"] is None
            one["lost"] = None if unknown else one["lost"] + row["lost"]
            one["t0_ns"], one["t1_ns"] = min(one["t0_ns"], row["t0_ns"]), max(one["t1_ns"], row["t1_ns"])
        if at_most is not None:
            most[key] = most.get(key, 0) + at_most
    return [{**one, "reason": with_most(one["reason"], most.get(key))} for key, one in sums.items()]
