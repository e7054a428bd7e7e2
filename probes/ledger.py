"""The run's own account of what was lost: why, how many, on which CPUs, between when and when."""

from __future__ import annotations

from dataclasses import dataclass, field

from tracekit.probes.losses import Loss
from tracekit.trace.loss_reasons import with_most

__all__ = ["LossLedger"]


@dataclass
class _Sum:
    lost: int | None = 0
    cpus: set[int] = field(default_factory=set)
    t0_ns: int = 2**64
    t1_ns: int = 0
    at_most: int | None = None


class LossLedger:
    """Sums losses by reason; `lost` None = an unknown number.

    >>> ledger = LossLedger()
    >>> ledger.add(Loss(1, 2_000_000_000, 3_500_000_000, 7, "ring_full"))
    >>> ledger.lost, ledger.lines(start_ns=1_000_000_000)
    (7, ['7: ring_full, CPU 1, 1.000 s to 2.500 s'])
    """

    def __init__(self) -> None:
        self._sums: dict[str, _Sum] = {}

    @property
    def lost(self) -> int | None:
        """How many events were lost in all."""
        numbers = list(self.by_reason.values())
        return None if None in numbers else sum(number or 0 for number in numbers)

    @property
    def by_reason(self) -> dict[str, int | None]:
        """How many were lost for each reason."""
        return {with_most(reason, one.at_most): one.lost for reason, one in self._sums.items()}

    def add(self, loss: Loss) -> None:
        """Enter one loss."""
        one = self._sums.setdefault(loss.reason, _Sum())
        one.lost = None if one.lost is None or loss.lost is None else one.lost + loss.lost
        if loss.at_most is not None:
            one.at_most = (one.at_most or 0) + loss.at_most
        if loss.cpu is not None:
            one.cpus.add(loss.cpu)
        one.t0_ns, one.t1_ns = min(one.t0_ns, loss.t0_ns), max(one.t1_ns, loss.t1_ns)

    def lines(self, start_ns: int) -> list[str]:
        """Return a line for each reason; times count from `start_ns`."""
        lines = []
        for reason, one in self._sums.items():
            number = "an unknown number" if one.lost is None else f"{one.lost:,}"
            cpus = f"CPU {', '.join(map(str, sorted(one.cpus)))}, " if one.cpus else ""
            first, last = ((t - start_ns) / 1e9 for t in (one.t0_ns, one.t1_ns))
            lines.append(f"{number}: {with_most(reason, one.at_most)}, {cpus}{first:.3f} s to {last:.3f} s")
        return lines
