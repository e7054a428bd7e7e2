"""epf: a Linux guest in the lab host whose faults wait for the host's swap; halted for each, or asynchronous.

Halted is the guest with `no-kvmapf`. Its siblings compute the same in both runs, so the guest's wall clock
tells what the waits were good for. The lab host is emulated where this machine has no nested virtualisation:
its counts are real, its times are compared as they are, and say so. It takes longer to record an asynchronous
wait than one that halts: so the runs that are compared are not recorded, but one more of the halted guest is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import polars as pl

from tracekit.lab.linux_guest import can_run_linux_under_kvm
from tracekit.lab.validate.case import Account, Case, Prediction, Recording, Run
from tracekit.lab.validate.halted import Halted
from tracekit.replay import Result

__all__ = ["cases"]

_TURNS: Final = "2000000000"
"""What each sibling computes: more than the waits leave time for, so that it always could run."""


def cases(seed: int) -> list[Case]:
    """Return the cases: how many siblings could run (the seed changes nothing)."""
    found = []
    for siblings in (2, 0, 1, 4):
        words = (
            *("lab", "swap", "--touch", "80M", "--siblings", str(siblings)),
            *("--sibling-turns", _TURNS),
        )
        found.append(
            Case(
                mechanism="epf",
                name=f"{siblings} sibling{'' if siblings == 1 else 's'}",
                scenario=f"epf,runnable={siblings}",
                baseline=Run((*words, "--async-faults", "off")),
                real=Run((*words, "--async-faults", "on")),
                compare=("waits", "wall"),
                guest_events=_halted,
                told=_told,
                predict=_predicted,
                emulated=not can_run_linux_under_kvm(),
                in_lab_host=True,
            )
        )
    return found


def _halted(recording: Recording) -> Halted:
    return Halted(recording.trace)


def _told(account: Account) -> Mapping[str, float]:
    """Return how many faults waited for the swap, and the guest's wall clock.

    Of a wall clock most is computing, which the machine does faster or slower at any time.
    """
    return {"waits": float(account["major_faults"]), "wall": account["wall_s"] * 1e9}


def _predicted(baseline: Recording, result: Result) -> Prediction:
    """Return as many waits as the halted guest had, and its wall clock less what of its waiting is gained.

    The recorded run tells which share of it: each wait takes longer beside a recorder.
    """
    account, seen = baseline.account, _told(baseline.account)
    waited = (account["fill_s"] + account["wall_s"] - account["ran_s"]) * 1e9  # without a CPU
    halted_ns = _halted(baseline).halted_ns or 1
    (gain,) = result.rows.filter(pl.col("metric") == "critical_path").iter_rows(named=True)
    point, least, most = (
        None if gain[end] is None else seen["wall"] - waited * min(gain[end] / halted_ns, 1.0)
        for end in ("saved", "high", "low")
    )
    return {"waits": (seen["waits"],) * 3, "wall": (point or 0.0, least, most)}
