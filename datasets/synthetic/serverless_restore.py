"""Clones of one serverless snapshot, restored lazily: their faults, in which order, how alike they are."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from tracekit.datasets.synthetic.clocks import VcpuClocks, lognormal_ns
from tracekit.datasets.synthetic.generator import Columns, Generator, parameter
from tracekit.datasets.synthetic.merge import merge_streams
from tracekit.datasets.synthetic.places import scattered_runs
from tracekit.datasets.synthetic.truth import Truth
from tracekit.trace.schema import ACCESS_READ, ACCESS_WRITE

__all__ = ["ServerlessRestore"]

Array = npt.NDArray[Any]

WEIBULL_SHAPE, WEIBULL_SCALE_NS = 1.889, 364.2e6
"""The Weibull curve through the two published points: half of the faults by 300 ms, 98 % by 750 ms."""

PUBLISHED_FAULTS = 56_300


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerlessRestore(Generator):
    """`clones` restores of a snapshot side by side; `events` = faults of all clones, about.

    Defaults give what fcvm measured for a Chromium snapshot restored through userfaultfd (fcvm PR 742):
    56,300 faults per clone, 5.6 us each, the next fault on the next page in 8.6 % of cases, half of the
    faults by 300 ms and 98 % by 750 ms, 82.2 % of the union of 8 clones' pages hit by all, median
    Jaccard 0.927.
    Truth: the same figures as they came out, exactly. More events: longer restores, same shape.
    """

    NAME: ClassVar[str] = "serverless-restore"
    ABOUT: ClassVar[str] = "clones of a snapshot restored lazily, alike as published (fcvm PR 742)"

    events: int = parameter(8 * PUBLISHED_FAULTS, "faults of all clones together, about", low=64)
    vcpus: int = parameter(1, "virtual CPUs per clone", low=1, high=1024)
    clones: int = parameter(8, "restored VMs", low=1, high=256)
    core: float = parameter(0.822, "share of the union that every clone touches", low=0, high=1)
    odds: float = parameter(0.75, "odds that a clone touches a page outside the core", low=0.01, high=0.99)
    next_page: float = parameter(0.086, "share of faults on the page after the last one", low=0, high=0.7)
    jitter_runs: float = parameter(64.0, "how far a clone's order strays from the common one, runs", low=0)
    stagger_ms: float = parameter(20.0, "time between the starts of two clones, ms", low=0)
    write_share: float = parameter(0.45, "share of the faults that are writes (assumed)", low=0, high=1)
    fault_ns: float = parameter(5600.0, "median service time of a fault, ns", low=1)
    sigma: float = parameter(0.3, "spread of service times: sigma of their logarithm", low=0, high=3)

    @property
    def union_pages(self) -> int:
        """Pages that at least one clone touches."""
        return max(16, round(self.events / self.clones / (self.core + (1 - self.core) * self.odds)))

    @property
    def memory_pages(self) -> int:
        """Memory of the VM in 4 KiB pages."""
        return self.union_pages * 9  # 2 GiB of guest memory around 56,300 faults

    @property
    def vm_pages(self) -> list[int]:
        """Memory of each clone in 4 KiB pages."""
        return [self.memory_pages] * self.clones

    def blocks(self, truth: Truth) -> Iterator[Columns]:
        """Yield the faults of all clones, merged in time."""
        shared = np.zeros((self.clones, self.clones), np.int64)
        union: dict[str, Any] = {"pages": 0, "by_all": 0, "shared": shared}
        per_clone: list[dict[str, Any]] = [{} for _ in range(self.clones)]
        truth.phase("restore", VcpuClocks(1).now_ns)
        # One stream of runs feeds all clones: it holds the blocks between the slowest and the fastest.
        runs = itertools.tee(self._runs(union), self.clones)
        yield from merge_streams([self._clone(c, truth, per_clone[c], runs[c]) for c in range(self.clones)])
        alone = np.diag(shared)
        pairs = np.triu_indices(self.clones, 1)
        jaccard = shared[pairs] / (alone[pairs[0]] + alone[pairs[1]] - shared[pairs])
        truth.facts |= {
            "clones": per_clone,
            "union_pages": union["pages"],
            "pages_hit_by_all": union["by_all"],
            "jaccard_median": float(np.median(jaccard)) if jaccard.size else None,
        }

    def _runs(self, union: dict[str, Any]) -> Iterator[tuple[Array, Array, Array]]:
        """Yield runs in the common order: first page u64, length, which clones touch it [run, clone]."""
        blocks = scattered_runs(
            self.memory_pages,
            self.union_pages,
            slot_pages=8,
            mean_run=1 / (1 - self.next_page),
            seed=self.seed,
            block=max(1024, self.block_rows // self.clones),
        )
        for number, pages in enumerate(blocks):
            heads = np.flatnonzero(np.diff(pages.astype(np.int64), prepend=-2) != 1)
            lengths = np.diff(heads, append=pages.size)
            member = self._members(number, heads.size)
            # Exact in floats (sums below 2**53), and unlike integers they multiply through BLAS.
            weighted = (member * lengths[:, None]).astype(np.float64)
            union["shared"] += (weighted.T @ member.astype(np.float64)).astype(np.int64)
            union["by_all"] += int(lengths[member.all(1)].sum())
            union["pages"] += pages.size
            yield pages[heads], lengths, member

    def _clone(
        self, clone: int, truth: Truth, facts: dict[str, Any], runs: Iterator[tuple[Array, Array, Array]]
    ) -> Iterator[Columns]:
        clocks = VcpuClocks(self.vcpus)
        clocks.idle(int(clone * self.stagger_ms * 1e6))
        start_ns = clocks.now_ns
        rng = self.rng(8, 1, clone)
        expected = self.events / self.clones
        longer = expected / PUBLISHED_FAULTS
        done = neighbours = 0
        last = -2
        for heads, run_lengths, member in runs:
            mine = np.flatnonzero(member[:, clone])
            mine = mine[np.argsort(mine + rng.standard_normal(mine.size) * self.jitter_runs)]
            starts, lengths = heads[mine], run_lengths[mine]
            ends = np.cumsum(lengths)
            if not ends.size:
                continue
            gfn = np.repeat(starts, lengths) + (
                np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
            ).astype(np.uint64)
            neighbours += int((np.diff(gfn.astype(np.int64), prepend=last) == 1).sum())
            last = int(gfn[-1])

            # Faults arrive along the published curve, by its slope at the middle of each fault's share
            # (float32: a gap needs no more digits); each vCPU takes a share of the block, so has more time.
            place = (
                ((np.arange(done, done + gfn.size) + 0.5) / (expected + 1))
                .clip(max=0.9999)
                .astype(np.float32)
            )
            depth = -np.log1p(-place)
            slope = depth ** np.float32(1 / WEIBULL_SHAPE - 1) / (1 - place)
            slope *= np.float32(WEIBULL_SCALE_NS * longer / WEIBULL_SHAPE * self.vcpus / expected)
            fault = lognormal_ns(rng, self.fault_ns, self.sigma, gfn.size)
            think = (slope - fault.astype(np.float32)).clip(min=100).astype(np.uint64)
            write = rng.random(gfn.size, np.float32) < self.write_share
            block = self.faults(
                truth,
                clocks,
                gfn,
                think_ns=think,
                latency_ns=fault,
                access=np.where(write, ACCESS_WRITE, ACCESS_READ),
            )
            block["vm"] = np.full(gfn.size, clone, np.uint16)
            block["tid"] += np.uint32(clone * 1000)
            done += gfn.size
            yield block
        facts |= {
            "faults": done,
            "next_page_faults": neighbours,
            "start_ns": start_ns,
            "end_ns": clocks.now_ns,
        }

    def _members(self, number: int, runs: int) -> npt.NDArray[np.bool_]:
        """Decide which clones touch each run: the core by all, the rest by some but not all."""
        rng = self.rng(8, 0, number)
        member = np.ones((runs, self.clones), bool)
        if self.clones == 1:
            return member
        rest = np.flatnonzero(rng.random(runs) >= self.core)
        while rest.size:
            member[rest] = rng.random((rest.size, self.clones)) < self.odds
            hits = member[rest].sum(1)
            rest = rest[(hits == 0) | (hits == self.clones)]
        return member
