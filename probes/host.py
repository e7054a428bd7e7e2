"""What a trace says about the host: CPU, kernel, KVM's module and how it maps a guest's memory, clocks."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import Final

from tracekit.trace.meta import Clock, Host

__all__ = ["clock", "describe", "in_first_pid_namespace", "mmu_mode"]

_MODULES: Final = Path("/sys/module")
_NESTED: Final = {"kvm_intel": ("ept", "ept"), "kvm_amd": ("npt", "npt")}
_FIRST_PID_NAMESPACE: Final = 0xEFFFFFFC  # the kernel's PROC_PID_INIT_INO
_YES: Final = {"Y", "1"}


def mmu_mode(modules: Path = _MODULES) -> tuple[str, str]:
    """Return (mmu_mode, kvm_module) of this host: ept, npt, shadow, or none where there is no KVM.

    `modules` is /sys/module: the module that is there and its parameter say it, not the CPU's flags.
    """
    for module, (mode, parameter) in _NESTED.items():
        folder = modules / module
        if folder.is_dir():
            try:
                on = (folder / "parameters" / parameter).read_text().strip() in _YES
            except OSError:
                on = True
            return (mode if on else "shadow"), module
    others = sorted(path.name for path in modules.glob("kvm_*")) if modules.is_dir() else []
    if others:
        return "shadow", others[0]
    return ("shadow", "kvm") if (modules / "kvm").is_dir() else ("none", "")


def in_first_pid_namespace() -> bool:
    """Return whether process ids here are those the kernel's programs see: not so in most containers."""
    try:
        return Path("/proc/self/ns/pid").readlink().name == f"pid:[{_FIRST_PID_NAMESPACE}]"
    except OSError:
        return True


def describe() -> Host:
    """Return what `meta.host` holds."""
    mode, module = mmu_mode()
    host = Host(
        kernel=platform.release(),
        cpu=_cpu_model(),
        cpus=os.cpu_count() or 0,
        memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        hostname=platform.node(),
        kvm_module=module,
        mmu_mode=mode,
    )
    return host


def clock() -> Clock:
    """Return the trace's clock and its offsets to the others, each the best of 5 bracketed readings."""
    return Clock(
        name="CLOCK_MONOTONIC",
        realtime_offset_ns=_offset(time.CLOCK_REALTIME),
        boot_offset_ns=_offset(time.CLOCK_BOOTTIME),
    )


def _offset(other: int) -> int:
    tries = []
    for _ in range(5):
        before = time.monotonic_ns()
        there = time.clock_gettime_ns(other)
        after = time.monotonic_ns()
        tries.append((after - before, there - (before + after) // 2))
    return min(tries)[1]


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
