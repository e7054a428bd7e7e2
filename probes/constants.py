"""What the probes must know of this kernel beside tracepoint arguments; what is unknown is left out."""

from __future__ import annotations

import contextlib
import gzip
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tracekit.probes import btf
from tracekit.probes.page_structures import page_structures
from tracekit.probes.raw import OFFSETS

__all__ = ["damon_is_physical", "guest_constants", "init_on_alloc", "kernel_constants", "why_unknown"]

_ISA_VMX, _ISA_SVM = 1, 2  # as kvm_exit's `isa` counts them
_DAMON: Final = Path("/sys/kernel/mm/damon/admin/kdamonds")


def kernel_constants(mmu_mode: str, kvm_module: str) -> dict[str, int]:
    """Return what the host's probes need, by the names that the C files use."""
    # The structure was called rmap_item until 6.0.
    ksm = btf.field_offset("ksm_rmap_item", "address")
    known = {
        "HOST_ISA": _ISA_SVM if kvm_module == "kvm_amd" else _ISA_VMX,
        "MMU_ADDRESS_IS_GPA": int(mmu_mode in ("ept", "npt")),
        "KSM_ADDRESS_OFFSET": btf.field_offset("rmap_item", "address") if ksm is None else ksm,
        "ITEM_PSWPIN": btf.enum_value("vm_event_item", "PSWPIN"),
        "ITEM_PSWPOUT": btf.enum_value("vm_event_item", "PSWPOUT"),
        "ITEM_THP_FAULT_ALLOC": btf.enum_value("vm_event_item", "THP_FAULT_ALLOC"),
        **{
            f"ITEM_{name}": btf.enum_value("vm_event_item", name)
            for name in ("SWPIN_ZERO", "SWPOUT_ZERO", "ZSWPIN", "ZSWPOUT")
        },
    }
    known |= {name: btf.field_offset(*field) for name, field in OFFSETS.items()}
    return {name: value for name, value in known.items() if value is not None}


def guest_constants() -> dict[str, int]:
    """Return what the probes inside a guest need: who the recorder is, and what this kernel zeroes."""
    known = {"RECORDER": os.getpid(), "INIT_ON_ALLOC": int(init_on_alloc())}
    if (pages := page_structures()) is not None:
        # As C reads it: a decimal number of 64 bits without a sign would not be one.
        known |= {"PAGES_AT": pages.base - (1 << 64), "PAGE_STRUCTURE_BYTES": pages.size}
    return {**known, "DAMON_IS_PHYSICAL": 1} if damon_is_physical() else known


def why_unknown(name: str) -> str:
    """Say why a constant is not known here."""
    if name == "DAMON_IS_PHYSICAL":
        return "DAMON is not watching physical memory here"
    return f"this kernel has no type information (BTF) that tells {name}"


def damon_is_physical(kdamonds: Path = _DAMON) -> bool:
    """Return whether DAMON runs, and all its contexts watch physical addresses (only reads)."""
    operations = []
    with contextlib.suppress(OSError):
        for kdamond in kdamonds.glob("[0-9]*"):
            if (kdamond / "state").read_text().strip() == "on":
                operations += [path.read_text().strip() for path in kdamond.glob("contexts/*/operations")]
    return bool(operations) and set(operations) == {"paddr"}


def init_on_alloc(command_line: str | None = None, config: str | None = None) -> bool:
    """Return whether this kernel zeroes every page it hands out, by its command line or how it was built.

    >>> init_on_alloc("ro init_on_alloc=1", "")
    True
    """
    given = Path("/proc/cmdline").read_text() if command_line is None else command_line
    if match := re.search(r"\binit_on_alloc=(\w+)", given):
        return match[1].lower() in ("1", "on", "y", "yes", "true")
    built = _kernel_config() if config is None else config
    return "CONFIG_INIT_ON_ALLOC_DEFAULT_ON=y" in built or "heap alloc:on" in built


def _kernel_config() -> str:
    with contextlib.suppress(OSError):
        return gzip.decompress(Path("/proc/config.gz").read_bytes()).decode(errors="replace")
    with contextlib.suppress(OSError):
        return Path(f"/boot/config-{platform.release()}").read_text()
    # Neither is there in small systems, but the kernel said at boot what it initialises.
    return next((line for line in _kernel_log() if "mem auto-init:" in line), "")


def _kernel_log() -> Iterator[str]:
    """Yield the records of the kernel's log, oldest first; none without permission."""
    with contextlib.suppress(OSError):
        log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        try:
            while True:
                with contextlib.suppress(BrokenPipeError):  # overwritten meanwhile
                    yield os.read(log, 8192).decode(errors="replace")
        finally:
            os.close(log)
