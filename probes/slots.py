"""Memslots that were not seen being made: read from KVM, asked of QEMU's monitor, or assumed from its maps.

A VM that runs already has made its memslots, and one without KVM (TCG) never makes any. What is assumed is
marked so in the trace (`known_by`).
"""

from __future__ import annotations

import contextlib
import ctypes
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from tracekit.probes import filemap
from tracekit.probes.attach import holds_vm, only_vm
from tracekit.probes.filemap import parse_maps
from tracekit.probes.memslot_walk import WalkedSlot
from tracekit.probes.memslots import Memslot, MemslotTable
from tracekit.probes.qemu_monitor import ask_monitor, memory_ranges
from tracekit.trace.meta import Vm

__all__ = ["SlotFinder", "Told", "assume", "is_emulated", "ram_bytes"]

_GIB: Final = 1 << 30
_LEAST_RAM: Final = 16 << 20
_ARENA: Final = 64 << 20  # glibc malloc/arena.c: HEAP_MAX_SIZE, the size and alignment of a thread's arena
_UNITS: Final = {"": 1 << 20, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}  # -m counts MiB
# Where memory below 4 GiB ends, and from which size on (QEMU hw/i386/pc_piix.c and pc_q35.c; Cloud Hypervisor
# and Firecracker arch/x86_64 layout): the rest continues at 4 GiB.
_LOW_END: Final = {
    "i440fx": (0xE0000000, 0xC0000000),
    "q35": (0xB0000000, 0x80000000),
    "cloud-hypervisor": (0xC0000000, 0xC0000000),
    "firecracker": (0xD0000000, 0xD0000000),
}


class Told(NamedTuple):
    """Memslots, and who said them: KVM's own structures (`btf`), or a `monitor`."""

    known_by: str
    slots: Sequence[WalkedSlot]


class SlotFinder:
    """Finds the memslots of VMs that have none yet.

    `monitor` is a QEMU monitor socket of the first VM, `told` what was found out already, by pid.
    """

    def __init__(
        self,
        memslots: MemslotTable,
        bpf: Any,
        listed: Sequence[Vm],
        monitor: Path | None,
        start_ns: int,
        *,
        told: Mapping[int, Told] = MappingProxyType({}),
    ) -> None:
        self._memslots, self._bpf, self._listed = memslots, bpf, listed
        self._monitor, self._start_ns, self._told = monitor, start_ns, told
        self._never_there = monitor is not None and not told
        self._looked: set[int] = set()
        self._without: set[int] = set()
        self._unseen: set[int] = set()

    def look(self, *, running: bool) -> None:
        """Look at every VM without memslots; `running` says that they ran before the recording."""
        self._never_there = self._never_there and not self._monitor_is_there()
        for vm, listed in enumerate(self._listed):
            if vm in self._memslots.vms:
                continue
            argv, pid = listed["argv"], listed["pid"]
            first_look = pid not in self._looked
            self._looked.add(pid)
            if pid in self._told:
                known_by, slots = self._told[pid]
                for vm_fd, slot, gpa, size, hva, flags, machine in slots:
                    if machine:  # a call through another descriptor of it finds it by this
                        self._bpf[b"machine_names"][ctypes.c_uint64(machine)] = ctypes.c_int32(vm_fd)
                    self._add(Memslot(vm, slot, gpa, size, hva, flags, self._start_ns, known_by), pid, vm_fd)
                continue
            if vm == 0 and self._monitor is not None and self._monitor_is_there():
                ranges, known_by = memory_ranges(ask_monitor(self._monitor)), "monitor"
                self._monitor = None
            elif (running and first_look and holds_vm(pid)) or is_emulated(argv):
                ranges, known_by = self._assumed(pid, argv), "assumed"
                (self._unseen if running and not ranges else self._without).add(vm)
            else:
                continue
            for slot, (gpa, size, hva) in enumerate(ranges):
                slot_there = Memslot(vm, slot, gpa, size, hva, 0, self._start_ns, known_by)
                self._add(slot_there, pid, only_vm(pid))

    @property
    def notes(self) -> list[str]:
        """What a reader of the trace must know: which VMs have no memslots though they were looked for.

        Memslots that a VM makes or deletes later say nothing of those that it had when it was attached to.
        """
        why = "no one mapping is its memory for sure"
        unread = f"KVM's own could not be read, and {why}"
        before = [f"memslots that VM {vm} had before are not known: {unread}" for vm in sorted(self._unseen)]
        without = sorted(self._without - self._memslots.vms)
        notes = before + [f"memslots of VM {vm} are not known: {why}" for vm in without]
        if self._never_there:
            notes.append(f"the monitor's socket {self._monitor} was never there: it was not asked")
        return notes

    def _monitor_is_there(self) -> bool:
        return self._monitor is not None and self._monitor.exists()

    def _assumed(self, pid: int, argv: Sequence[str]) -> list[tuple[int, int, int]]:
        with contextlib.suppress(OSError):
            return assume(argv, parse_maps(Path(f"/proc/{pid}/maps").read_text()))
        return []

    def _add(self, slot: Memslot, pid: int, vm_fd: int) -> None:
        self._memslots.add(slot, vm_fd)
        table = self._bpf[b"memslots"]
        region = table.Leaf(slot=slot.slot, flags=0, gpa=slot.gpa, size=slot.size_bytes, hva=slot.hva)
        table[table.Key(tgid=pid, vm_fd=vm_fd, slot=slot.slot)] = region


def ram_bytes(argv: Sequence[str]) -> int | None:
    """Return the memory that QEMU's -m asks for, or None.

    >>> ram_bytes(["qemu", "-m", "size=2G,slots=4"]), ram_bytes(["qemu", "-m", "512"]), ram_bytes(["qemu"])
    (2147483648, 536870912, None)
    """
    for option, value in pairwise(argv):
        if option in ("-m", "--m", "-memory") and (
            match := re.match(r"(?:size=)?(\d+(?:\.\d+)?)([KMGT]?)", value, re.IGNORECASE)
        ):
            return int(float(match[1]) * _UNITS[match[2].upper()])
    return None


def assume(argv: Sequence[str], maps: Sequence[filemap.Mapping]) -> list[tuple[int, int, int]]:
    """Guess a guest's memory as (gpa, bytes, hva): the one mapping of the size asked for.

    Where no size was asked for, the one large mapping that can't be an arena of malloc. Empty if none or more
    than one fits: memory of the VMM's own must not pass for the guest's. The layout is the usual one of the
    VMM: from 0 on, and what is too much below 4 GiB continues there.
    """
    plain = [m for m in maps if m.permissions.startswith("rw") and not m.path.startswith("[")]
    size = ram_bytes(argv)
    if size is None:
        fitting = [m for m in plain if m.end - m.start >= _LEAST_RAM and not _may_be_arena(m)]
    else:
        fitting = [m for m in plain if m.end - m.start == size]
    if len(fitting) != 1:
        return []
    ram = fitting[0]
    total = ram.end - ram.start
    machine = _machine(argv)
    limit, low_end = _LOW_END[machine]
    low = total if total < limit else low_end
    ranges = [(0, low, ram.start)]
    if total > low:
        ranges.append((4 * _GIB, total - low, ram.start + low))
    return ranges


def _may_be_arena(mapping: filemap.Mapping) -> bool:
    """Return whether this may be the part in use of a malloc arena: private, anonymous, at its alignment."""
    own = not mapping.path and mapping.permissions.endswith("p")
    return own and mapping.start % _ARENA == 0 and mapping.end - mapping.start <= _ARENA


def _machine(argv: Sequence[str]) -> str:
    name = PurePath(argv[0]).name if argv else ""
    if name in _LOW_END:
        return name
    return "q35" if any("q35" in word for word in argv) else "i440fx"


def is_emulated(argv: Sequence[str]) -> bool:
    """Return whether this is a QEMU that was not told to use KVM."""
    if not argv or not PurePath(argv[0]).name.startswith("qemu-system"):
        return False
    return not any("kvm" in word for word in argv[1:])
