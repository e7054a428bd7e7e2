"""prealloc: the same guest, with all its memory populated before it starts."""

from __future__ import annotations

from tracekit.lab.validate.case import Case
from tracekit.lab.validate.small import ORDERS, guest

__all__ = ["cases"]


def cases(seed: int) -> list[Case]:
    """Return the cases: each order of touches, with one vCPU and with two."""
    found = []
    for name, order in ORDERS.items():
        baseline = guest(32749, seed, *order, "--think", "500")
        found.append(
            Case(
                mechanism="prealloc",
                name=f"{name} touch",
                scenario="prealloc",
                baseline=baseline,
                real=baseline.plus("--prealloc"),
                compare=("faults", "exits", "stall", "time", "startup", "resident_peak"),
            )
        )
    return found
