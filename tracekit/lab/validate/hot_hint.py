"""hot_hint: the guest says which pages it will touch, and the VMM populates them in a thread beside it."""

from __future__ import annotations

from typing import Final

from tracekit.lab.validate.case import Case, Recording
from tracekit.lab.validate.check import guest_time
from tracekit.lab.validate.small import enlightened, guest

__all__ = ["cases"]

_PAGES: Final = 32749
_THINK: Final = 6000
"""Loop turns between touches: some microseconds, so that one worker keeps ahead of the guest."""


def cases(seed: int) -> list[Case]:
    """Return the cases: the size of a hint and how far ahead it is given."""
    baseline = guest(_PAGES, seed, "--think", str(_THINK), *enlightened())
    found = []
    for batch, lead in ((64, 1), (64, 4), (256, 1)):

        def scenario(recording: Recording, batch: int = batch, lead: int = lead) -> str:
            """A page is hinted half a batch and `lead` batches before its touch, on average."""
            lead_ms = (lead + 0.5) * batch * guest_time(recording) / _PAGES / 1e6
            via = "pre_fault" if recording.account["maps_ahead"] else "populate"
            return f"hot_hint,policy=oracle,lead_ms={lead_ms:.3f},batch={batch},via={via}"

        found.append(
            Case(
                mechanism="hot_hint",
                name=f"{batch} pages, {lead} ahead",
                scenario=scenario,
                baseline=baseline,
                real=baseline.plus(
                    *("--hint", "hot"),
                    *("--hint-batch", str(batch), "--hint-lead", str(lead)),
                ),
                compare=("exits", "stall", "time", "resident_peak"),
            )
        )
    return found
