"""A cyclic scan over more pages than the memory limit holds: the worst case of LRU, in closed form."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from tracekit.datasets.synthetic.clocks import VcpuClocks, lognormal_ns
from tracekit.datasets.synthetic.generator import Columns, Generator, parameter
from tracekit.datasets.synthetic.swapping import swap_faults
from tracekit.datasets.synthetic.truth import Truth

__all__ = ["Scan"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scan(Generator):
    """One vCPU walks `pages` pages again and again under an LRU limit; `events` = faults, exactly.

    Under LRU every access of every pass misses: fault i is on page i mod pages, and evicts page (i - limit)
    mod pages. So each page is out while pages - limit others come in: that is every refault's
    distance. Swap-in 1.84 us: zram lz4 (Linux commit 0bcac06f27d7); swap-out time is assumed.
    """

    NAME: ClassVar[str] = "scan"
    ABOUT: ClassVar[str] = "cyclic scan under an LRU limit: every access refaults at one known distance"

    vcpus: int = parameter(1, "virtual CPUs (one: the order of a scan is its point)", low=1, high=1)
    pages: int = parameter(1 << 14, "pages scanned", low=2)
    limit: int = parameter(1 << 13, "pages that fit in memory (less than `pages`)", low=1)
    fault_ns: float = parameter(3580.0, "median time of the fault without swapping, ns", low=1)
    swap_in_ns: float = parameter(1840.0, "median swap-in, ns", low=1)
    swap_out_ns: float = parameter(2500.0, "median swap-out of the victim, ns", low=1)
    think_ns: float = parameter(1500.0, "median own work between two faults, ns", low=1)
    sigma: float = parameter(0.25, "spread of all times: sigma of their logarithm", low=0, high=3)

    @property
    def memory_pages(self) -> int:
        """Memory of the VM in 4 KiB pages."""
        return self.pages

    def blocks(self, truth: Truth) -> Iterator[Columns]:
        """Yield first touches that fit, first touches that evict, then refaults that evict."""
        clocks = VcpuClocks(1)
        rng = self.rng(4)
        limit = min(self.limit, self.pages)
        filling = min(limit, self.events)
        first_pass = min(self.pages, self.events)
        refaults = self.events - first_pass if limit < self.pages else 0
        total = first_pass + refaults
        truth.facts |= {
            "first_touches": first_pass,
            "swap_ins": refaults,
            "swap_outs": total - filling,
            "refault_distance_pages": self.pages - limit,
            "resident_pages_max": filling,
        }
        at = 0
        for name, end in (("fill", filling), ("evict", first_pass), ("refault", total)):
            if at < end:
                truth.phase(name, clocks.now_ns)
            for rows in self.counts(end - at):
                fault = np.arange(at, at + rows)
                block, _, _ = swap_faults(
                    truth,
                    clocks,
                    fault % self.pages,
                    None if name == "fill" else (fault - limit) % self.pages,
                    think_ns=lognormal_ns(rng, self.think_ns, self.sigma, rows),
                    fault_ns=lognormal_ns(rng, self.fault_ns, self.sigma, rows),
                    swap_in_ns=lognormal_ns(rng, self.swap_in_ns, self.sigma, rows)
                    if name == "refault"
                    else None,
                    swap_out_ns=None
                    if name == "fill"
                    else lognormal_ns(rng, self.swap_out_ns, self.sigma, rows),
                )
                yield block
                at += rows
                truth.resident(clocks.now_ns, min(at, limit))
