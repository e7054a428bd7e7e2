"""cold_hint: a guest that is done with its pages batch by batch says so; the VMM discards or swaps them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

from tracekit.datasets.memory_limit import zram_swap
from tracekit.lab.validate.case import Case, Run
from tracekit.lab.validate.small import enlightened, guest, with_account

__all__ = ["cases"]

_PAGES: Final = 32749
_PAGED_OUT: Final = 16381
_SWAP_BYTES: Final = 256 << 20


def cases(seed: int) -> list[Case]:
    """Return the cases: streaming once, and twice (what was taken comes back), with two batch sizes."""
    found = []
    for batch, behind, passes in ((64, 2, 1), (512, 4, 1), (512, 4, 2)):
        baseline = guest(_PAGES, seed, "--think", "500", "--passes", str(passes), *enlightened())
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
    batch, behind = 512, 4
    again = guest(_PAGED_OUT, seed, "--think", "2000", "--passes", "2", *enlightened())
    again = again.plus("--hint", "cold", "--hint-batch", str(batch), "--hint-lead", str(-behind))
    found.append(
        Case(
            mechanism="cold_hint",
            name=f"{batch} pages, {behind} behind, 2 passes, paged out",
            scenario="cold_hint,policy=recorded,device=zram",
            baseline=again.plus("--unanswered"),
            real=Run(again.words, _swap),
            compare=("exits", "stall", "time", "resident_peak", "resident_end"),
            guest_events=with_account,
        )
    )
    return found


@contextmanager
def _swap() -> Iterator[tuple[str, ...]]:
    """Give what is hinted cold a place to go to."""
    with zram_swap(_SWAP_BYTES):
        yield ()
