"""hugepages: the same guest with the same touches, its memory backed by 2 MiB pages."""

from __future__ import annotations

from tracekit.lab.linux_guest import can_run_linux_under_kvm
from tracekit.lab.validate.case import Case
from tracekit.lab.validate.linux import at_last_measured, at_last_predicted, filling
from tracekit.lab.validate.small import ORDERS, guest

__all__ = ["cases"]

_HUGE = ("--page-size", "2m")


def cases(seed: int) -> list[Case]:
    """Return the cases: every page of each region touched, or a few of them (the rest is bloat); Linux."""
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
    found.append(
        Case(
            mechanism="hugepages",
            name="Linux, fills 96 MiB, reads them",
            scenario="hugepages",
            baseline=filling("--page-size", "4k"),
            real=filling(*_HUGE),
            compare=("faults", "exits", "resident_peak", "resident_end"),
            predict=at_last_predicted,
            measure=at_last_measured,
            possible=can_run_linux_under_kvm(),
        )
    )
    return found
