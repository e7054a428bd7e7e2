"""balloon: a Linux guest with virtio-balloon uses and frees memory; then a monitor inflates its balloon."""

from __future__ import annotations

from functools import partial
from typing import Final

from tracekit.lab.validate.case import Case, Recording
from tracekit.lab.validate.linux import (
    WORKLOADS,
    emulated,
    end_of,
    linux,
    measured_when_done,
    predicted_when_settled,
    with_its_pages,
)

__all__ = ["cases"]

_TARGETS_MIB: Final = (384, 192)
_BEFORE_S: Final = 0.5


def cases(seed: int) -> list[Case]:
    """Return the cases: targets above and below what the host holds (the seed changes nothing)."""
    words = ("--memory", "512M", "--settle", "4", "--free-page-reporting", "off")
    return [
        Case(
            mechanism="balloon",
            name=f"{name}, 512 to {target} MiB",
            scenario=partial(_looked_at_once, target),
            baseline=linux(*words, *work),
            real=linux(*words, *work, "--balloon", f"{target}M"),
            compare=("resident_end",),
            guest_events=with_its_pages,
            predict=predicted_when_settled,
            measure=measured_when_done,
            emulated=emulated(),
        )
        for name, work in WORKLOADS.items()
        for target in _TARGETS_MIB
    ]


def _looked_at_once(target_mib: int, recording: Recording) -> str:
    """The monitor looks for the first time when the guest has settled, and not again."""
    after_s = (end_of(recording, "settle") - int(recording.trace.meta.start_ns or 0)) / 1e9 - _BEFORE_S
    return f"balloon,policy=monitor,target_mib={target_mib},interval_s={after_s:.3f}"
