"""Linux guests in QEMU as runs: what their kernel says of its pages, and what is resident after a step."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Final

from tracekit.lab.guest_pages import GuestPages, as_trace
from tracekit.lab.linux_guest import can_run_linux_under_kvm
from tracekit.lab.validate.case import Prediction, Recording, Run
from tracekit.lab.validate.curves import resident_at
from tracekit.replay import Result
from tracekit.trace import Trace
from tracekit.trace.merge import merge

__all__ = [
    "WORKLOADS",
    "at_last_measured",
    "at_last_predicted",
    "emulated",
    "end_of",
    "filling",
    "linux",
    "measured_when_done",
    "predicted_when_settled",
    "with_its_pages",
]

WORKLOADS: Final[Mapping[str, tuple[str, ...]]] = {
    "fill 160 MiB, free it": ("--alloc", "160M"),
    "sort and compress with busybox": (
        *("--run", "cd /fill; seq 1 300000 | sort -r >sorted; gzip -c sorted >packed; rm sorted packed"),
        *("--alloc", "32M"),
    ),
}
"""What a guest does before it settles: as many words for `lab linux`."""

_FILL: Final = "dd if=/dev/zero of=/fill/file bs=1M count=96 2>/dev/null; cat /fill/file >/dev/null"


def linux(*words: str) -> Run:
    """Return the run of a Linux guest whose kernel tells of its pages, backed by pages of 4 KiB."""
    return Run(("lab", "linux", "--page-events", "--page-size", "4k", *words))


def filling(*words: str) -> Run:
    """Return the run of a Linux guest of 256 MiB that fills 96 MiB and reads them again."""
    return Run(
        ("lab", "linux", "--memory", "256M", "--free-page-reporting", "off", "--run", _FILL, *words),
    )


@cache
def emulated() -> bool:
    """Say whether such a guest's times are those of an emulated machine here."""
    return not can_run_linux_under_kvm()


def with_its_pages(recording: Recording) -> Trace:
    """Return the recording merged with the page events of its guest's kernel."""
    path = recording.path.with_suffix(".guest.trace")
    as_trace(recording.account.made(GuestPages, "guest_pages"), path, force=True)
    return merge(recording.path, path, recording.path.with_suffix(".merged.trace"), force=True)[0]


def end_of(recording: Recording, step: str) -> int:
    """Return when a step of the guest's life was over, ns."""
    (found,) = (one for one in recording.account["steps"] if one["name"] == step)
    return int(found["start_ns"] + found["elapsed_ns"])


def predicted_when_settled(recording: Recording, result: Result) -> Prediction:
    """Return the scenario's resident memory at the end of the baseline's step `settle`."""
    return {"resident_end": resident_at(result, end_of(recording, "settle"))}


def measured_when_done(recording: Recording, ledger: Result) -> Mapping[str, float]:
    """Return the resident memory of a run when its balloon is inflated; where it has none, when settled."""
    steps = [step["name"] for step in recording.account["steps"]]
    done = end_of(recording, "inflate" if "inflate" in steps else "settle")
    return {"resident_end": resident_at(ledger, done)[0]}


def at_last_predicted(recording: Recording, result: Result) -> Prediction:
    """Return the scenario's resident memory at the end of the baseline's last step."""
    return {"resident_end": resident_at(result, end_of(recording, _last(recording)))}


def at_last_measured(recording: Recording, ledger: Result) -> Mapping[str, float]:
    """Return the resident memory of a run at the end of its last step."""
    return {"resident_end": resident_at(ledger, end_of(recording, _last(recording)))[0]}


def _last(recording: Recording) -> str:
    return str(recording.account["steps"][-1]["name"])
