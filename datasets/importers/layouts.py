"""How the kernel prints each event, and what it is for us: a table of layouts, one line per print format.

Formats are those of the kernels' trace headers: 6.18 read from tracefs, older ones from include/trace and
arch/x86/kvm (5.10, 6.1, 6.9). Where a format changed, both are here, newest first: the first that fits
counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from tracekit.trace.schema import KIND_CODE

__all__ = ["LAYOUTS", "Layout", "Op", "Slot"]


class Slot(IntEnum):
    """Where a field's value goes: a column of the values read from lines."""

    ADDRESS = 0  # guest or host address, as the event has it
    SIZE = 1  # bytes
    END = 2  # end address, exclusive
    GFN = 3
    LEVEL = 4
    ERROR = 5  # error code or exit qualification
    RIP = 6
    ARG = 7
    VCPU = 8
    LATENCY = 9  # ns
    ORDER = 10  # log2 of pages
    FLAG = 11
    RET = 12


class Op(IntEnum):
    """What a line means to the assembler (assemble.py)."""

    IGNORE = 0
    ROW = 1  # a row by itself
    LOST = 2
    EXIT_EPT = 3
    EXIT_NPF = 4
    PAGE_FAULT = 5
    REQUESTED = 6
    SET_SPTE = 7
    TDP_CHANGED = 8
    ENTRY = 9
    USERSPACE_EXIT = 10
    WALK = 11
    CALL = 12  # a system call begins; `kind` says which
    CALL_DONE = 13
    TRY_ASYNC = 14  # says the gfn of the apf_not_present that follows


@dataclass(frozen=True)
class Layout:
    """One print format of one event. `{slot:x}` is hexadecimal, `:d` decimal, `:i` either by its 0x.

    `{_}` skips a word, a last ` *` any rest; `{flag?TEXT}` is 1 if TEXT is in the rest of the line.
    """

    event: str
    text: str
    op: Op
    kind: str = ""

    @property
    def kind_code(self) -> int:
        """Code of the kind of row, 0 where the line makes none."""
        return KIND_CODE[self.kind] if self.kind else 0


def _call(name: str, kind: str, fields: str, plain: str) -> tuple[Layout, ...]:
    """A system call: perf and trace-cmd write sys_enter_x: a: 0x…, ftrace writes sys_x(a: …)."""
    return (
        Layout(f"sys_enter_{name}", fields, Op.CALL, kind),
        Layout(f"sys_{name}(", f"{plain})", Op.CALL, kind),
        Layout(f"sys_exit_{name}", "{ret:x}", Op.CALL_DONE, kind),
        Layout(f"sys_{name}>", "{ret:x}", Op.CALL_DONE, kind),
    )


LAYOUTS: Final[tuple[Layout, ...]] = (
    # Exits by memory faults; rip comes after vcpu (5.10 and newer) or alone. perf's and trace-cmd's own
    # printing (libtraceevent) is of the older form.
    Layout("kvm_exit", "vcpu {vcpu:d} reason EPT_VIOLATION rip {rip:x} *", Op.EXIT_EPT),
    Layout("kvm_exit", "vcpu {vcpu:d} reason npf rip {rip:x} *", Op.EXIT_NPF),
    Layout("kvm_exit", "reason EPT_VIOLATION rip {rip:x} *", Op.EXIT_EPT),
    Layout("kvm_exit", "reason npf rip {rip:x} *", Op.EXIT_NPF),
    Layout("kvm_exit", "*", Op.IGNORE),
    # 6.1 and newer, then 5.10 to 6.0 (commits faa03b39722a and bff0adc40c00)
    Layout(
        "kvm_page_fault", "vcpu {vcpu:d} rip {rip:x} address {address:x} error_code {error:x}", Op.PAGE_FAULT
    ),
    Layout("kvm_page_fault", "address {address:x} error_code {error:x}", Op.PAGE_FAULT),
    Layout("kvm_entry", "vcpu {vcpu:d} *", Op.ENTRY),
    Layout("kvm_userspace_exit", "*", Op.USERSPACE_EXIT),
    Layout("kvm_mmu_pagetable_walk", "addr {address:x} pferr {error:x} *", Op.WALK),
    Layout("kvm_mmu_spte_requested", "gfn {gfn:x} pfn {_} level {level:d}", Op.REQUESTED),
    Layout("kvm_mmu_set_spte", "gfn {gfn:x} spte {arg:x} {_} level {level:d} at {_}", Op.SET_SPTE),
    Layout(
        "kvm_tdp_mmu_spte_changed",
        "as id {_} gfn {gfn:x} level {level:d} old_spte {_} new_spte {arg:x}",
        Op.TDP_CHANGED,
    ),
    Layout("page_fault_user", "address={address:x} ip={rip:x} error_code={error:x}", Op.ROW, "host_fault"),
    Layout("page_fault_kernel", "address={address:x} ip={_} error_code={error:x}", Op.ROW, "host_fault"),
    *_call(
        "madvise",
        "madvise",
        "start: {address:x}, len_in: {size:x}, behavior: {arg:x}",
        "start: {address:x}, len_in: {size:x}, behavior: {arg:x}",
    ),
    *_call(
        "fallocate",
        "fallocate",
        "fd: {_} mode: {arg:x}, offset: {_} len: {size:x}",
        "fd: {_} mode: {arg:x}, offset: {_} len: {size:x}",
    ),
    Layout("kvm_unmap_hva_range", "mmu notifier unmap range: {address:x} -- {end:x}", Op.ROW, "unmap"),
    Layout("kvm_age_hva", "mmu notifier age hva: {address:x} -- {end:x}", Op.ROW, "age"),
    Layout("kvm_age_page", "hva {address:x} gfn {gfn:x} *", Op.ROW, "age"),
    Layout("kvm_hypercall", "nr {arg:x} *", Op.ROW, "hypercall"),
    Layout("kvm_hv_hypercall", "code {arg:x} *", Op.ROW, "hv_hypercall"),
    Layout("kvm_try_async_get_page", "gva = {address:x}, gfn = {gfn:x}", Op.TRY_ASYNC),
    Layout("kvm_async_pf_not_present", "token {arg:x} gva {address:x}", Op.ROW, "apf_not_present"),
    Layout("kvm_async_pf_ready", "token {arg:x} gva {address:x}", Op.ROW, "apf_ready"),
    Layout("kvm_async_pf_completed", "gva {address:x} address {end:x}", Op.ROW, "apf_completed"),
    Layout("kvm_vcpu_wakeup", "wait time {latency:d} ns, *", Op.ROW, "vcpu_block"),
    Layout("kvm_vcpu_wakeup", "poll time {latency:d} ns, *", Op.ROW, "vcpu_wake"),
    Layout(
        "mm_page_alloc",
        "page={_} pfn={gfn:i} order={order:d} migratetype={_} gfp_flags={flag?__GFP_ZERO}",
        Op.ROW,
        "page_alloc",
    ),
    Layout("mm_page_free", "page={_} pfn={gfn:i} order={order:d}", Op.ROW, "page_free"),
    # addresses are decimal; `age` came last
    Layout(
        "damon_aggregated", "target_id={_} nr_regions={_} {address:d}-{end:d}: {arg:d} *", Op.ROW, "access"
    ),
    Layout("PERF_RECORD_LOST", "lost {arg:d}", Op.LOST),
    Layout("PERF_RECORD_LOST_SAMPLES", "lost {arg:d}", Op.LOST),
)
