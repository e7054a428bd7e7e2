"""Small KVM guests as runs, and their own account of their pages as a guest's trace."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from tracekit.lab.guest_plan import GuestPlan
from tracekit.lab.validate.case import Recording, Run
from tracekit.trace import Meta, Trace, TraceWriter
from tracekit.trace.batch import events_batch
from tracekit.trace.merge import given_offset, merge

__all__ = ["ORDERS", "guest", "plan_of", "with_account"]

ORDERS: Final[dict[str, tuple[str, ...]]] = {
    "sequential": ("--order", "seq"),
    "random": ("--order", "random"),
}
"""Touch orders by name."""


def guest(pages: int, seed: int, *words: str) -> Run:
    """Return the run of a small guest that touches so many pages."""
    return Run(("lab", "guest", "--pages", str(pages), "--seed", str(seed), *words))


def plan_of(recording: Recording) -> GuestPlan:
    """Return the plan of a recorded small guest."""
    return GuestPlan(**recording.account["plan"])


def with_account(recording: Recording) -> Trace:
    """Return the recording merged with what its guest knows: pages are free, then allocated, one by one.

    What `tracekit record --guest` sees in a Linux guest, the small guest's plan says: all memory is free
    when it starts; a page is allocated when the guest uses it, in the plan's order, spread evenly over the
    phase. Its zeroing of free memory is no allocation.
    """
    plan, account = plan_of(recording), recording.account
    start = min(phase["start_ns"] for vcpu in account["vcpus"] for phase in vcpu["phases"].values())
    columns: list[tuple[Any, str, Any]] = []
    for vcpu in account["vcpus"]:
        gfns = plan.gfns(vcpu["vcpu"])
        phase = vcpu["phases"]["touch"]
        when = phase["start_ns"] + (np.arange(len(gfns)) + 0.5) / len(gfns) * phase["elapsed_ns"]
        columns.append((when.astype(np.int64), "page_alloc", gfns))
    zeroed = np.arange(recording.account["first_gfn"], plan.memory_bytes >> 12, plan.step_bytes >> 12)
    columns.insert(0, (np.full(len(zeroed), start - 1), "page_free", zeroed))
    rows = [(ts, np.full(len(ts), code), gfn) for code, (ts, _, gfn) in enumerate(columns)]
    ts, which, gfn = (np.concatenate(part) for part in zip(*rows, strict=True))
    order = np.argsort(ts, kind="stable")
    kinds = np.array([kind for _, kind, _ in columns])[which]
    path = recording.path.with_suffix(".guest.trace")
    meta = Meta(source="synthetic", start_ns=start - 1, stop_ns=int(ts.max()), extra={"side": "guest"})
    with TraceWriter(path, meta, force=True) as writer:
        writer.append(events_batch(ts_ns=ts[order], kind=list(kinds[order]), gfn=gfn[order]))
    merged, _ = merge(
        recording.path,
        path,
        recording.path.with_suffix(".merged.trace"),
        offset=given_offset(0, 0),
        force=True,
    )
    return merged
