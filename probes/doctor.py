"""Can this host record? Each answer is found by trying or by looking, and each no names what mends it."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from tracekit.errors import TracekitError
from tracekit.probes import bcc_package, btf, host, source, tracefs
from tracekit.probes.catalogue import GUEST_PROBES, HOST_PROBES, Probe, host_probes
from tracekit.probes.constants import kernel_constants, why_unknown
from tracekit.probes.functions import plain
from tracekit.probes.loader import LoadedProbes, require_permission

__all__ = ["Check", "examine"]

State = Literal["ok", "limited", "missing"]

_LOCKDOWN: Final = Path("/sys/kernel/security/lockdown")
_CONTAINER_SIGNS: Final = ("/.dockerenv", "/run/.containerenv")


@dataclass(frozen=True)
class Check:
    """One question: `state` missing means that `tracekit record` can't run, limited that it records less."""

    name: str
    state: State
    found: str
    mend: str = ""


def examine() -> list[Check]:
    """Look at everything that recording needs."""
    looks: tuple[Callable[[], Iterator[Check]], ...] = (
        _permission,
        _kernel,
        _lockdown,
        _container,
        _tracefs,
        _bcc,
        _load,
        _kvm,
        _tracepoints,
        _debugfs,
    )
    return [check for look in looks for check in look()]


def _permission() -> Iterator[Check]:
    try:
        require_permission()
    except TracekitError as error:
        yield Check("permission", "missing", error.message, "sudo $(command -v tracekit) doctor")
    else:
        yield Check("permission", "ok", f"user id {os.geteuid()} may load eBPF programs")


def _kernel() -> Iterator[Check]:
    release = platform.release()
    machine = platform.machine()
    if machine != "x86_64":
        yield Check(
            "kernel", "missing", f"{release} on {machine}: only x86_64 is known", "use an x86_64 host"
        )
        return
    if btf.field_offset("task_struct", "mm") is None:
        mend = "a kernel with CONFIG_DEBUG_INFO_BTF, and apt-get install python3-bpfcc (libbpf)"
        yield Check("kernel", "limited", f"{release}, without type information (BTF): no KSM, no swap", mend)
    else:
        yield Check("kernel", "ok", f"{release} with type information (BTF)")


def _lockdown() -> Iterator[Check]:
    mode = "not there"
    with contextlib.suppress(OSError):
        text = _LOCKDOWN.read_text()
        mode = text[text.index("[") + 1 : text.index("]")]
    if mode == "confidentiality":
        mend = "boot with lockdown=integrity, or turn Secure Boot off"
        yield Check("lockdown", "missing", "confidentiality: eBPF may read nothing", mend)
    else:
        yield Check("lockdown", "ok", mode)


def _container() -> Iterator[Check]:
    signs = [sign for sign in _CONTAINER_SIGNS if Path(sign).exists()]
    if not host.in_first_pid_namespace():
        mend = "docker run --pid=host --privileged …, or record on the host"
        yield Check("container", "missing", "other process ids than the kernel's (PID namespace)", mend)
    elif signs:
        yield Check("container", "ok", f"in one ({signs[0]}), with the host's process ids")
    else:
        yield Check("container", "ok", "none")


def _tracefs() -> Iterator[Check]:
    try:
        yield Check("tracefs", "ok", str(tracefs.tracefs_root()))
    except TracekitError as error:
        found = f"{error.message}; tracekit record mounts it where it may"
        yield Check("tracefs", "missing", found, error.hint)


def _bcc() -> Iterator[Check]:
    try:
        bcc = bcc_package.load_bcc()
    except TracekitError as error:
        yield Check("bcc", "missing", error.message, error.hint)
        return
    yield Check("bcc", "ok", f"{bcc.__version__} at {bcc_package.bcc_folder()}")
    own = os.environ.get("BCC_KERNEL_SOURCE")
    if own is None:
        yield Check("kernel headers", "ok", "not needed: tracekit brings what its programs use")
    elif (Path(own) / "include/linux/kconfig.h").is_file():
        yield Check("kernel headers", "ok", f"{own} (BCC_KERNEL_SOURCE)")
    else:
        found = f"BCC_KERNEL_SOURCE={own} holds no kernel headers"
        yield Check("kernel headers", "missing", found, "unset BCC_KERNEL_SOURCE")


def _load() -> Iterator[Check]:
    """Really load and attach one small probe, where nothing else is in the way."""
    process = next(probe for probe in HOST_PROBES if probe.name == "process")
    try:
        with LoadedProbes.load([process], ring_bytes=4096, defines={}, required=(process.name,)):
            yield Check("eBPF", "ok", "a program was compiled, loaded and attached")
    except TracekitError as error:
        hint = error.hint if error.hint != "tracekit doctor" else "the line above that is not ok"
        yield Check("eBPF", "missing", error.message, hint)


def _kvm() -> Iterator[Check]:
    mode, module = host.mmu_mode()
    device = Path("/dev/kvm")
    if not device.exists() or mode == "none":
        mend = "sudo modprobe kvm_intel (or kvm_amd); in a VM, turn nested virtualisation on"
        yield Check("KVM", "limited", "no KVM: only QEMU's emulation and --guest", mend)
    elif not os.access(device, os.R_OK | os.W_OK):
        yield Check(
            "KVM", "limited", "no access to /dev/kvm", "sudo usermod -aG kvm $USER, then log in again"
        )
    else:
        how = {"ept": "nested paging (EPT)", "npt": "nested paging (NPT)"}.get(mode, "shadow paging")
        yield Check("KVM", "ok", f"{module}, {how}")


def _tracepoints() -> Iterator[Check]:
    mode, module = host.mmu_mode()
    known = kernel_constants(mode, module)
    probes = host_probes(mode)
    with contextlib.suppress(TracekitError):  # nothing can be seen: the line of each probe says why
        probes = source.needed(probes, plain, known)
    for probe in (*probes, *GUEST_PROBES):
        if probe.kinds or probe.adds:
            yield _probe(probe, known)


def _probe(probe: Probe, known: dict[str, int]) -> Check:
    name = f"probe {probe.name}"
    try:
        missing = source.missing(probe, plain)
    except TracekitError as error:
        return Check(name, "missing", error.message, error.hint)
    if missing:
        mend = (
            "sudo modprobe kvm"
            if missing[0].startswith("tracepoint kvm")
            else "a kernel that has one of those"
        )
        return Check(name, "limited", f"no {', '.join(missing)}", mend)
    needs_btf = [one for one in probe.constants if one.startswith(("KSM", "ITEM", "PAGE", "MEMCG"))]
    if unknown := [constant for constant in needs_btf if constant not in known]:
        return Check(name, "limited", why_unknown(unknown[0]), "a kernel with CONFIG_DEBUG_INFO_BTF")
    told = ", ".join(filter(None, (*probe.kinds, probe.adds)))
    if functions := source.functions_of(probe, plain):
        told += f" (by {', '.join(functions)})"
    return Check(name, "ok", told)


def _debugfs() -> Iterator[Check]:
    if Path("/sys/kernel/debug/kvm").is_dir():
        yield Check("debugfs", "ok", "KVM's own counters are sampled")
    else:
        mend = "sudo mount -t debugfs debugfs /sys/kernel/debug"
        yield Check("debugfs", "limited", "no KVM counters in the samples", mend)
