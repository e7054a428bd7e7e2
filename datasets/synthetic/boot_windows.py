"""A Windows-like boot: every page of memory is zeroed in order, then part of it is used."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from tracekit.datasets.synthetic.clocks import VcpuClocks, lognormal_ns
from tracekit.datasets.synthetic.generator import Columns, Generator, parameter
from tracekit.datasets.synthetic.places import scattered_runs
from tracekit.datasets.synthetic.truth import Truth
from tracekit.trace.schema import ACCESS_READ, ACCESS_WRITE, PAGE_BYTES

__all__ = ["BootWindows"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BootWindows(Generator):
    """Zero everything, then use: `events` = pages zeroed + pages used, exactly.

    Zeroing makes the host allocate and zero each page, and the guest zeroes it again: the whole of memory is
    zeroed twice. The use phase makes no fault (the pages are mapped), so it is given as `access`
    rows, which a host-only recording would not hold: `accesses=0` leaves them out.

    Guest clearing speed: 2.4 GB/s, from the per-vCPU ticks in QEMU's RFC "Support for Hyper-V's
    HvExtCallGetBootZeroedMemory()" (2026-01-12); fault time: hyperalloc-bench, 3.58 us per 4K EPT fault.
    """

    NAME: ClassVar[str] = "boot-windows"
    ABOUT: ClassVar[str] = "Windows-like boot: the guest zeroes all memory, then uses part of it"

    used: float = parameter(0.25, "share of memory really used after zeroing", low=0, high=1)
    accesses: int = parameter(
        1, "1: first uses as access rows; 0: faults only, as a host sees it", low=0, high=1
    )
    mean_run: float = parameter(11.0, "mean run of neighbouring pages when used", low=1, high=64)
    fault_ns: float = parameter(3580.0, "median service time of a 4 KiB fault, ns", low=1)
    clear_ns: float = parameter(1700.0, "median time the guest takes to clear 4 KiB, ns", low=1)
    use_ns: float = parameter(9000.0, "median own work between two first uses of a vCPU, ns", low=1)
    sigma: float = parameter(0.2, "spread of all times: sigma of their logarithm", low=0, high=3)

    @property
    def memory_pages(self) -> int:
        """Memory of the VM in 4 KiB pages."""
        share = 1 + self.used * self.accesses
        return max(1, round(self.events / share))

    def blocks(self, truth: Truth) -> Iterator[Columns]:
        """Yield the zeroing pass in ascending order, then the first uses."""
        clocks = VcpuClocks(self.vcpus)
        rng = self.rng(2)
        memory = self.memory_pages
        used = self.events - memory if self.accesses else round(memory * self.used)
        truth.facts |= {
            "first_touches": memory,
            "double_zeroed_bytes": memory * PAGE_BYTES,
            "used_pages": used,
            "first_touches_if_zeroing_skipped": used,
        }
        truth.phase("zero", clocks.now_ns)
        zeroed = 0
        for rows in self.counts(memory):
            think = lognormal_ns(rng, self.clear_ns, self.sigma, rows)
            fault = lognormal_ns(rng, self.fault_ns, self.sigma, rows)
            gfn = np.arange(zeroed, zeroed + rows)
            yield self.faults(
                truth, clocks, gfn, think_ns=think, latency_ns=fault, access=np.full(rows, ACCESS_WRITE)
            )
            zeroed += rows
            truth.resident(clocks.now_ns, zeroed)
        truth.phase("use", clocks.now_ns)
        if not self.accesses:
            return
        for used_gfn in scattered_runs(
            memory, used, slot_pages=32, mean_run=self.mean_run, seed=self.seed, block=self.block_rows
        ):
            rows = used_gfn.size
            think = lognormal_ns(rng, self.use_ns, self.sigma, rows)
            access = np.where(rng.random(rows, np.float32) < 0.7, ACCESS_WRITE, ACCESS_READ)
            no_time = np.zeros(rows, np.uint64)
            yield self.faults(
                truth, clocks, used_gfn, think_ns=think, latency_ns=no_time, access=access, kind="access"
            )
            truth.resident(clocks.now_ns, memory)
