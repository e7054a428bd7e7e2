"""What else has to do with a traced VM's memory.

VMs of this host that are not traced, where they have memory at the same addresses: there, an event may be
theirs. Processes that share it: pages may have been charged to them.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from tracekit.probes.attach import holds_vm
from tracekit.probes.filemap import parse_maps
from tracekit.probes.memslots import MemslotTable

__all__ = ["OtherVms", "SharedMemory"]

_EVERY_NS: Final = 1_000_000_000
_OF_KVM: Final = Path("/sys/kernel/debug/kvm")
_PROCESSES: Final = Path("/proc")


class OtherVms:
    """Knows the writable memory of processes that have a KVM virtual machine and are not traced.

    `of_kvm` is KVM's folder in debugfs, which has one named PID-DESCRIPTOR for each VM; without it every
    process is asked. Looks again at most once a second.
    """

    def __init__(
        self,
        of_kvm: Path = _OF_KVM,
        processes: Path = _PROCESSES,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._of_kvm, self._processes, self._clock = of_kvm, processes, clock
        self._looked_ns: int | None = None
        self._ranges: dict[int, list[tuple[int, int]]] = {}

    def ranges(self, traced: Sequence[int]) -> list[tuple[int, int]]:
        """Return where they have memory, as (first address, end), without that of the traced processes."""
        now = self._clock()
        if self._looked_ns is None or now - self._looked_ns >= _EVERY_NS:
            self._looked_ns = now
            self._ranges = {pid: self._memory_of(pid) for pid in self._with_vms() - {*traced}}
        known = {*traced}
        return [one for pid, ranges in self._ranges.items() if pid not in known for one in ranges]

    def _with_vms(self) -> set[int]:
        with contextlib.suppress(OSError):
            names = [entry.name for entry in self._of_kvm.iterdir()]
            threads = [int(name.partition("-")[0]) for name in names if name[:1].isdigit()]
            return {self._process_of(thread) for thread in threads}
        pids = [int(entry.name) for entry in self._processes.iterdir() if entry.name.isdigit()]
        return {pid for pid in pids if holds_vm(pid)}

    def _process_of(self, thread: int) -> int:
        with contextlib.suppress(OSError):
            for line in (self._processes / str(thread) / "status").read_text().splitlines():
                if line.startswith("Tgid:"):
                    return int(line.split()[1])
        return thread

    def _memory_of(self, pid: int) -> list[tuple[int, int]]:
        with contextlib.suppress(OSError):
            mappings = parse_maps((self._processes / str(pid) / "maps").read_text())
            return [(one.start, one.end) for one in mappings if "w" in one.permissions]
        return []


class SharedMemory:
    """Knows whether a traced VM's memory is shared: other processes may have made its pages.

    Looks again at most once a second; of a process that has ended, what was there last counts.
    """

    def __init__(
        self,
        memslots: MemslotTable,
        processes: Path = _PROCESSES,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._memslots, self._processes, self._clock = memslots, processes, clock
        self._looked_ns: int | None = None
        self._shared: dict[int, bool] = {}

    def is_there(self, pids: Sequence[int]) -> bool:
        """Return whether a memslot of one of these VMs (a process each, by index) is in a shared mapping."""
        now = self._clock()
        if self._looked_ns is None or now - self._looked_ns >= _EVERY_NS:
            self._looked_ns = now
            for vm in {slot.vm for slot in self._memslots.slots if slot.vm < len(pids)}:
                self._look(vm, pids[vm])
        return any(self._shared.values())

    def _look(self, vm: int, pid: int) -> None:
        with contextlib.suppress(OSError):
            mappings = parse_maps((self._processes / str(pid) / "maps").read_text())
            shared = [(one.start, one.end) for one in mappings if one.permissions.endswith("s")]
            if mappings:  # a process that is ending has none left
                self._shared[vm] = any(
                    slot.hva < end and slot.hva + slot.size_bytes > start
                    for slot in self._memslots.slots
                    for start, end in shared
                    if slot.vm == vm
                )
