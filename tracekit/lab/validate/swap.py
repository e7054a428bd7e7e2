"""swap: the same guest, its memory limited by a cgroup and swapped to a zram device of our own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

from tracekit.datasets.memory_limit import memory_limit
from tracekit.lab.validate.case import Case, Run
from tracekit.lab.validate.small import ORDERS, guest, with_account

__all__ = ["cases"]

_PAGES: Final = 21839
_LIMIT_MIB: Final = 64
"""Three quarters of the pages."""


def cases(seed: int) -> list[Case]:
    """Return the cases: three passes over a third more than fits, in each order."""
    found = []
    for name, order in ORDERS.items():
        baseline = guest(_PAGES, seed, *order, "--passes", "3", "--think", "2000")
        found.append(
            Case(
                mechanism="swap",
                name=f"{name} touch, three passes",
                scenario=f"swap,limit_mib={_LIMIT_MIB},device=zram",
                baseline=baseline,
                real=Run(baseline.words, _limited),
                compare=("exits", "time", "resident_peak", "resident_end"),
                guest_events=partial(with_account, uses="access"),
            )
        )
    return found


@contextmanager
def _limited() -> Iterator[tuple[str, ...]]:
    """Limit the guest's memory; what the VMM has touched before it runs the guest is not in the limit."""
    with memory_limit(_LIMIT_MIB << 20, 256 << 20) as group:
        yield ("--cgroup", str(group))
