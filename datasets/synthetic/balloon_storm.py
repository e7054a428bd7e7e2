"""A balloon storm: a guest's memory is taken and given back in cycles, and part of it is touched again."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from tracekit.datasets.synthetic.clocks import VcpuClocks, lognormal_ns
from tracekit.datasets.synthetic.generator import Columns, Generator, parameter
from tracekit.datasets.synthetic.places import Permutation
from tracekit.datasets.synthetic.truth import GapCounter, Truth
from tracekit.trace.schema import ACCESS_WRITE

__all__ = ["BalloonStorm"]

MADV_WILLNEED, MADV_DONTNEED = 3, 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class BalloonStorm(Generator):
    """Touch all memory, then `cycles` x (inflate, deflate, touch again, rest); `events` = rows, about.

    Memory is sized so that the rows come out near `events`. Median times per 4 KiB: inflate 4.45 us (2.54 us
    if the page was never backed), deflate 1.81 us, fault 3.58 us: virtio-balloon 4K in the HyperAlloc
    artefact (luhsra/hyperalloc-bench). Truth: rows, discarded and refaulted pages, gap from discard to reuse.
    """

    NAME: ClassVar[str] = "balloon-storm"
    ABOUT: ClassVar[str] = "balloon inflate/deflate cycles with exact refaults and reuse gaps"

    cycles: int = parameter(4, "inflate/deflate cycles", low=1)
    inflate: float = parameter(0.5, "share of memory inflated in a cycle", low=0.001, high=1)
    touch: float = parameter(0.6, "share of the deflated pages that is touched again", low=0, high=1)
    rest_ms: float = parameter(50.0, "pause between the steps of a cycle, ms", low=0)
    inflate_ns: float = parameter(4450.0, "median discard of a backed page, ns", low=1)
    inflate_empty_ns: float = parameter(2540.0, "median discard of a page never backed, ns", low=1)
    deflate_ns: float = parameter(1810.0, "median deflate of a page, ns", low=1)
    fault_ns: float = parameter(3580.0, "median service time of a 4 KiB fault, ns", low=1)
    think_ns: float = parameter(1000.0, "median own work between two touches of a vCPU, ns", low=1)
    sigma: float = parameter(0.3, "spread of all times: sigma of their logarithm", low=0, high=3)

    @property
    def memory_pages(self) -> int:
        """Memory of the VM in 4 KiB pages."""
        return max(16, round(self.events / (1 + self.cycles * self.inflate * (2 + self.touch))))

    def blocks(self, truth: Truth) -> Iterator[Columns]:
        """Yield the first touches, then each cycle's inflate, deflate and touches."""
        clocks = VcpuClocks(self.vcpus)
        rng = self.rng(6)
        memory = self.memory_pages
        taken = max(1, round(memory * self.inflate))
        again = round(taken * self.touch)
        backed = np.zeros(memory, bool)
        gaps = GapCounter(memory)
        facts = {"first_touches": memory, "inflated": 0, "deflated": 0, "discarded_backed": 0, "refaults": 0}

        def touch(gfn: np.ndarray) -> Columns:
            block = self.faults(
                truth,
                clocks,
                gfn,
                think_ns=lognormal_ns(rng, self.think_ns, self.sigma, gfn.size),
                latency_ns=lognormal_ns(rng, self.fault_ns, self.sigma, gfn.size),
                access=np.full(gfn.size, ACCESS_WRITE),
            )
            backed[gfn] = True
            gaps.end(block["gfn"].astype(np.int64), block["ts_ns"])
            truth.resident(clocks.now_ns, int(np.count_nonzero(backed)))
            return block

        def call(kind: str, gfn: np.ndarray) -> Columns:
            inflating = kind == "balloon_inflate"
            cost = lognormal_ns(rng, self.inflate_ns if inflating else self.deflate_ns, self.sigma, gfn.size)
            if inflating:
                had = backed[gfn]
                ratio = self.inflate_empty_ns / self.inflate_ns
                cost = np.where(had, cost, (cost * ratio).astype(np.uint64) + np.uint64(1))
                facts["discarded_backed"] += int(had.sum())
                backed[gfn] = False
            think = np.full(gfn.size, 200, np.uint64)
            advice = MADV_DONTNEED if inflating else MADV_WILLNEED
            block = self.calls(truth, clocks, kind, gfn, think_ns=think, latency_ns=cost, arg=advice)
            if inflating:
                gaps.begin(gfn[had], block["ts_ns"][had])
                truth.resident(clocks.now_ns, int(np.count_nonzero(backed)))
            return block

        truth.phase("touch-all", clocks.now_ns)
        at = 0
        for rows in self.counts(memory):
            yield touch(np.arange(at, at + rows))
            at += rows
        for cycle in range(self.cycles):
            place = Permutation(memory, self.seed * 1_000_003 + cycle)
            for step, pages in (("inflate", taken), ("deflate", taken), ("touch-again", again)):
                clocks.idle(int(self.rest_ms * 1e6))
                truth.phase(f"{step}-{cycle}", clocks.now_ns)
                at = 0
                for rows in self.counts(pages):
                    gfn = place(np.arange(at, at + rows)).astype(np.int64)
                    yield touch(gfn) if step == "touch-again" else call(f"balloon_{step}", gfn)
                    at += rows
            facts["inflated"] += taken
            facts["deflated"] += taken
            facts["refaults"] += again
        truth.facts |= facts | {"reuse_gap": gaps.to_json()}
