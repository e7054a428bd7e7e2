"""Fills the BPF programs' tables with what runs already: threads, vCPUs; reads back whom they found since."""

from __future__ import annotations

import contextlib
import ctypes
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

__all__ = [
    "NO_VM",
    "Process",
    "attach",
    "holds_vm",
    "only_vm",
    "processes_seen",
    "vcpu_descriptors",
    "vm_descriptors",
]

_VCPU_THREAD: Final = re.compile(r"^CPU (\d+)/KVM$")
_VCPU_FD: Final = re.compile(r"^anon_inode:kvm-vcpu:(\d+)$")
_VM_FD: Final = "anon_inode:kvm-vm"

NO_VM: Final = -1
"""For the descriptor of a virtual machine that is not known."""


@dataclass(frozen=True)
class Process:
    """A traced process: its `vm` index, its pid, and its parent's (0 = it is what was asked for)."""

    vm: int
    pid: int
    parent: int


def attach(bpf: Any, pids: Sequence[int], *, armed: bool) -> None:
    """Put processes with all their threads into the kernel's table of traced threads, VM by VM.

    `armed` ones are silent until they exec. `bpf` has the maps of bpf/common.h by name.
    A process that has ended meanwhile has no threads: that is no error here.
    """
    threads, processes = bpf[b"threads"], bpf[b"processes"]
    for vm, pid in enumerate(pids):
        key = ctypes.c_uint32(vm)
        processes[key] = processes.Leaf(tgid=pid, parent=0)
        vcpus, vm_fd, machines = bpf[b"vcpus"], only_vm(pid), bpf[b"machines"]
        for fd in vm_descriptors(pid):
            machines[machines.Key(tgid=pid, fd=fd)] = ctypes.c_uint32(0)
        for fd, vcpu in vcpu_descriptors(pid).items():
            vcpus[vcpus.Key(tgid=pid, fd=fd)] = vcpus.Leaf(number=vcpu, vm_fd=vm_fd)
        done: set[int] = set()
        # New threads of a thread in the table join by themselves: list until nothing new is there.
        while new := _threads(pid) - done:
            for tid in new:
                vcpu = _vcpu_of_thread(pid, tid)
                leaf = threads.Leaf(tgid=pid, vm=vm, vcpu=vcpu, vcpu_fd=-1, vm_fd=vm_fd, armed=armed)
                threads[ctypes.c_uint32(tid)] = leaf
            done |= new
    bpf[b"next_vm"][0] = ctypes.c_uint32(len(pids))


def processes_seen(bpf: Any) -> list[Process]:
    """Return every process that was ever traced, in order of `vm`."""
    seen = [Process(key.value, leaf.tgid, leaf.parent) for key, leaf in bpf[b"processes"].items()]
    return sorted(seen, key=lambda process: process.vm)


def vcpu_descriptors(pid: int) -> dict[int, int]:
    """Return the vCPUs that a process holds, file descriptor -> vCPU number (from /proc; may be empty)."""
    matches = {fd: _VCPU_FD.match(link) for fd, link in _descriptors(pid).items()}
    return {fd: int(match[1]) for fd, match in matches.items() if match}


def holds_vm(pid: int) -> bool:
    """Return whether a process has a KVM virtual machine open."""
    return bool(vm_descriptors(pid))


def vm_descriptors(pid: int) -> set[int]:
    """Return the descriptors of the KVM virtual machines that a process has open (from /proc)."""
    return {fd for fd, link in _descriptors(pid).items() if link == _VM_FD}


def only_vm(pid: int) -> int:
    """Return the descriptor of the one virtual machine that a process has, or NO_VM: none, or several."""
    found = vm_descriptors(pid)
    return found.pop() if len(found) == 1 else NO_VM


def _descriptors(pid: int) -> dict[int, str]:
    found = {}
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                found[int(entry.name)] = str(entry.readlink())
    return found


def _threads(pid: int) -> set[int]:
    with contextlib.suppress(OSError):
        return {int(entry.name) for entry in Path(f"/proc/{pid}/task").iterdir()}
    return set()


def _vcpu_of_thread(pid: int, tid: int) -> int:
    """Return the vCPU that a thread runs, by the name QEMU and others give it, or -1."""
    with contextlib.suppress(OSError):
        if match := _VCPU_THREAD.match(Path(f"/proc/{pid}/task/{tid}/comm").read_text().strip()):
            return int(match[1])
    return -1
