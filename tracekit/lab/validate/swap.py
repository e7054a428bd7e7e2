"""swap: the same guest, its memory limited by a cgroup and swapped to a zram device of our own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

from tracekit.datasets.memory_limit import memory_limit
from tracekit.lab.linux_guest import can_run_linux_under_kvm
from tracekit.lab.validate.case import Case, Recording, Run
from tracekit.lab.validate.curves import resident_at
from tracekit.lab.validate.linux import at_last_measured, at_last_predicted, end_of, filling
from tracekit.lab.validate.small import ORDERS, guest, with_account
from tracekit.replay import load_profile
from tracekit.replay import run as replay

__all__ = ["cases"]

_PAGES: Final = 21839
_LIMIT_MIB: Final = 64
"""Three quarters of the pages."""
_NO_LIMIT_MIB: Final = 1024
_LINUX_LIMIT_MIB: Final = 128
_AHEAD_PAGES: Final = 64
"""What Linux charges ahead on each CPU (MEMCG_CHARGE_BATCH)."""
_AT_ONCE_PAGES: Final = 32
"""What its reclaim takes at once, at least (SWAP_CLUSTER_MAX)."""


def cases(seed: int) -> list[Case]:
    """Return the cases: three passes over a third more than fits, in each order; Linux, where KVM runs it."""
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
    words = filling("--page-size", "4k").words
    found.append(
        Case(
            mechanism="swap",
            name="Linux, fills 96 MiB, reads them",
            scenario=_linux_limit,
            baseline=Run(words, partial(_limited, _NO_LIMIT_MIB)),
            real=Run(words, partial(_limited, _LINUX_LIMIT_MIB)),
            compare=("exits", "resident_peak", "resident_end"),
            predict=at_last_predicted,
            measure=at_last_measured,
            possible=can_run_linux_under_kvm(),
        )
    )
    return found


def _limit(recording: Recording) -> str:
    """What else is charged to the limit, as in the baseline, and what the kernel's batches leave open."""
    account = recording.account
    guest_pages = account["resident_pages"]
    other = max(0.0, account["charged_bytes"] / 4096 - guest_pages)
    slack = _slack_pages(recording)
    # What is charged ahead is in the baseline's charge as well: between none and all of it.
    other = max(0.0, other - slack)
    return (
        f"swap,limit_mib={_LIMIT_MIB},device=zram,other_mib={other / 256:.4f},slack_mib={2 * slack / 256:.4f}"
    )


def _linux_limit(recording: Recording) -> str:
    """What the kernel has for the VM stays; what QEMU has beside guest memory, and files, goes or stays.

    QEMU touched its own before the guest's and hardly does again: by Linux's order it goes first (value). It
    is left open that it, and the files that it has mapped, stay.
    """
    ledger = replay(recording.trace, ["baseline"], profile=load_profile("published"))
    guest_bytes = resident_at(ledger, end_of(recording, "run"))[0]
    charged, files, anonymous = (
        recording.account[name] for name in ("charged_bytes", "charged_file_bytes", "charged_anonymous_bytes")
    )
    other = max(0.0, charged - files - anonymous) / (1 << 20)
    slack = _slack_pages(recording) / 256 + (files + max(0.0, anonymous - guest_bytes)) / (1 << 20)
    return f"swap,limit_mib={_LINUX_LIMIT_MIB},device=zram,other_mib={other:.4f},slack_mib={slack:.4f}"


def _slack_pages(recording: Recording) -> int:
    """What the kernel of the host that was recorded charges ahead and reclaims at once, at most."""
    return _AHEAD_PAGES * int(recording.trace.meta.host.get("cpus", 1)) + _AT_ONCE_PAGES


@contextmanager
def _limited(limit_mib: int) -> Iterator[tuple[str, ...]]:
    """Limit the guest's memory; what the VMM has touched before it runs the guest is not in the limit."""
    with memory_limit(limit_mib << 20, 256 << 20) as group:
        yield ("--cgroup", str(group))
