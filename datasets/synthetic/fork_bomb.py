"""A fork bomb seen from inside: waves of page allocations and frees, and the host's first-touch faults."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from tracekit.datasets.synthetic.clocks import VcpuClocks, lognormal_ns
from tracekit.datasets.synthetic.generator import HVA_BASE, Columns, Generator, parameter
from tracekit.datasets.synthetic.truth import Truth
from tracekit.trace.schema import ACCESS_WRITE, FLAG_ZEROED, KIND_CODE, PAGE_BYTES

__all__ = ["ForkBomb"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ForkBomb(Generator):
    """Waves of processes allocate pages and exit; `events` = allocations + frees, about.

    The guest's free list is last in, first out, so waves reuse the same frames: the host backs a frame once,
    at the first allocation that writes it (an `ept_violation` just before its `page_alloc`), and never again.
    Truth: allocations, frees, peak, first touches, and the bytes zeroed by both host and guest
    (first allocations that asked for zeroed pages).
    """

    NAME: ClassVar[str] = "fork-bomb"
    ABOUT: ClassVar[str] = (
        "guest allocations and frees in waves, with host first touches: exact double zeroing"
    )

    wave_pages: int = parameter(1 << 14, "most pages allocated in a wave", low=16)
    zeroed_share: float = parameter(0.8, "share of the allocations that the guest zeroes", low=0, high=1)
    fault_ns: float = parameter(3580.0, "median service time of a 4 KiB fault, ns", low=1)
    alloc_ns: float = parameter(900.0, "median time between two allocations of a vCPU, ns", low=1)
    free_ns: float = parameter(250.0, "median time between two frees of a vCPU, ns", low=1)
    sigma: float = parameter(0.4, "spread of all times: sigma of their logarithm", low=0, high=3)

    @property
    def memory_pages(self) -> int:
        """Memory of the VM in 4 KiB pages."""
        return self.wave_pages

    def blocks(self, truth: Truth) -> Iterator[Columns]:
        """Yield waves: allocations (with first-touch faults between them), then the frees in reverse."""
        clocks = VcpuClocks(self.vcpus)
        rng = self.rng(7)
        allocations = max(1, self.events // 2)
        peak = done = zeroed_fresh = zeroed_all = waves = 0
        truth.phase("waves", clocks.now_ns)
        while done < allocations:
            pages = min(int(rng.integers(self.wave_pages // 2, self.wave_pages + 1)), allocations - done)
            for at in range(0, pages, self.block_rows):
                gfn = np.arange(at, min(at + self.block_rows, pages))
                zeroed = rng.random(gfn.size, np.float32) < self.zeroed_share
                fresh = gfn >= peak
                zeroed_fresh += int((zeroed & fresh).sum())
                zeroed_all += int(zeroed.sum())
                yield self._allocate(truth, clocks, rng, gfn=gfn, zeroed=zeroed, fresh=fresh)
            peak = max(peak, pages)
            truth.resident(clocks.now_ns, peak)
            for end in range(pages, 0, -self.block_rows):
                gfn = np.arange(end - 1, max(0, end - self.block_rows) - 1, -1)
                yield self._free(truth, clocks, rng, gfn)
            done += pages
            waves += 1
        truth.facts |= {
            "waves": waves,
            "page_allocs": done,
            "page_frees": done,
            "zeroed_allocs": zeroed_all,
            "first_touches": peak,
            "double_zeroed_bytes": zeroed_fresh * PAGE_BYTES,
            "reused_allocs": done - peak,
        }

    def _allocate(
        self,
        truth: Truth,
        clocks: VcpuClocks,
        rng: np.random.Generator,
        *,
        gfn: np.ndarray,
        zeroed: np.ndarray,
        fresh: np.ndarray,
    ) -> Columns:
        # A fresh page is two rows: the host's fault while the guest writes it, then the allocation's end.
        rows = 1 + fresh.astype(np.int64)
        is_fault = np.zeros(int(rows.sum()), bool)
        is_fault[(np.cumsum(rows) - 2)[fresh]] = True
        gfn, zeroed = np.repeat(gfn, rows), np.repeat(zeroed, rows) & ~is_fault
        think = lognormal_ns(rng, self.alloc_ns, self.sigma, gfn.size)
        think[1:][is_fault[:-1]] = 1
        latency = lognormal_ns(rng, self.fault_ns, self.sigma, gfn.size) * is_fault
        # A pair is not to be split between two vCPUs, so a share ends where an allocation ends.
        ends = np.cumsum(rows)
        shares = np.diff(
            np.concatenate(([0], ends[np.linspace(0, rows.size, self.vcpus + 1).astype(int)[1:] - 1]))
        )
        ts, vcpu, order = clocks.run(think, latency, shares)
        is_fault, zeroed, gfn = is_fault[order], zeroed[order], gfn[order].astype(np.uint64)
        kind = np.where(is_fault, KIND_CODE["ept_violation"], KIND_CODE["page_alloc"]).astype(np.uint8)
        latency = latency[order]
        truth.tally(kind, latency)
        return {
            "ts_ns": ts,
            "kind": kind,
            "tid": np.uint32(1) + vcpu.astype(np.uint32),
            "vcpu": vcpu,
            "gfn": gfn,
            "hva": np.ma.array(gfn * np.uint64(PAGE_BYTES) + np.uint64(HVA_BASE), mask=~is_fault),
            "pages": np.ones(ts.size, np.uint32),
            "level": np.ma.array(np.ones(ts.size, np.uint8), mask=~is_fault),
            "access": (is_fault * np.uint8(ACCESS_WRITE)).astype(np.uint8),
            "flags": (zeroed * np.uint32(FLAG_ZEROED)).astype(np.uint32),
            "latency_ns": np.ma.array(latency, mask=~is_fault),
        }

    def _free(self, truth: Truth, clocks: VcpuClocks, rng: np.random.Generator, gfn: np.ndarray) -> Columns:
        think = lognormal_ns(rng, self.free_ns, self.sigma, gfn.size)
        ts, vcpu, order = clocks.run(think, np.zeros(gfn.size, np.uint64))
        kind = np.full(ts.size, KIND_CODE["page_free"], np.uint8)
        truth.tally(kind, None)
        return {
            "ts_ns": ts,
            "kind": kind,
            "tid": np.uint32(1) + vcpu.astype(np.uint32),
            "vcpu": vcpu,
            "gfn": gfn.astype(np.uint64)[order],
            "pages": np.ones(ts.size, np.uint32),
        }
