"""cold_hint: a guest that is done with its pages batch by batch, and says so; the VMM discards them."""

from __future__ import annotations

from functools import partial
from typing import Final

from tracekit.lab.validate.case import Case
from tracekit.lab.validate.small import guest, with_account

__all__ = ["cases"]

_PAGES: Final = 32749


def cases(seed: int) -> list[Case]:
    """Return the cases: streaming once, and twice (what was discarded comes back), with two batch sizes."""
    found = []
    for batch, behind, passes in ((64, 2, 1), (512, 4, 1), (512, 4, 2)):
        baseline = guest(_PAGES, seed, "--think", "500", "--passes", str(passes), "--enlightened", "port")
        found.append(
            Case(
                mechanism="cold_hint",
                name=f"{batch} pages, {behind} behind, {passes} pass{'es' if passes > 1 else ''}",
                scenario=f"cold_hint,policy=on_free,order={batch.bit_length() - 1},delay_ms=0,batch=1",
                baseline=baseline,
                real=baseline.plus(
                    *("--hint", "discard"),
                    *("--hint-batch", str(batch), "--hint-lead", str(-behind)),
                ),
                compare=("exits", "stall", "time", "resident_peak", "resident_end"),
                guest_events=partial(with_account, behind=(batch, behind)),
            )
        )
    return found
