"""A working set larger than its memory limit, with random accesses and random eviction: swap thrash."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from tracekit.datasets.synthetic.clocks import VcpuClocks, lognormal_ns
from tracekit.datasets.synthetic.generator import Columns, Generator, parameter
from tracekit.datasets.synthetic.places import Permutation
from tracekit.datasets.synthetic.swapping import swap_faults
from tracekit.datasets.synthetic.truth import GapCounter, Truth

__all__ = ["SwapThrash"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SwapThrash(Generator):
    """Growth up to a limit, past it, then thrash; `events` = faults, exactly.

    After the first touches every fault brings a random swapped page in and puts a random resident one out,
    so resident memory stays at the limit. Between two faults of a vCPU lie the accesses that hit: their
    number is geometric with the odds limit/pages. Truth: swap-ins and -outs, and the gap from each page's
    swap-out to its return in powers of two. Times: as for `scan`.
    """

    NAME: ClassVar[str] = "swap-thrash"
    ABOUT: ClassVar[str] = "growth past a memory limit, then random swap-ins and evictions with known gaps"

    pages: int = parameter(1 << 16, "pages of the working set", low=8)
    limit: int = parameter(1 << 15, "pages that fit in memory (less than `pages`)", low=4)
    fault_ns: float = parameter(3580.0, "median time of the fault without swapping, ns", low=1)
    swap_in_ns: float = parameter(1840.0, "median swap-in, ns (an NVMe disk: about 80000)", low=1)
    swap_out_ns: float = parameter(2500.0, "median swap-out of the victim, ns", low=1)
    access_ns: float = parameter(400.0, "own work per access, hit or not, ns", low=1)
    sigma: float = parameter(0.3, "spread of the service times: sigma of their logarithm", low=0, high=3)

    @property
    def memory_pages(self) -> int:
        """Memory of the VM in 4 KiB pages."""
        return self.pages

    def blocks(self, truth: Truth) -> Iterator[Columns]:
        """Yield the growth, then blocks of swaps; a page is once in a block, so any order is consistent."""
        clocks = VcpuClocks(self.vcpus)
        rng = self.rng(5)
        limit = min(self.limit, self.pages - 1)
        place = Permutation(self.pages, self.seed)
        gaps = GapCounter(self.pages)
        growth = min(self.pages, self.events)
        order = place(np.arange(growth)).astype(np.int64)

        def play(gfn: np.ndarray, victim: np.ndarray | None, swap_in: bool) -> Columns:
            rows = gfn.size
            accesses = rng.geometric(1 - limit / self.pages, rows) if swap_in else np.ones(rows)
            block, left, served = swap_faults(
                truth,
                clocks,
                gfn,
                victim,
                think_ns=(accesses * self.access_ns).astype(np.uint64),
                fault_ns=lognormal_ns(rng, self.fault_ns, self.sigma, rows),
                swap_in_ns=lognormal_ns(rng, self.swap_in_ns, self.sigma, rows) if swap_in else None,
                swap_out_ns=None if victim is None else lognormal_ns(rng, self.swap_out_ns, self.sigma, rows),
            )
            gaps.end(gfn, served)
            if victim is not None:
                gaps.begin(victim, left)
            return block

        truth.phase("grow", clocks.now_ns)
        filling = min(limit, growth)
        for at in range(0, filling, self.block_rows):
            yield play(order[at : min(at + self.block_rows, filling)], None, swap_in=False)
            truth.resident(clocks.now_ns, min(at + self.block_rows, filling))
        resident = order[:filling].copy()
        # Past the limit each first touch evicts the oldest; a block must not evict what it brings in itself.
        for at in range(filling, growth, step := max(1, min(self.block_rows, filling))):
            gfn = order[at : min(at + step, growth)]
            yield play(gfn, resident[: gfn.size], swap_in=False)
            resident = np.concatenate((resident[gfn.size :], gfn))
            truth.resident(clocks.now_ns, limit)

        out = np.ones(self.pages, bool)
        out[resident] = False
        swapped = np.flatnonzero(out[: self.pages])
        left = self.events - growth
        if left:
            truth.phase("thrash", clocks.now_ns)
        most = max(1, min(self.block_rows, resident.size, swapped.size) // 2)
        while left:
            rows = min(left, most)
            rng.shuffle(resident)
            rng.shuffle(swapped)
            gfn, victim = swapped[:rows].copy(), resident[:rows].copy()
            yield play(gfn, victim, swap_in=True)
            resident[:rows], swapped[:rows] = gfn, victim
            left -= rows
            truth.resident(clocks.now_ns, limit)
        truth.facts |= {
            "first_touches": growth,
            "swap_ins": self.events - growth,
            "swap_outs": self.events - filling,
            "swapped_gap": gaps.to_json(),
        }
