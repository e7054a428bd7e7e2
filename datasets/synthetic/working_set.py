"""A working set with Zipf popularity whose hot pages move from phase to phase."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from tracekit.datasets.synthetic.clocks import VcpuClocks, lognormal_ns
from tracekit.datasets.synthetic.generator import Columns, Generator, parameter
from tracekit.datasets.synthetic.places import Permutation
from tracekit.datasets.synthetic.truth import Truth
from tracekit.trace.schema import ACCESS_READ, ACCESS_WRITE, KIND_CODE

__all__ = ["WorkingSet"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkingSet(Generator):
    """Accesses to `pages` pages, popularity ~ 1 / rank**skew; `events` = access rows, exactly.

    The first access to a page faults, and that `ept_violation` row comes on top. In each phase the ranks move
    on by `shift` of the set, so some hot pages turn cold. Truth: accesses and distinct pages of each
    phase, and its hottest page with its count.
    """

    NAME: ClassVar[str] = "working-set"
    ABOUT: ClassVar[str] = "Zipf accesses in phases: the hot pages move, with exact counts per phase"

    pages: int = parameter(1 << 16, "pages in the set", low=2)
    skew: float = parameter(0.9, "Zipf exponent (not 1)", low=0, high=3)
    phases: int = parameter(4, "phases of equal length", low=1)
    shift: float = parameter(0.25, "share of the set by which ranks move at a phase change", low=0, high=1)
    write_share: float = parameter(0.5, "share of accesses that write", low=0, high=1)
    fault_ns: float = parameter(3580.0, "median service time of a 4 KiB fault, ns", low=1)
    think_ns: float = parameter(2000.0, "median own work between two accesses of a vCPU, ns", low=1)
    sigma: float = parameter(0.5, "spread of both times: sigma of their logarithm", low=0, high=3)

    @property
    def memory_pages(self) -> int:
        """Memory of the VM in 4 KiB pages."""
        return self.pages

    def ranks(self, rng: np.random.Generator, rows: int) -> npt.NDArray[np.int64]:
        """Draw ranks 0..pages-1 by inverting the continuous power law on [1, pages + 1) and flooring it."""
        power = 1.0 - (self.skew if abs(self.skew - 1.0) > 1e-9 else 1.0 + 1e-9)
        top = (self.pages + 1.0) ** power
        rank = (rng.random(rows) * (top - 1.0) + 1.0) ** (1.0 / power)
        whole: npt.NDArray[np.int64] = rank.astype(np.int64) - 1
        return whole.clip(0, self.pages - 1)

    def blocks(self, truth: Truth) -> Iterator[Columns]:
        """Yield blocks of accesses, with the fault row of a page's first access just before it."""
        clocks = VcpuClocks(self.vcpus)
        rng = self.rng(3)
        place = Permutation(self.pages, self.seed)(np.arange(self.pages)).astype(np.int64)
        touched = np.zeros(self.pages, bool)
        per_phase: list[dict[str, Any]] = []
        bounds = np.linspace(0, self.events, self.phases + 1).astype(np.int64)
        for phase, accesses in enumerate(np.diff(bounds).tolist()):
            truth.phase(f"phase-{phase}", clocks.now_ns)
            moved = int(phase * self.shift * self.pages)
            hits = np.zeros(self.pages, np.int64)
            for rows in self.counts(accesses):
                gfn = place[(self.ranks(rng, rows) + moved) % self.pages]
                hits += np.bincount(gfn, minlength=self.pages)
                yield self._block(truth, clocks, rng, gfn, touched)
                truth.resident(clocks.now_ns, int(touched.sum()))
            hottest = int(hits.argmax())
            per_phase.append(
                {
                    "accesses": accesses,
                    "distinct_pages": int((hits > 0).sum()),
                    "hottest_gfn": hottest,
                    "hottest_accesses": int(hits[hottest]),
                    "end_ns": clocks.now_ns,
                }
            )
        truth.facts |= {"first_touches": int(touched.sum()), "phases": per_phase}

    def _block(
        self,
        truth: Truth,
        clocks: VcpuClocks,
        rng: np.random.Generator,
        gfn: npt.NDArray[Any],
        touched: npt.NDArray[np.bool_],
    ) -> Columns:
        # A page belongs to one vCPU, so its accesses keep the order in which they were drawn, fault first.
        owner = (gfn % self.vcpus).astype(np.uint16)
        gfn = gfn[np.argsort(owner, kind="stable")]
        fresh = np.flatnonzero(~touched[gfn])
        first = np.zeros(gfn.size, np.int64)
        first[fresh[np.unique(gfn[fresh], return_index=True)[1]]] = 1
        touched[gfn] = True

        gfn = np.repeat(gfn, 1 + first)
        is_fault = np.zeros(gfn.size, bool)
        is_fault[(np.cumsum(1 + first) - 2)[first == 1]] = True
        think = lognormal_ns(rng, self.think_ns, self.sigma, gfn.size)
        think[1:][is_fault[:-1]] = 1  # the access that faulted goes on as soon as the fault is served
        latency = lognormal_ns(rng, self.fault_ns, self.sigma, gfn.size) * is_fault
        write = rng.random(gfn.size, np.float32) < self.write_share
        write[:-1][is_fault[:-1]] = write[1:][is_fault[:-1]]
        return self.faults(
            truth,
            clocks,
            gfn,
            think_ns=think,
            latency_ns=latency,
            access=np.where(write, ACCESS_WRITE, ACCESS_READ),
            kind=np.where(is_fault, KIND_CODE["ept_violation"], KIND_CODE["access"]).astype(np.uint8),
            shares=np.bincount(gfn % self.vcpus, minlength=self.vcpus),
        )
