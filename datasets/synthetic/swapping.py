"""A fault that swaps: the victim goes out, the page comes in, the vCPU goes on; for two generators."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tracekit.datasets.synthetic.clocks import VMM_TID, VcpuClocks
from tracekit.datasets.synthetic.generator import HVA_BASE, Columns
from tracekit.datasets.synthetic.truth import Truth
from tracekit.trace.schema import ACCESS_WRITE, FLAG_MAJOR, KIND_CODE, PAGE_BYTES

__all__ = ["swap_faults"]

Array = npt.NDArray[Any]


def swap_faults(
    truth: Truth,
    clocks: VcpuClocks,
    gfn: Array,
    victim: Array | None,
    *,
    think_ns: Array,
    fault_ns: Array,
    swap_in_ns: Array | None,
    swap_out_ns: Array | None,
) -> tuple[Columns, Array, Array]:
    """Play faults under a memory limit; each is up to three rows of one vCPU, nested in time.

    `swap_out` of `victim` (None: there is room), then `swap_in` of `gfn` with FLAG_MAJOR (None: a
    first touch), then the `ept_violation` whose latency covers all of it. Returns the block, and for each
    fault in input order when its victim left and when it was served (ts_ns, u64).
    """
    zero = np.zeros(gfn.size, np.uint64)
    out_ns = zero if swap_out_ns is None else swap_out_ns
    in_ns = zero if swap_in_ns is None else swap_in_ns
    service = out_ns + in_ns + fault_ns
    done, vcpu, order = clocks.run(think_ns, service)
    begun = done - service[order]

    parts: list[tuple[str, Array, Array, Array, int]] = []
    if victim is not None:
        parts.append(("swap_out", victim[order], begun + out_ns[order], out_ns[order], 0))
    if swap_in_ns is not None:
        parts.append(("swap_in", gfn[order], done - fault_ns[order], in_ns[order], FLAG_MAJOR))
    parts.append(("ept_violation", gfn[order], done, service[order], 0))

    rows = len(parts)
    pages = np.stack([p[1] for p in parts], 1).astype(np.uint64).ravel()
    is_fault = np.tile(np.arange(rows) == rows - 1, gfn.size)
    columns: Columns = {
        "ts_ns": np.stack([p[2] for p in parts], 1).ravel(),
        "kind": np.tile(np.array([KIND_CODE[p[0]] for p in parts], np.uint8), gfn.size),
        "tid": np.repeat(vcpu.astype(np.uint32) + np.uint32(VMM_TID + 1), rows),
        "vcpu": np.repeat(vcpu, rows),
        "gfn": pages,
        "hva": pages * np.uint64(PAGE_BYTES) + np.uint64(HVA_BASE),
        "pages": np.ones(pages.size, np.uint32),
        "level": np.ones(pages.size, np.uint8),
        "access": (is_fault * np.uint8(ACCESS_WRITE)).astype(np.uint8),
        "flags": np.tile(np.array([p[4] for p in parts], np.uint32), gfn.size),
        "latency_ns": np.stack([p[3] for p in parts], 1).ravel(),
    }
    if clocks.vcpus > 1:
        # Rows of one fault lie between the faults of other vCPUs.
        by_time = np.argsort(columns["ts_ns"], kind="stable")
        columns = {name: values[by_time] for name, values in columns.items()}
    truth.tally(columns["kind"], columns["latency_ns"])
    left = np.empty_like(done)
    served = np.empty_like(done)
    left[order], served[order] = begun + out_ns[order], done
    return columns, left, served
