"""hugepages: the same guest with the same touches, its memory backed by 2 MiB pages."""

from __future__ import annotations

from tracekit.lab.validate.case import Case
from tracekit.lab.validate.small import ORDERS, guest

__all__ = ["cases"]

_HUGE = ("--page-size", "2m")


def cases(seed: int) -> list[Case]:
    """Return the cases: every page of each region touched, or a few of them (the rest is bloat)."""
    found = []
    for name, order in ORDERS.items():
        for what, words in (("touch", ("--step", "4k")), ("sparse touch", ("--step", "64k"))):
            pages = 32749 if words[1] == "4k" else 2039
            baseline = guest(pages, seed, *order, "--think", "500", *words)
            found.append(
                Case(
                    mechanism="hugepages",
                    name=f"{name} {what}",
                    scenario="hugepages",
                    baseline=baseline,
                    real=baseline.plus(*_HUGE),
                    compare=("faults", "exits", "stall", "time", "resident_peak"),
                )
            )
    return found
