"""Which probes there are: the C file of each, the kinds it records, and what it is for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["GUEST_PROBES", "HOST_PROBES", "Probe", "host_probes"]


@dataclass(frozen=True)
class Probe:
    """One C file of bpf/ and the kinds it records.

    `optional` names tracepoints (category:event) that not every kernel has and the probe can do without;
    the file guards them with HAVE_. `spare` names those that only make surer what it tells anyway.
    `constants` names what the file needs to know of this kernel (constants.py) and is refused without.
    `inside` names tracepoints whose programs, of whichever probe, run whole and at least once between the
    two time stamps of each latency that this probe measures. `instead_of` names probes that tell the same
    and more, the best first: this is for kernels where they can't run. `adds` says what it tells in other
    probes' rows.
    """

    name: str
    kinds: tuple[str, ...]
    optional: tuple[str, ...] = ()
    spare: tuple[str, ...] = ()
    constants: tuple[str, ...] = ()
    inside: tuple[str, ...] = ()
    instead_of: tuple[str, ...] = ()
    adds: str = ""
    faults: bool = False  # has on_NAME_minor and on_NAME_major, for the kernel's page-fault counts


_CGROUP: Final = ("MEMCG_CGROUP_OFFSET", "CGROUP_NODE_OFFSET", "NODE_ID_OFFSET", "MMU_ADDRESS_IS_GPA")
_WHOSE_MEMORY: Final = ("function:unmaps", "function:ages", "function:ages_lightly")
_HUGE_PAGES: Final = "huge pages of host_fault"

HOST_PROBES: Final[tuple[Probe, ...]] = (
    Probe("process", ()),
    Probe("kvm_ioctl", ("memslot",)),
    Probe("fault_shadow", ("ept_violation", "map"), inside=("kvmmmu:kvm_mmu_spte_requested",)),
    Probe(
        "fault_tdp",
        ("ept_violation", "map"),
        optional=("kvmmmu:kvm_mmu_set_spte", "kvmmmu:kvm_tdp_mmu_spte_changed"),
        constants=("HOST_ISA",),
        inside=("kvm:kvm_page_fault", "kvmmmu:kvm_mmu_spte_requested"),
    ),
    Probe(
        "host_fault",
        ("host_fault",),
        optional=("exceptions:page_fault_user", "exceptions:page_fault_kernel"),
        # The kernel counts a fault before it tells it; only one of the two programs is there.
        inside=("memcg:count_memcg_events", "function:count_memcg_events"),
        faults=True,
    ),
    Probe("reclaim", ("madvise", "process_madvise", "fallocate")),
    Probe(
        "notifier",
        ("unmap", "age"),
        optional=("kvm:kvm_unmap_hva_range", "kvm:kvm_age_hva"),
        spare=_WHOSE_MEMORY,
    ),
    Probe("hypercall", ("hypercall", "hv_hypercall"), optional=("kvm:kvm_hypercall", "kvm:kvm_hv_hypercall")),
    Probe(
        "async_fault",
        ("apf_not_present", "apf_ready", "apf_completed"),
        optional=("kvm:kvm_try_async_get_page",),
    ),
    Probe("ksm", ("ksm_merge", "ksm_break"), constants=("KSM_ADDRESS_OFFSET",)),
    Probe("halt", ("vcpu_block", "vcpu_wake")),
    Probe(
        "memcg",
        ("swap_in", "swap_out"),
        constants=("ITEM_PSWPIN", "ITEM_PSWPOUT", "ITEM_THP_FAULT_ALLOC", "MMU_ADDRESS_IS_GPA"),
        adds=_HUGE_PAGES,
    ),
    Probe(
        "memcg_function",
        ("swap_in", "swap_out"),
        constants=("ITEM_THP_FAULT_ALLOC", *_CGROUP),
        instead_of=("memcg",),
        adds=_HUGE_PAGES,
    ),
    Probe(
        "swap_io",
        ("swap_in", "swap_out"),
        optional=("function:page_read_returns", "function:page_write_returns"),
        constants=("PAGE_MEMCG_OFFSET", *_CGROUP),
        instead_of=("memcg",),
    ),
    Probe("written_out", ("swap_out",), instead_of=("memcg", "swap_io")),
)

GUEST_PROBES: Final[tuple[Probe, ...]] = (
    Probe("own", (), constants=("RECORDER",)),
    Probe("guest_pages", ("page_alloc", "page_free"), constants=("RECORDER", "INIT_ON_ALLOC")),
    Probe(
        "guest_fault",
        ("guest_fault",),
        optional=("exceptions:page_fault_user", "exceptions:page_fault_kernel"),
        constants=("RECORDER",),
        faults=True,
    ),
    Probe("guest_access", ("access",), constants=("DAMON_IS_PHYSICAL",)),
)


_SEEN_OTHERWISE: Final = {"ept": "fault_shadow", "npt": "fault_shadow", "shadow": "fault_tdp"}


def host_probes(mmu_mode: str) -> tuple[Probe, ...]:
    """Return the probes of a host whose KVM maps memory that way (ept, npt, shadow, none).

    A guest's faults are seen one way with nested paging and another without.

    >>> "fault_shadow" in [one.name for one in host_probes("npt")]
    False
    """
    left_out = {_SEEN_OTHERWISE[mmu_mode]} if mmu_mode in _SEEN_OTHERWISE else {"fault_shadow", "fault_tdp"}
    return tuple(probe for probe in HOST_PROBES if probe.name not in left_out)
