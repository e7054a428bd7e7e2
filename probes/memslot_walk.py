"""The memslots of a VM that runs already, from KVM's own structures: the kernel's types (BTF) describe them.

KVM tells nobody its memslots. So the recorder borrows the VM's descriptor (pidfd_getfd) and lets a BPF
program follow it: task -> files -> VM -> memslots. That leaves nothing behind, and needs nothing of the VMM.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from tracekit.probes import btf
from tracekit.probes.attach import vm_descriptors
from tracekit.probes.bcc_package import compile_program, load_bcc
from tracekit.probes.program_run import run_program
from tracekit.probes.raw import OFFSETS
from tracekit.probes.source import BPF_FOLDER
from tracekit.trace.memslots import is_memory

__all__ = ["WalkedSlot", "walked_memslots"]

_PIDFD_GETFD: Final = 438  # the system call
_MOST_SLOTS: Final = 2048
_SOURCES: Final = tuple(BPF_FOLDER / name for name in ("kernel_reads.h", "memslot_walk.c"))
# Since Linux 5.17, when KVM began to keep memslots in trees and a hash table instead of an array.
_OFFSETS: Final = {
    **{name: OFFSETS[name] for name in ("TASK_FILES_OFFSET", "FILES_TABLE_OFFSET", "TABLE_FILES_OFFSET")},
    **{name: OFFSETS[name] for name in ("TABLE_SIZE_OFFSET", "FILE_PRIVATE_OFFSET")},
    "VM_MEMSLOTS_OFFSET": ("kvm", "memslots"),
    "MEMSLOTS_HASH_OFFSET": ("kvm_memslots", "id_hash"),
    "MEMSLOTS_INDEX_OFFSET": ("kvm_memslots", "node_idx"),
    "SLOT_NODES_OFFSET": ("kvm_memory_slot", "id_node"),
    "SLOT_GFN_OFFSET": ("kvm_memory_slot", "base_gfn"),
    "SLOT_PAGES_OFFSET": ("kvm_memory_slot", "npages"),
    "SLOT_HVA_OFFSET": ("kvm_memory_slot", "userspace_addr"),
    "SLOT_NUMBER_OFFSET": ("kvm_memory_slot", "id"),
    "SLOT_FLAGS_OFFSET": ("kvm_memory_slot", "flags"),
}


class WalkedSlot(NamedTuple):
    """A memslot of a VM, which one of its file descriptors stands for (the least).

    `machine` is the kernel's structure of that VM (0 = not known): all its descriptors lead there.
    """

    vm_fd: int
    number: int
    gpa: int
    size_bytes: int
    hva: int
    flags: int
    machine: int = 0


def walked_memslots(pid: int) -> list[WalkedSlot]:
    """Return a VMM's memslots, in order of VMs and numbers.

    Empty where it has no VM, or one with very many memslots (over 2,048), or this kernel does not say where
    things are, or does not let us look: what lies outside of the memslots of a VM that has some is taken for
    no guest's, so either all of a process' are known or none.
    """
    offsets = {name: btf.field_offset(*field, module="kvm") for name, field in _OFFSETS.items()}
    descriptors = vm_descriptors(pid)
    if None in offsets.values() or not descriptors:
        return []
    found: dict[int, list[WalkedSlot]] = {}
    # bcc raises bare Exceptions for whatever the kernel refuses; a recording can do without.
    with contextlib.suppress(Exception), contextlib.ExitStack() as stack:
        defines = "".join(f"#define {name} {value}\n" for name, value in offsets.items())
        defines += f"#define MOST_SLOTS {_MOST_SLOTS}\n"
        programs = compile_program(defines + "".join(path.read_text() for path in _SOURCES))
        stack.callback(programs.cleanup)
        walk = programs.load_func(b"walk", load_bcc().BPF.RAW_TRACEPOINT).fd
        for fd in sorted(descriptors):
            with _borrowed(pid, fd) as own:  # for a moment: whoever has it keeps the VM from ending
                if own not in vm_descriptors(os.getpid()):  # closed meanwhile
                    continue
                run_program(walk, own)
            if (machine := programs[b"machine"][0].value) in found:  # another descriptor of it
                continue
            if (slots := _read(programs)) is None:
                return []
            found[machine] = [WalkedSlot(fd, *slot, machine) for slot in slots]
        return sorted(slot for slots in found.values() for slot in slots)
    return []


def _read(programs: Any) -> list[tuple[int, int, int, int, int]] | None:
    count = programs[b"count"][0].value
    if count > _MOST_SLOTS:
        return None
    slots = [programs[b"found"][at] for at in range(count)]
    return [
        (one.number, one.gpa, one.size, one.hva, one.flags)
        for one in slots
        if is_memory(one.gpa, one.size, one.hva)
    ]


@contextlib.contextmanager
def _borrowed(pid: int, fd: int) -> Iterator[int]:
    """Have a descriptor of another process as our own; -1 where it is closed."""
    process = os.pidfd_open(pid)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        own = libc.syscall(_PIDFD_GETFD, process, fd, 0)
        if own < 0 and ctypes.get_errno() != errno.EBADF:
            raise OSError(ctypes.get_errno(), "pidfd_getfd")
    finally:
        os.close(process)
    try:
        yield own
    finally:
        if own >= 0:
            os.close(own)
