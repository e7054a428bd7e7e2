"""hot_hint: the guest says which pages it will touch, and the VMM populates them in a thread beside it."""

from __future__ import annotations

from functools import partial
from typing import Final

from tracekit.lab.validate.case import Case, Recording
from tracekit.lab.validate.small import enlightened, guest, with_account

__all__ = ["cases"]

_PAGES: Final = 32749
_THINK: Final = 6000
"""Loop turns between touches: some microseconds, so that one worker keeps ahead of the guest."""


def cases(seed: int) -> list[Case]:
    """Return the cases: the size of a hint and how far ahead it is given; without an answer, and with one."""
    found = []
    for batch, lead in ((64, 1), (64, 4), (256, 1)):
        hinting = guest(
            *(_PAGES, seed, "--think", str(_THINK), *enlightened()),
            *("--hint", "hot", "--hint-batch", str(batch), "--hint-lead", str(lead)),
        )
        found.append(
            Case(
                mechanism="hot_hint",
                name=f"{batch} pages, {lead} ahead",
                scenario=partial(_followed, batch),
                baseline=hinting.plus("--unanswered"),
                real=hinting,
                compare=("exits", "stall", "time", "resident_peak"),
                guest_events=with_account,
            )
        )
    return found


def _followed(batch: int, recording: Recording) -> str:
    """The hints that the guest gave, followed by a VMM that maps what it prefaults where KVM can."""
    via = "pre_fault" if recording.account["maps_ahead"] else "populate"
    return f"hot_hint,policy=recorded,batch={batch},via={via}"
