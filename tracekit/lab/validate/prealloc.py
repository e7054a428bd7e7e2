"""prealloc: the same guest, with all its memory populated before it starts."""

from __future__ import annotations

from tracekit.lab.validate.case import Case
from tracekit.lab.validate.small import ORDERS, can_map_ahead, guest

__all__ = ["cases"]


def cases(seed: int) -> list[Case]:
    """Return the cases: each order of touches; where KVM can map ahead, that as well."""
    found = []
    ways = {"populate": ("--prealloc",), "pre_fault": ("--prealloc", "--pre-fault")}
    for via, words in ways.items():
        if via == "pre_fault" and not can_map_ahead():
            continue
        for name, order in ORDERS.items():
            baseline = guest(32749, seed, *order, "--think", "500")
            found.append(
                Case(
                    mechanism="prealloc",
                    name=f"{name} touch" if via == "populate" else f"{name} touch, mapped ahead",
                    scenario=f"prealloc,via={via}",
                    baseline=baseline,
                    real=baseline.plus(*words),
                    compare=("faults", "exits", "stall", "time", "startup", "resident_peak"),
                )
            )
    return found
