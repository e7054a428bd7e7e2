"""KVM as Python sees it: ioctl numbers, their structures, and three thin handles over file descriptors.

Numbers and layouts are the kernel's user API (<linux/kvm.h>, x86). `fcntl.ioctl` with an integer argument
releases the interpreter lock, so vCPU threads inside KVM_RUN really run side by side.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import struct
from pathlib import Path
from typing import Any, Final, Self

from tracekit.errors import CapabilityError, FailedError

__all__ = [
    "CAP_HYPERV",
    "CAP_PRE_FAULT_MEMORY",
    "EXIT_HLT",
    "EXIT_HYPERV",
    "EXIT_INTR",
    "EXIT_IO",
    "EXIT_NAMES",
    "Kvm",
    "Regs",
    "Segment",
    "Sregs",
    "Vcpu",
    "Vm",
]


def _ioctl_number(direction: int, number: int, size: int) -> int:
    """Linux's _IOC(): two bits of direction (1 = to the kernel, 2 = from it), size, 0xAE for KVM, number."""
    return direction << 30 | size << 16 | 0xAE << 8 | number


class Segment(ctypes.Structure):
    """struct kvm_segment: a segment register with its hidden part."""

    _fields_ = [
        ("base", ctypes.c_uint64),
        ("limit", ctypes.c_uint32),
        ("selector", ctypes.c_uint16),
        ("type", ctypes.c_uint8),
        ("present", ctypes.c_uint8),
        ("dpl", ctypes.c_uint8),
        ("db", ctypes.c_uint8),
        ("s", ctypes.c_uint8),
        ("l", ctypes.c_uint8),
        ("g", ctypes.c_uint8),
        ("avl", ctypes.c_uint8),
        ("unusable", ctypes.c_uint8),
        ("padding", ctypes.c_uint8),
    ]


class Dtable(ctypes.Structure):
    """struct kvm_dtable: GDTR or IDTR."""

    _fields_ = [("base", ctypes.c_uint64), ("limit", ctypes.c_uint16), ("padding", ctypes.c_uint16 * 3)]


class Sregs(ctypes.Structure):
    """struct kvm_sregs: segments, tables and control registers."""

    _fields_ = [
        *((name, Segment) for name in ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")),
        ("gdt", Dtable),
        ("idt", Dtable),
        *((name, ctypes.c_uint64) for name in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base")),
        ("interrupt_bitmap", ctypes.c_uint64 * 4),
    ]


class Regs(ctypes.Structure):
    """struct kvm_regs: the general registers, rip and rflags."""

    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp"),
            *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"),
            *("rip", "rflags"),
        )
    ]


class MemoryRegion(ctypes.Structure):
    """struct kvm_userspace_memory_region: one memslot; memory_size 0 deletes it."""

    _fields_ = [
        ("slot", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("guest_phys_addr", ctypes.c_uint64),
        ("memory_size", ctypes.c_uint64),
        ("userspace_addr", ctypes.c_uint64),
    ]


_API_VERSION: Final = 12
_GET_API_VERSION: Final = _ioctl_number(0, 0x00, 0)
_CREATE_VM: Final = _ioctl_number(0, 0x01, 0)
_CHECK_EXTENSION: Final = _ioctl_number(0, 0x03, 0)
_GET_VCPU_MMAP_SIZE: Final = _ioctl_number(0, 0x04, 0)
_GET_SUPPORTED_CPUID: Final = _ioctl_number(3, 0x05, 8)
_CREATE_VCPU: Final = _ioctl_number(0, 0x41, 0)
_SET_USER_MEMORY_REGION: Final = _ioctl_number(1, 0x46, ctypes.sizeof(MemoryRegion))
_RUN: Final = _ioctl_number(0, 0x80, 0)
_GET_REGS: Final = _ioctl_number(2, 0x81, ctypes.sizeof(Regs))
_SET_REGS: Final = _ioctl_number(1, 0x82, ctypes.sizeof(Regs))
_GET_SREGS: Final = _ioctl_number(2, 0x83, ctypes.sizeof(Sregs))
_SET_SREGS: Final = _ioctl_number(1, 0x84, ctypes.sizeof(Sregs))
_SET_CPUID2: Final = _ioctl_number(1, 0x90, 8)
_GET_STATS_FD: Final = _ioctl_number(0, 0xCE, 0)
_PRE_FAULT_MEMORY: Final = _ioctl_number(3, 0xD5, 64)

CAP_HYPERV: Final = 44
CAP_PRE_FAULT_MEMORY: Final = 236

_HYPERV_HCALL: Final = 2
_STATS_DESCRIPTOR: Final = struct.Struct("<IhHII")
"""Flags, exponent, words, offset, bucket size; the counter's name follows."""

EXIT_IO: Final = 2
EXIT_HLT: Final = 5
EXIT_INTR: Final = 10
EXIT_HYPERV: Final = 27
EXIT_NAMES: Final[dict[int, str]] = {
    0: "unknown",
    1: "exception",
    EXIT_IO: "io",
    3: "hypercall",
    4: "debug",
    EXIT_HLT: "hlt",
    6: "mmio",
    8: "shutdown",
    9: "fail_entry",
    EXIT_INTR: "intr",
    17: "internal_error",
    EXIT_HYPERV: "hyperv",
}

_CPUID_HEADER_BYTES: Final = 8  # u32 nent, u32 padding
_CPUID_ENTRY_BYTES: Final = 40  # u32 function, index, flags, eax, ebx, ecx, edx, padding[3]


class _Handle:
    """A file descriptor that is closed once, by `close` or at the end of a with block."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def close(self) -> None:
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, what: str, number: int, argument: Any = 0) -> int:
        try:
            return int(fcntl.ioctl(self.fd, number, argument))
        except OSError as error:
            code = errno.errorcode.get(error.errno or 0, str(error.errno))
            raise FailedError(f"{what} failed: {error.strerror} ({code})", hint="tracekit doctor") from error


class _Counted(_Handle):
    """A VM or vCPU: KVM counts what it does for it."""

    def counters(self) -> dict[str, int]:
        """Return KVM's own counters, name -> value (pf_fixed, exits, pages_4k, …); {} before Linux 5.14."""
        try:
            fd = fcntl.ioctl(self.fd, _GET_STATS_FD, 0)
        except OSError:
            return {}
        with _Handle(fd):
            _, name_bytes, count, _, descriptors_at, data_at = struct.unpack("<6I", os.pread(fd, 24, 0))
            size = _STATS_DESCRIPTOR.size + name_bytes
            descriptors = os.pread(fd, count * size, descriptors_at)
            values: dict[str, int] = {}
            for start in range(0, len(descriptors), size):
                _, _, words, offset, _ = _STATS_DESCRIPTOR.unpack_from(descriptors, start)
                name = descriptors[start + _STATS_DESCRIPTOR.size : start + size].split(b"\0")[0].decode()
                if words == 1:  # more are histograms
                    (values[name],) = struct.unpack("<Q", os.pread(fd, 8, data_at + offset))
        return values


class Kvm(_Handle):
    """/dev/kvm, opened; the typed error says which of missing, forbidden or too old it is.

    Raises `CapabilityError` where the device is not there, not permitted, or speaks another API version.
    """

    def __init__(self, device: str | Path = "/dev/kvm") -> None:
        try:
            super().__init__(os.open(device, os.O_RDWR | os.O_CLOEXEC))
        except FileNotFoundError as error:
            raise CapabilityError(
                f"no {device}: this host offers no KVM",
                hint="turn on (nested) virtualisation and load kvm-intel or kvm-amd; see `tracekit doctor`",
            ) from error
        except PermissionError as error:
            raise CapabilityError(
                f"no permission to open {device}",
                hint="sudo usermod -aG kvm $USER, then log in again",
            ) from error
        except OSError as error:
            raise CapabilityError(
                f"{device} does not open: {error.strerror}", hint="tracekit doctor"
            ) from error
        try:
            version = fcntl.ioctl(self.fd, _GET_API_VERSION, 0)
        except OSError:
            version = -1
        if version != _API_VERSION:
            self.close()
            raise CapabilityError(
                f"{device} does not speak KVM API {_API_VERSION} (answer: {version})",
                hint="tracekit doctor",
            )

    def extension(self, number: int) -> int:
        """Return what KVM_CHECK_EXTENSION answers for a capability number (0 = not there)."""
        return self._call("KVM_CHECK_EXTENSION", _CHECK_EXTENSION, number)

    def supported_cpuid(self) -> bytearray:
        """Return struct kvm_cpuid2 with every CPUID leaf that KVM can give a guest here."""
        entries = 64
        while True:
            leaves = bytearray(_CPUID_HEADER_BYTES + entries * _CPUID_ENTRY_BYTES)
            struct.pack_into("<I", leaves, 0, entries)
            try:
                fcntl.ioctl(self.fd, _GET_SUPPORTED_CPUID, leaves)
            except OSError as error:
                if error.errno == errno.E2BIG and entries < 4096:
                    entries *= 2
                    continue
                raise FailedError(f"KVM_GET_SUPPORTED_CPUID failed: {error.strerror}") from error
            (count,) = struct.unpack_from("<I", leaves, 0)
            return leaves[: _CPUID_HEADER_BYTES + count * _CPUID_ENTRY_BYTES]

    def create_vm(self) -> Vm:
        """Return a new VM without memory or vCPUs."""
        return Vm(
            self._call("KVM_CREATE_VM", _CREATE_VM), self._call("KVM_GET_VCPU_MMAP_SIZE", _GET_VCPU_MMAP_SIZE)
        )


class Vm(_Counted):
    """A VM: memslots and vCPUs; closing it (and its vCPUs) frees the guest."""

    def __init__(self, fd: int, run_bytes: int) -> None:
        super().__init__(fd)
        self._run_bytes = run_bytes

    def set_memslot(self, slot: int, gpa: int, size_bytes: int, hva: int, flags: int = 0) -> None:
        """Make guest physical memory gpa .. gpa + size_bytes the process's memory at hva (size 0 deletes)."""
        region = MemoryRegion(slot, flags, gpa, size_bytes, hva)
        self._call(f"KVM_SET_USER_MEMORY_REGION (slot {slot})", _SET_USER_MEMORY_REGION, region)

    def create_vcpu(self, index: int) -> Vcpu:
        """Return vCPU number `index`."""
        return Vcpu(self._call(f"KVM_CREATE_VCPU {index}", _CREATE_VCPU, index), self._run_bytes)


class Vcpu(_Counted):
    """A vCPU with its shared kvm_run page."""

    def __init__(self, fd: int, run_bytes: int) -> None:
        super().__init__(fd)
        self.run_page = mmap.mmap(fd, run_bytes, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)

    def close(self) -> None:
        """Unmap the run page and close the vCPU."""
        self.run_page.close()
        super().close()

    def regs(self) -> Regs:
        """Return the general registers."""
        regs = Regs()
        self._call("KVM_GET_REGS", _GET_REGS, regs)
        return regs

    def set_regs(self, regs: Regs) -> None:
        """Set the general registers."""
        self._call("KVM_SET_REGS", _SET_REGS, regs)

    def sregs(self) -> Sregs:
        """Return segments, tables and control registers."""
        sregs = Sregs()
        self._call("KVM_GET_SREGS", _GET_SREGS, sregs)
        return sregs

    def set_sregs(self, sregs: Sregs) -> None:
        """Set segments, tables and control registers."""
        self._call("KVM_SET_SREGS", _SET_SREGS, sregs)

    def set_cpuid(self, leaves: bytearray) -> None:
        """Give the guest these CPUID leaves (struct kvm_cpuid2)."""
        self._call("KVM_SET_CPUID2", _SET_CPUID2, leaves)

    def run(self) -> int:
        """Run the guest until it exits to us and return the exit reason (EXIT_*).

        A signal that interrupts KVM_RUN is EXIT_INTR; whether to go on is the caller's business.
        """
        try:
            fcntl.ioctl(self.fd, _RUN, 0)
        except InterruptedError:
            return EXIT_INTR
        except OSError as error:
            raise FailedError(f"KVM_RUN failed: {error.strerror}", hint="tracekit doctor") from error
        (reason,) = struct.unpack_from("<I", self.run_page, 8)
        return int(reason)

    def stop(self) -> None:
        """Ask KVM to leave the guest at once at the next KVM_RUN (kvm_run.immediate_exit)."""
        self.run_page[1] = 1

    def hypercall(self) -> tuple[int, int, int] | None:
        """Return (control, input gpa, output gpa) of the last EXIT_HYPERV, None if it was no hypercall."""
        kind, _, control, _, input_gpa, output_gpa = struct.unpack_from("<2I4Q", self.run_page, 32)
        return (control, input_gpa, output_gpa) if kind == _HYPERV_HCALL else None

    def answer_hypercall(self, result: int) -> None:
        """Set what the guest gets back when it runs on after an EXIT_HYPERV."""
        struct.pack_into("<Q", self.run_page, 48, result)

    def pre_fault(self, gpa: int, size_bytes: int) -> None:
        """Map guest memory as if this vCPU had touched it (KVM_PRE_FAULT_MEMORY); it must not be running."""
        request = bytearray(struct.pack("<3Q5Q", gpa, size_bytes, 0, *(0,) * 5))
        while struct.unpack_from("<Q", request, 8)[0]:
            try:
                fcntl.ioctl(self.fd, _PRE_FAULT_MEMORY, request)
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EINTR):
                    raise FailedError(f"KVM_PRE_FAULT_MEMORY failed: {error.strerror}") from error

    def io_port(self) -> int:
        """Return the port of the last EXIT_IO."""
        (port,) = struct.unpack_from("<H", self.run_page, 34)
        return int(port)

    def describe_exit(self, reason: int) -> str:
        """Return the exit reason's name with its detail word, for messages."""
        (detail,) = struct.unpack_from("<I", self.run_page, 32)
        return f"{EXIT_NAMES.get(reason, reason)} (detail {detail:#x}, rip {self.regs().rip:#x})"
