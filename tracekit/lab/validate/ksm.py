"""ksm: pages of equal content, merged by a ksmd that is quick for the run; its settings are put back.

What merging saves is the kernel's own figure (Rss - Pss of guest memory), taken when ksmd finds nothing more.
Two readings of the model: recorded merges and breaks against the figure of another run, and the zero pages of
a guest that ran without KSM against the figure of one that had it. (Linux 6.18 merges little of huge pages:
its ksmd came back to 512 of 8,192 zeroed pages in them. So the pages are small.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from tracekit.lab.ksm import ksm_settings
from tracekit.lab.linux_guest import can_run_linux_under_kvm
from tracekit.lab.validate.case import Case, Prediction, Recording, Run
from tracekit.lab.validate.curves import resident_at, without
from tracekit.lab.validate.linux import filling
from tracekit.lab.validate.small import guest
from tracekit.replay import Result

__all__ = ["cases"]

_PAGES: Final = 8192
_WRITTEN: Final = 1536
_TO_SCAN: Final = 20000
_SLEEP_MS: Final = 10
_REWRITE: Final = "dd if=/dev/urandom of=/fill/file bs=1M count=16 conv=notrunc 2>/dev/null"
_HOLD: Final = ("--hold", "1")
"""Seconds that a guest without KSM stays after its touches: ksmd would go round its memory some times."""


def cases(seed: int) -> list[Case]:
    """Return the cases: twins, twins of which some are written again, memory full of zeroes; Linux."""
    twins = guest(_PAGES, seed, "--order", "random", "--twins", "--mergeable", "--access", "read-first")
    found = [
        _merging("twins", twins),
        _merging("twins, some written", twins.plus("--use", str(_WRITTEN), "--passes", "2")),
    ]
    sparse = guest(1021, seed, "--mergeable", "--prealloc", "--step", "64k")
    found.append(
        Case(
            mechanism="ksm",
            name="memory populated and not used",
            scenario=f"ksm,policy=zero,pages_to_scan={_TO_SCAN},sleep_ms={_SLEEP_MS}",
            baseline=sparse.plus(*_HOLD),
            real=Run(sparse.words, _ksmd),
            compare=("shared_end",),
            measure=_shared,
            predict=_saved,
        )
    )
    linux = filling("--mergeable", "--page-size", "4k", "--run", _REWRITE)
    possible = can_run_linux_under_kvm()
    found.append(_merging("Linux, fills 96 MiB, writes 16 of them again", linux, possible=possible))
    return found


def _merging(name: str, run: Run, *, possible: bool = True) -> Case:
    """Return the case of a guest whose pages ksmd merges, predicted by another such run."""
    merged = Run(run.words, _ksmd)
    return Case(
        mechanism="ksm",
        name=name,
        scenario="ksm,policy=recorded",
        baseline=merged,
        real=merged,
        compare=("shared", "shared_end"),
        measure=_shared,
        predict=_saved,
        possible=possible,
    )


@contextmanager
def _ksmd() -> Iterator[tuple[str, ...]]:
    with ksm_settings(pages_to_scan=_TO_SCAN, sleep_millisecs=_SLEEP_MS, run=1):
        yield ()


def _shared(recording: Recording, ledger: Result) -> Mapping[str, float]:
    """Return what the kernel counted after the first pass and after the last (nothing without ksmd)."""
    counted = [float(sample["bytes"]) for sample in recording.account["shared"].values()]
    return {"shared": counted[0], "shared_end": counted[-1]} if counted else {}


def _saved(recording: Recording, result: Result) -> Prediction:
    """Return by how much resident memory is less, at the times at which the kernel's counts were taken.

    Without such counts: at the end.
    """
    times = [sample["ts_ns"] for sample in recording.account["shared"].values()] or [None]
    found = []
    for ts_ns in (times[0], times[-1]):
        before, (value, low, high) = without(result, ts_ns), resident_at(result, ts_ns)
        found.append(
            (before - value, None if high is None else before - high, None if low is None else before - low)
        )
    return {"shared": found[0], "shared_end": found[1]}
