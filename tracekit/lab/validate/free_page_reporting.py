"""free_page_reporting: a Linux guest with virtio-balloon fills and frees memory; then with reports on."""

from __future__ import annotations

from tracekit.lab.validate.case import Case
from tracekit.lab.validate.linux import (
    emulated,
    linux,
    measured_when_done,
    predicted_when_settled,
    with_its_pages,
)

__all__ = ["cases"]


def cases(seed: int) -> list[Case]:
    """Return the case (the seed changes nothing: no order is random)."""
    words = ("--memory", "512M", "--alloc", "160M", "--settle", "6")
    return [
        Case(
            mechanism="free_page_reporting",
            name="fill 160 MiB, free it",
            scenario="free_page_reporting",
            baseline=linux(*words, "--free-page-reporting", "off"),
            real=linux(*words, "--free-page-reporting", "on"),
            compare=("resident_peak", "resident_end"),
            guest_events=with_its_pages,
            predict=predicted_when_settled,
            measure=measured_when_done,
            emulated=emulated(),
        )
    ]
