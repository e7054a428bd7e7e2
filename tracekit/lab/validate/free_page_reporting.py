"""free_page_reporting: a Linux guest with virtio-balloon uses and frees memory; then with reports on."""

from __future__ import annotations

from typing import Final

from tracekit.lab.validate.case import Case, Recording
from tracekit.lab.validate.linux import (
    WORKLOADS,
    emulated,
    linux,
    measured_when_done,
    predicted_when_settled,
    with_its_pages,
)

__all__ = ["cases"]

_FOR_ALL: Final = ("--memory", "512M", "--settle", "6")


def cases(seed: int) -> list[Case]:
    """Return the cases: by what the guest does (the seed changes nothing: no order is random)."""
    return [
        Case(
            mechanism="free_page_reporting",
            name=name,
            scenario=_with_its_lists,
            baseline=linux(*words, *_FOR_ALL, "--free-page-reporting", "off"),
            real=linux(*words, *_FOR_ALL, "--free-page-reporting", "on"),
            compare=("resident_peak", "resident_end"),
            guest_events=with_its_pages,
            predict=predicted_when_settled,
            measure=measured_when_done,
            emulated=emulated(),
        )
        for name, words in WORKLOADS.items()
    ]


def _with_its_lists(recording: Recording) -> str:
    """The guest's CPUs hold back as many pages as they did in the baseline when it had settled."""
    return f"free_page_reporting,pcp_pages={recording.account['pcp_pages']}"
