"""What the probes must know of this kernel beside tracepoint arguments; what is unknown is left out."""

from __future__ import annotations

from tracekit.probes import btf

__all__ = ["kernel_constants"]

_ISA_VMX, _ISA_SVM = 1, 2  # as kvm_exit's `isa` counts them


def kernel_constants(mmu_mode: str, kvm_module: str) -> dict[str, int]:
    """Return the constants that can be known here, by the names that the C files use."""
    # The structure was called rmap_item until 6.0.
    ksm = btf.field_offset("ksm_rmap_item", "address")
    known = {
        "HOST_ISA": _ISA_SVM if kvm_module == "kvm_amd" else _ISA_VMX,
        "MMU_ADDRESS_IS_GPA": int(mmu_mode in ("ept", "npt")),
        "KSM_ADDRESS_OFFSET": btf.field_offset("rmap_item", "address") if ksm is None else ksm,
        "ITEM_PSWPIN": btf.enum_value("vm_event_item", "PSWPIN"),
        "ITEM_PSWPOUT": btf.enum_value("vm_event_item", "PSWPOUT"),
    }
    return {name: value for name, value in known.items() if value is not None}
