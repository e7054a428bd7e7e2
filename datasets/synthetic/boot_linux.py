"""A Linux-like boot: kernel image, struct pages at the top of memory, then user space in scattered runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from tracekit.datasets.synthetic.clocks import VcpuClocks, lognormal_ns
from tracekit.datasets.synthetic.generator import Columns, Generator, parameter
from tracekit.datasets.synthetic.places import scattered_runs
from tracekit.datasets.synthetic.truth import Truth
from tracekit.trace.schema import ACCESS_EXECUTE, ACCESS_READ, ACCESS_WRITE

__all__ = ["BootLinux"]

STRUCT_PAGE_SHARE = 64
"""One page in 64 holds struct pages: 64 bytes of struct page per 4096-byte page on x86-64."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BootLinux(Generator):
    """First touches of a guest that does not zero free memory; `events` = first touches, exactly.

    Memory is sized so that `touched` of it is used at the end. Fault time: the 3.58 us per 4K EPT fault of
    the HyperAlloc artefact (luhsra/hyperalloc-bench, Xeon Gold 6252); think time is assumed.
    """

    NAME: ClassVar[str] = "boot-linux"
    ABOUT: ClassVar[str] = "Linux-like boot: first touches only, nothing zeroed twice by the guest"

    touched: float = parameter(0.35, "share of memory touched by the end", low=0.05, high=0.9)
    kernel_share: float = parameter(
        0.03, "share of the touches that are the kernel image, in order", low=0, high=0.5
    )
    mean_run: float = parameter(11.0, "mean run of neighbouring pages in user space", low=1, high=64)
    write_share: float = parameter(0.7, "share of user-space first touches that are writes", low=0, high=1)
    fault_ns: float = parameter(3580.0, "median service time of a 4 KiB fault, ns", low=1)
    think_ns: float = parameter(4000.0, "median own work between two faults of a vCPU, ns", low=1)
    sigma: float = parameter(0.3, "spread of both times: sigma of their logarithm", low=0, high=3)

    @property
    def memory_pages(self) -> int:
        """Memory of the VM in 4 KiB pages."""
        return max(64, int(self.events / self.touched) + 1)

    def blocks(self, truth: Truth) -> Iterator[Columns]:
        """Yield the kernel image, then struct pages, then user space."""
        clocks = VcpuClocks(self.vcpus)
        rng = self.rng(1)
        kernel = int(self.events * self.kernel_share)
        struct_pages = min(self.memory_pages // STRUCT_PAGE_SHARE, self.events - kernel)
        user = self.events - kernel - struct_pages
        top = self.memory_pages - struct_pages
        truth.facts |= {
            "first_touches": self.events,
            "kernel_pages": kernel,
            "struct_pages": struct_pages,
            "user_pages": user,
            "double_zeroed_bytes": 0,
        }
        done = 0

        def touch(gfn: np.ndarray, access: np.ndarray) -> Columns:
            nonlocal done
            done += gfn.size
            think = lognormal_ns(rng, self.think_ns, self.sigma, gfn.size)
            fault = lognormal_ns(rng, self.fault_ns, self.sigma, gfn.size)
            block = self.faults(truth, clocks, gfn, think_ns=think, latency_ns=fault, access=access)
            truth.resident(clocks.now_ns, done)
            return block

        for name, base, pages in (("kernel", 0, kernel), ("struct-pages", top, struct_pages)):
            truth.phase(name, clocks.now_ns)
            at = base
            for rows in self.counts(pages):
                yield touch(np.arange(at, at + rows), np.full(rows, ACCESS_WRITE))
                at += rows
        truth.phase("user-space", clocks.now_ns)
        kinds_of_access = np.array([ACCESS_WRITE, ACCESS_READ, ACCESS_READ | ACCESS_EXECUTE], np.uint8)
        for offset in scattered_runs(
            top - kernel, user, slot_pages=32, mean_run=self.mean_run, seed=self.seed, block=self.block_rows
        ):
            draw = rng.random(offset.size, np.float32)
            reads = (draw >= self.write_share).astype(np.int8)
            runs = draw >= 1 - (1 - self.write_share) / 3
            yield touch(offset + np.uint64(kernel), kinds_of_access[reads + runs])
