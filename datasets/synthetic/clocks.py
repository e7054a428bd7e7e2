"""When things happen: closed-loop clocks, and service times drawn around a published or assumed median."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["START_NS", "VMM_TID", "VcpuClocks", "lognormal_ns"]

START_NS = 1_000_000_000
"""First instant of every synthetic trace, on its own clock."""

VMM_TID = 1000
"""The thread that plays the VMM (balloon, reclaim); vCPU n is thread VMM_TID + 1 + n."""

Array = npt.NDArray[Any]


def lognormal_ns(
    rng: np.random.Generator, median_ns: float, sigma: float, rows: int
) -> npt.NDArray[np.uint64]:
    """Draw `rows` times in whole ns (at least 1) around a median; sigma is that of the logarithm.

    >>> import numpy as np
    >>> int(np.median(lognormal_ns(np.random.default_rng(1), 3580, 0.3, 100_000))) // 100
    35
    """
    # float32 normals: twice as fast, and their 24 bits are far below the spread of any service time.
    exponent = rng.standard_normal(rows, np.float32)
    exponent *= np.float32(sigma)
    np.exp(exponent, out=exponent)
    exponent *= np.float32(median_ns)
    return exponent.astype(np.uint64) + np.uint64(1)


class VcpuClocks:
    """One clock per vCPU: each alternates its own work (think time) and a fault's service time.

    All vCPUs meet at the end of a block (they wait for the slowest), so blocks follow each other in time
    order without holding rows back.

    >>> import numpy as np
    >>> clocks = VcpuClocks(2, start_ns=0)
    >>> ones = np.ones(4, np.uint64)
    >>> ts, vcpu, order = clocks.run(10 * ones, ones)
    >>> ts.tolist(), vcpu.tolist(), order.tolist(), clocks.now_ns
    ([11, 11, 22, 22], [0, 1, 0, 1], [0, 2, 1, 3], 22)
    """

    def __init__(self, vcpus: int, start_ns: int = START_NS) -> None:
        self.vcpus = vcpus
        self.now_ns = start_ns

    def run(
        self, think_ns: Array, service_ns: Array, shares: Array | None = None
    ) -> tuple[Array, Array, Array]:
        """Give each vCPU its contiguous share of the rows: equal ones, or `shares` rows each.

        Returns (ts_ns u64 completion, vcpu i16, order): all in time order; `order` says which input row
        each output row was, so callers index their own columns with it.
        """
        rows = think_ns.size
        if shares is None:
            bounds = np.linspace(0, rows, self.vcpus + 1).astype(np.int64)
        else:
            bounds = np.concatenate(([0], np.cumsum(shares)))
        elapsed = np.cumsum(think_ns + service_ns, dtype=np.uint64)
        ts = elapsed + np.uint64(self.now_ns)
        for first, last in pairwise(bounds):
            if first:
                ts[first:last] -= elapsed[first - 1]
        vcpu = np.repeat(np.arange(self.vcpus, dtype=np.int16), np.diff(bounds))
        if rows:
            self.now_ns = int(ts[bounds[1:][np.diff(bounds) > 0] - 1].max())
        if self.vcpus == 1:
            return ts, vcpu, np.arange(rows)
        order = np.argsort(ts, kind="stable")
        return ts[order], vcpu[order], order

    def alone(self, think_ns: Array, service_ns: Array) -> Array:
        """Let one other thread (the VMM's) work through the rows while every vCPU waits; gives ts_ns u64."""
        ts = np.cumsum(think_ns + service_ns, dtype=np.uint64) + np.uint64(self.now_ns)
        if ts.size:
            self.now_ns = int(ts[-1])
        return ts

    def idle(self, span_ns: int) -> None:
        """Let time pass on every vCPU."""
        self.now_ns += int(span_ns)
