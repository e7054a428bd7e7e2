"""prealloc: the same guest, with all its memory populated before it starts."""

from __future__ import annotations

from tracekit.lab.linux_guest import can_run_linux_under_kvm
from tracekit.lab.validate.case import Case
from tracekit.lab.validate.linux import at_last_measured, at_last_predicted, filling
from tracekit.lab.validate.small import ORDERS, can_map_ahead, guest

__all__ = ["cases"]


def cases(seed: int) -> list[Case]:
    """Return the cases: each order of touches, also mapped ahead, and Linux, where KVM can do these."""
    found = []
    ways = {"populate": ("--prealloc",), "pre_fault": ("--prealloc", "--pre-fault")}
    for via, words in ways.items():
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
                    possible=via == "populate" or can_map_ahead(),
                )
            )
    baseline = filling("--page-size", "4k")
    found.append(
        Case(
            mechanism="prealloc",
            name="Linux, fills 96 MiB, reads them",
            scenario="prealloc",
            baseline=baseline,
            real=baseline.plus("--prealloc"),
            compare=("faults", "exits", "resident_peak", "resident_end"),
            predict=at_last_predicted,
            measure=at_last_measured,
            possible=can_run_linux_under_kvm(),
        )
    )
    return found
