"""The loss counters of the BPF programs, read so that every loss gets its CPU, count and time bounds."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Final

from tracekit.probes.wire import LOST
from tracekit.trace.loss_reasons import SWAP_OUT_UNPLACED

__all__ = ["Loss", "LossReader"]


@dataclass(frozen=True)
class Loss:
    """`lost` events of one CPU for one reason between two times (ns, inclusive); None = an unknown number.

    Of an unknown number it may be known how many they were at most.
    """

    cpu: int | None
    t0_ns: int
    t1_ns: int
    lost: int | None
    reason: str
    at_most: int | None = None


_UNKNOWN_NUMBER: Final = {"untraced_process", "untraced_thread"}  # one refusal is many events never seen
_AT_MOST: Final = {SWAP_OUT_UNPLACED}  # pages of which it can't be told whether they were a guest's


class LossReader:
    """Reads what was lost since the reading before.

    `losses` and `epoch` are the maps of bpf/common.h as bcc shows them.
    """

    def __init__(self, losses: Any, epoch: Any) -> None:
        self._losses, self._epoch = losses, epoch
        self._seen: dict[tuple[int, int], int] = {}
        self._read_ns = time.monotonic_ns()
        self._number = 0

    def read(self) -> list[Loss]:
        """Return the losses since the last reading; their counts add up to the counters exactly."""
        found = []
        for reason, name in enumerate(LOST):
            for cpu, loss in enumerate(self._losses[reason]):
                new = loss.count - self._seen.get((reason, cpu), 0)
                if not new:
                    continue
                self._seen[reason, cpu] = loss.count
                # The program notes the first loss of an epoch; one that straddles the reading belongs
                # to the epoch before, and then the last reading is the earliest it can have been.
                first = loss.first_ts if loss.epoch == self._number else self._read_ns
                lost = None if name in _UNKNOWN_NUMBER | _AT_MOST else new
                at_most = new if name in _AT_MOST else None
                found.append(Loss(cpu, min(first, loss.last_ts), loss.last_ts, lost, name, at_most))
        self._read_ns = time.monotonic_ns()
        self._number += 1
        self._epoch[0] = self._epoch.Leaf(self._number)
        return found
