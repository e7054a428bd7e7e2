"""Small KVM guests as runs, and their own account of their pages as a guest's trace."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from tracekit.errors import CapabilityError
from tracekit.lab.guest_plan import GuestPlan
from tracekit.lab.hyperv import HEATS, MEMORY_HEAT_HINT
from tracekit.lab.kvm import CAP_HYPERV, CAP_PRE_FAULT_MEMORY, Kvm
from tracekit.lab.linux_guest import can_run_linux_under_kvm
from tracekit.lab.validate.case import Recording, Run
from tracekit.trace import Meta, Trace, TraceWriter
from tracekit.trace.batch import events_batch
from tracekit.trace.merge import given_offset, merge

__all__ = ["ORDERS", "can_map_ahead", "enlightened", "guest", "plan_of", "with_account"]

ORDERS: Final[dict[str, tuple[str, ...]]] = {
    "sequential": ("--order", "seq"),
    "random": ("--order", "random"),
}
"""Touch orders by name."""


def guest(pages: int, seed: int, *words: str) -> Run:
    """Return the run of a small guest that touches so many pages, on memory that this host has."""
    return Run(("lab", "guest", "--warm-up", "--pages", str(pages), "--seed", str(seed), *words))


@cache
def enlightened() -> tuple[str, str]:
    """Return the words that let a guest call its VMM: Hyper-V's calls where KVM has them, else a port."""
    hyperv = _has(CAP_HYPERV) and can_run_linux_under_kvm()
    return "--enlightened", "hyperv" if hyperv else "port"


@cache
def can_map_ahead() -> bool:
    """Say whether KVM has KVM_PRE_FAULT_MEMORY."""
    return _has(CAP_PRE_FAULT_MEMORY)


def _has(capability: int) -> bool:
    try:
        with Kvm() as kvm:
            return kvm.extension(capability) > 0
    except CapabilityError:
        return False


def plan_of(recording: Recording) -> GuestPlan:
    """Return the plan of a recorded small guest."""
    return recording.account.made(GuestPlan, "plan")


def with_account(
    recording: Recording,
    *,
    behind: tuple[int, int] | None = None,
    uses: str = "page_alloc",
) -> Trace:
    """Return the recording merged with what its guest knows: pages are free, then allocated, one by one.

    What `tracekit record --guest` sees in a Linux guest, the small guest's plan says: all memory is free
    when it starts; a page is allocated when the guest uses it, in the plan's order: just after it faulted,
    and evenly between such moments. Its zeroing of free memory is no allocation. `behind` = (pages of a
    batch, batches): a guest that frees, when it begins a batch, the one so many batches before. `uses`: the
    kind of event that a touch becomes (`access`: a sample of each). Hints that it gave through a port, which
    no probe sees, are rows as those that Hyper-V's own calls leave in a recording.
    """
    plan, account = plan_of(recording), recording.account
    start = min(phase["start_ns"] for vcpu in account["vcpus"] for phase in vcpu["phases"].values()) - 1
    memory_bytes = plan.memory_bytes + plan.added_bytes
    all_memory = np.arange(recording.account["first_gfn"], memory_bytes >> 12, plan.step_bytes >> 12)
    told = []
    # A guest that says what it is done with, or will use, says nothing of memory that it never used.
    if not behind and not plan.hint:
        told.append(_told(np.full(len(all_memory), start), "page_free", all_memory, 0))
    for vcpu in account["vcpus"]:
        gfns = plan.gfns(vcpu["vcpu"])
        for name in ("touch", *(f"touch{turn}" for turn in range(2, plan.passes + 1))):
            phase = vcpu["phases"][name]
            when = _touched_ns(recording, gfns, phase, plan)
            told.append(_told(when.astype(np.int64), uses, gfns, vcpu["vcpu"]))
            if behind:
                batch, back = behind
                begins = np.arange(back * batch, len(gfns), batch)
                at = np.repeat(when[begins].astype(np.int64) - 1, batch)
                told.append(_told(at, "page_free", gfns[: len(at)], vcpu["vcpu"]))
            if plan.hint and plan.enlightened == "port":
                told.append(_hints(plan, gfns, when, int(phase["start_ns"]), vcpu["vcpu"]))
        if plan.hot_add_pages:
            gfns = plan.gfns(vcpu["vcpu"], added=True)
            when = _touched_ns(recording, gfns, vcpu["phases"]["touch_added"], plan)
            told.append(_told(when.astype(np.int64), uses, gfns, vcpu["vcpu"]))
    rows = pl.concat(told).sort("ts_ns", maintain_order=True)
    path = recording.path.with_suffix(".guest.trace")
    meta = Meta(source="synthetic", start_ns=start, stop_ns=int(rows["ts_ns"][-1]), extra={"side": "guest"})
    with TraceWriter(path, meta, force=True) as writer:
        writer.append(
            events_batch(
                ts_ns=rows["ts_ns"].to_numpy(),
                kind=list(rows["kind"]),
                gfn=rows["gfn"].to_numpy(),
                vcpu=rows["vcpu"].to_numpy(),
                pages=rows["pages"].to_numpy(),
                arg=rows["arg"].to_numpy(),
            )
        )
    merged, _ = merge(
        recording.path,
        path,
        recording.path.with_suffix(".merged.trace"),
        offset=given_offset(0, 0),
        force=True,
    )
    return merged


def _hints(
    plan: GuestPlan, gfns: npt.NDArray[np.int64], when: npt.NDArray[np.float64], start: int, vcpu: int
) -> pl.DataFrame:
    """Return a pass's hints: the guest begins a batch, and before its touch hints one ahead or behind."""
    assert plan.hint is not None
    begun = np.arange(0, len(gfns), plan.hint_batch)
    meant = begun + plan.hint_lead * plan.hint_batch
    there = (meant >= 0) & (meant < len(gfns))
    begun, meant = begun[there], meant[there]
    after = np.where(begun > 0, when[begun - 1] + 1, start)
    pages = np.minimum(plan.hint_batch, len(gfns) - meant)
    arg = MEMORY_HEAT_HINT | 1 + HEATS.index(plan.hint) << 16
    return _told(after.astype(np.int64), "hv_hypercall", gfns[meant], vcpu, pages=pages, arg=arg)


def _touched_ns(
    recording: Recording, gfns: npt.NDArray[np.int64], phase: Mapping[str, int], plan: GuestPlan
) -> npt.NDArray[np.float64]:
    """Return when each page was touched in a phase: as faults and hints tell, and evenly in between."""
    start, end = phase["start_ns"], phase["start_ns"] + phase["elapsed_ns"]
    during = recording.trace.events.filter(pl.col("ts_ns").is_between(start, end))
    faults = during.filter(pl.col("kind") == "ept_violation").group_by("gfn").agg(pl.col("ts_ns").first())
    place = {gfn: n for n, gfn in enumerate(gfns.tolist())}
    known = [(float(place[gfn]), ts + 1) for gfn, ts in faults.collect().iter_rows() if gfn in place]
    if plan.hint:  # a recorded hint comes as its batch begins, before that batch's first touch
        hints = during.filter(pl.col("kind") == "hv_hypercall", pl.col("arg") >= 1 << 16)
        away = plan.hint_lead * plan.hint_batch
        rows = hints.select("gfn", "ts_ns").collect().iter_rows()
        known += [(place[gfn] - away - 0.5, ts) for gfn, ts in rows if gfn in place]
    index, ts = zip((-0.5, start), *sorted(known), (len(gfns) - 0.5, end), strict=True)
    # Float64 holds ns since boot exactly for a hundred days.
    return np.asarray(np.interp(np.arange(len(gfns)), index, ts), np.float64)


def _told(
    ts_ns: npt.NDArray[np.int64],
    kind: str,
    gfn: npt.NDArray[np.int64],
    vcpu: int,
    *,
    pages: npt.NDArray[np.int64] | int = 1,
    arg: int = 1,
) -> pl.DataFrame:
    return pl.DataFrame({"ts_ns": ts_ns, "gfn": gfn, "pages": np.broadcast_to(pages, len(gfn))}).with_columns(
        kind=pl.lit(kind), vcpu=pl.lit(vcpu), arg=pl.lit(arg)
    )
