"""Which probes there are: the C file of each, the kinds it records, and what it is for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["HOST_PROBES", "Probe"]


@dataclass(frozen=True)
class Probe:
    """One C file of bpf/ and the kinds it records.

    `optional` names tracepoints (category:event) that not every kernel has and the probe can do without;
    the file guards them with HAVE_.
    """

    name: str
    kinds: tuple[str, ...]
    optional: tuple[str, ...] = ()


HOST_PROBES: Final[tuple[Probe, ...]] = (
    Probe("process", ()),
    Probe("kvm_ioctl", ("memslot",)),
    Probe("fault_shadow", ("ept_violation", "map")),
    Probe(
        "fault_tdp",
        ("ept_violation", "map"),
        optional=("kvmmmu:kvm_mmu_set_spte", "kvmmmu:kvm_tdp_mmu_spte_changed"),
    ),
    Probe(
        "host_fault",
        ("host_fault",),
        optional=("exceptions:page_fault_user", "exceptions:page_fault_kernel"),
    ),
    Probe("reclaim", ("madvise", "process_madvise", "fallocate")),
)
