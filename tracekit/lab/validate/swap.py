"""swap: the same guest, its memory limited by a cgroup and swapped to a zram device of our own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

from tracekit.datasets.memory_limit import memory_limit
from tracekit.lab.validate.case import Case, Recording, Run
from tracekit.lab.validate.small import ORDERS, guest, with_account

__all__ = ["cases"]

_PAGES: Final = 21839
_LIMIT_MIB: Final = 64
"""Three quarters of the pages."""
_NO_LIMIT_MIB: Final = 1024
_AHEAD_PAGES: Final = 64
"""What Linux charges ahead on each CPU (MEMCG_CHARGE_BATCH)."""
_AT_ONCE_PAGES: Final = 32
"""What its reclaim takes at once, at least (SWAP_CLUSTER_MAX)."""


def cases(seed: int) -> list[Case]:
    """Return the cases: three passes over a third more than fits, in each order."""
    found = []
    for name, order in ORDERS.items():
        baseline = guest(_PAGES, seed, *order, "--passes", "3", "--think", "2000")
        found.append(
            Case(
                mechanism="swap",
                name=f"{name} touch, three passes",
                scenario=_limit,
                baseline=Run(baseline.words, partial(_limited, _NO_LIMIT_MIB)),
                real=Run(baseline.words, partial(_limited, _LIMIT_MIB)),
                compare=("exits", "time", "resident_peak", "resident_end"),
                guest_events=partial(with_account, uses="access"),
            )
        )
    return found


def _limit(recording: Recording) -> str:
    """What else is charged to the limit, as in the baseline, and what the kernel's batches leave open."""
    account = recording.account
    guest_pages = account["resident_pages"]
    other = max(0.0, account["charged_bytes"] / 4096 - guest_pages)
    slack = _AHEAD_PAGES * (os.cpu_count() or 1) + _AT_ONCE_PAGES
    # What is charged ahead is in the baseline's charge as well: between none and all of it.
    other = max(0.0, other - slack)
    return (
        f"swap,limit_mib={_LIMIT_MIB},device=zram,other_mib={other / 256:.4f},slack_mib={2 * slack / 256:.4f}"
    )


@contextmanager
def _limited(limit_mib: int) -> Iterator[tuple[str, ...]]:
    """Limit the guest's memory; what the VMM has touched before it runs the guest is not in the limit."""
    with memory_limit(limit_mib << 20, 256 << 20) as group:
        yield ("--cgroup", str(group))
