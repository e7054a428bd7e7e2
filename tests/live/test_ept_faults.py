"""EPT violations, which no machine here has: the very programs, run by the kernel on what KVM would tell.

From the tracepoints' arguments through the programs, the ring and the decoder to a row; with the fields of
today's kernels, and with those of before 6.1.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from tests.live.made_up import MadeUp, made_up_point
from tracekit.probes import decode, tracefs
from tracekit.probes.wire import VALID
from tracekit.trace.schema import FLAG_GUEST_WALK, FLAG_KERNEL, FLAG_PRESENT, KIND_CODE

pytestmark = pytest.mark.live("bpf", "root")

OLD = {
    "kvm_exit": ("exit_reason", "guest_rip", "isa"),
    "kvm_page_fault": ("fault_address", "error_code"),
    "kvm_mmu_set_spte": ("gfn", "level"),
    "kvm_tdp_mmu_spte_changed": ("gfn", "level", "new_spte"),
    "kvm_entry": (),
    "kvm_userspace_exit": (),
}
NEW = OLD | {
    "kvm_exit": ("exit_reason", "guest_rip", "isa", "vcpu_id"),
    "kvm_page_fault": ("fault_address", "error_code", "vcpu_id"),
}
VMX, EPT_VIOLATION, EPT_MISCONFIG, ENTRY_FAILED = 1, 48, 49, 1 << 31
# Of the exit qualification (Intel SDM 28.2.1): what was tried, what the entry allowed, whose access it was.
READ, WRITE, FETCH, READABLE, LINEAR, FINAL = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 7, 1 << 8
LEAF, LARGE = 1, 1 << 7


class Vcpu(MadeUp):
    """The programs for nested paging on Intel, and this thread traced as a vCPU of VM 3."""

    def __init__(self, points: dict[str, tuple[str, ...]]) -> None:
        def lookup(category: str, event: str) -> tracefs.Tracepoint | None:
            names = points.get(event)
            if names is None:
                return tracefs.tracepoint(category, event)
            return made_up_point(category, event, *names)

        super().__init__(lookup, ("kvm_ioctl", "fault_tdp"), points, mmu=("ept", "kvm_intel"))
        self.trace_this_thread()

    def see(self, *events: tuple[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
        """Let the events happen in this thread; return the columns of the rows that come of them."""
        for event, arguments in events:
            self.run(event, *arguments)
        return decode.columns(self.records(), "ept")


@pytest.fixture(scope="module", params=[OLD, NEW], ids=["before 6.1", "today"])
def vcpu(request: pytest.FixtureRequest) -> Iterator[Vcpu]:
    with Vcpu.loaded(request.param) as made:
        yield made


def fault(
    address: int,
    qualification: int,
    *mapped: tuple[str, tuple[int, ...]],
    reason: int = EPT_VIOLATION,
    rip: int = 0xFFFF_8000,
):
    return (
        ("kvm_exit", (reason, rip, VMX, 1)),
        ("kvm_page_fault", (address, qualification, 1)),
        *mapped,
        ("kvm_entry", ()),
    )


@pytest.mark.parametrize(
    ("qualification", "access", "flags"),
    [
        (READ | LINEAR | FINAL, 1, 0),
        (WRITE | LINEAR | FINAL, 2, 0),
        (READ | WRITE | LINEAR | FINAL, 3, 0),  # a page walk that would set accessed and dirty bits
        (FETCH | LINEAR | FINAL, 4, 0),
        (WRITE | READABLE | LINEAR | FINAL, 2, FLAG_PRESENT),  # write protection
        (READ | LINEAR, 1, FLAG_GUEST_WALK),  # the guest's own page tables
    ],
)
@pytest.mark.parametrize("maker", ["kvm_mmu_set_spte", "kvm_tdp_mmu_spte_changed"])
def test_an_ept_violation_is_a_row(
    vcpu: Vcpu, maker: str, qualification: int, access: int, flags: int
) -> None:
    gfn = 0x12345
    rows = vcpu.see(*fault(gfn << 12 | 0x678, qualification, (maker, (gfn, 1, LEAF))))
    assert rows["kind"].tolist() == [KIND_CODE["ept_violation"]]
    assert (rows["vm"][0], rows["vcpu"][0], rows["gfn"][0], rows["level"][0]) == (3, 1, gfn, 1)
    assert (rows["access"][0], rows["flags"][0], rows["pages"][0]) == (access, flags, 1)
    assert rows["rip"][0] == 0xFFFF_8000
    assert 0 < rows["latency_ns"][0] < 1_000_000_000
    assert rows["valid"][0] & VALID["latency_ns"]


@pytest.mark.parametrize(
    ("rip", "flags"), [(0x7FFF_FFFF_F000, 0), (0xFFFF_8000_0000_0000, FLAG_KERNEL)], ids=["user", "kernel"]
)
def test_the_half_of_the_addresses_tells_the_guests_mode(vcpu: Vcpu, rip: int, flags: int) -> None:
    rows = vcpu.see(*fault(0x5000, READ | LINEAR | FINAL, ("kvm_mmu_set_spte", (5, 1)), rip=rip))
    assert (rows["rip"][0], rows["flags"][0]) == (rip, flags)


def test_a_large_page_begins_at_another_gfn_than_the_one_touched(vcpu: Vcpu) -> None:
    touched = 0x12345
    changed = ("kvm_tdp_mmu_spte_changed", (0x12200, 2, LEAF | LARGE))
    rows = vcpu.see(*fault(touched << 12, WRITE | LINEAR | FINAL, changed))
    assert (rows["gfn"][0], rows["pages"][0], rows["level"][0], rows["arg"][0]) == (0x12200, 512, 2, touched)


def test_other_exits_are_none_and_device_memory_maps_nothing(vcpu: Vcpu) -> None:
    other = [
        (name, args) for name, args in fault(0x5000, 0, reason=EPT_MISCONFIG) if name != "kvm_page_fault"
    ]
    assert len(vcpu.see(*other)["kind"]) == 0
    # An exit that KVM answers in user space: complete when it leaves for the VMM, without a level.
    rows = vcpu.see(*fault(0xFEE0_0000, WRITE | LINEAR | FINAL)[:2], ("kvm_userspace_exit", ()))
    assert rows["kind"].tolist() == [KIND_CODE["ept_violation"]]
    assert not rows["valid"][0] & VALID["level"]


def test_the_reasons_high_bits_are_not_part_of_it(vcpu: Vcpu) -> None:
    rows = vcpu.see(
        *fault(
            0x5000, READ | LINEAR | FINAL, ("kvm_mmu_set_spte", (5, 1)), reason=ENTRY_FAILED | EPT_VIOLATION
        )
    )
    assert rows["valid"][0] & VALID["latency_ns"]
