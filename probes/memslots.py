"""Memslots as the recorder learns of them: kept for gfn <-> hva while recording, and noted in the trace."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from tracekit.probes.attach import NO_VM
from tracekit.probes.wire import VALID
from tracekit.trace.memslots import MemslotMap, is_memory
from tracekit.trace.repeated import writable
from tracekit.trace.schema import KIND_CODE, PAGE_BYTES

if TYPE_CHECKING:
    from tracekit.probes.writers import Writer

__all__ = ["Memslot", "MemslotTable"]

_MEMSLOT_KIND: Final = KIND_CODE["memslot"]
_KEEP_NS: Final = 2_000_000_000
_FOREVER: Final = 2**64 - 1
_DESCRIPTOR: Final = (1 << 20) - 1  # above it is how often a new VM got the same one (kvm_ioctl.c)
_SLOT: Final = 2**32 - 1  # the low half of a memslot record's `arg`
_NUMBER_BIT: Final = 24  # KVM itself uses those up to 17: the number, and the address space (SMM) above it
_MOST_NUMBERED: Final = 255


@dataclass(frozen=True)
class Memslot:
    """A memslot from `from_ns` until before `to_ns`; of size 0 it only ends the one of its number."""

    vm: int
    slot: int
    gpa: int
    size_bytes: int
    hva: int
    flags: int
    from_ns: int
    known_by: str
    to_ns: int = _FOREVER


class MemslotTable:
    """The memslots of all traced VMs, now and in the last seconds (rows come a little after the fact).

    Notes each in the trace and fills gfns in from hvas. A process that has several of KVM's virtual machines
    is one VM here; the slots of its second one have 1 in the bits from 24 on, and so on. `open_vms` returns
    the descriptors of those that a process, by its VM's index, has open now.
    """

    def __init__(self, writer: Writer, open_vms: Callable[[int], set[int]] | None = None) -> None:
        self._writer, self._open_vms = writer, open_vms
        self._numbers: dict[int, dict[int, int]] = {}
        self._there: dict[tuple[int, int], Memslot] = {}
        self._gone: deque[Memslot] = deque()
        self._maps: dict[int, MemslotMap] = {}
        self.vms: set[int] = set()
        """The VMs that have, or had, memslots."""

    @property
    def slots(self) -> list[Memslot]:
        """The memslots that are there, and those that went in the last seconds."""
        return [*self._gone, *self._there.values()]

    @property
    def there(self) -> set[int]:
        """The VMs that have memslots now."""
        return {vm for vm, _ in self._there}

    def add(self, slot: Memslot, descriptor: int = NO_VM) -> Memslot:
        """Take in one memslot of the virtual machine with that descriptor; return it with its own number."""
        number = self._number_of(slot.vm, descriptor, slot.from_ns)
        numbered = replace(slot, slot=slot.slot | number << _NUMBER_BIT)
        self._add(numbered)
        return numbered

    def _number_of(self, vm: int, descriptor: int, now_ns: int) -> int:
        """Return which of its process's virtual machines this is; what was closed before a new one ends."""
        numbers = self._numbers.setdefault(vm, {})
        if descriptor == NO_VM or descriptor in numbers:
            return numbers.get(descriptor, 0)
        there = self._open_vms(vm) if self._open_vms is not None and numbers else set()
        gone = {
            number
            for one, number in numbers.items()
            if (there and one & _DESCRIPTOR not in there) or one & _DESCRIPTOR == descriptor & _DESCRIPTOR
        }
        for _, slot in [key for key in self._there if key[0] == vm and key[1] >> _NUMBER_BIT in gone]:
            self._add(replace(self._there[vm, slot], size_bytes=0, from_ns=now_ns))
        numbers[descriptor] = min(len(numbers), _MOST_NUMBERED)
        return numbers[descriptor]

    def _add(self, slot: Memslot) -> None:
        self.vms.add(slot.vm)
        if before := self._there.pop((slot.vm, slot.slot), None):
            self._gone.append(replace(before, to_ns=slot.from_ns))
        while self._gone and self._gone[0].to_ns <= slot.from_ns - _KEEP_NS:
            self._maps.pop(self._gone.popleft().vm, None)
        if slot.size_bytes:
            self._there[slot.vm, slot.slot] = slot
        self._maps.pop(slot.vm, None)
        row = asdict(slot)
        del row["to_ns"]
        self._writer.add_memslot(**row)

    def end(self, vm: int, ts_ns: int) -> None:
        """Forget the memslots of a VM that is gone, when the last rows that need them have come."""
        for key in [key for key in self._there if key[0] == vm]:
            self._gone.append(replace(self._there.pop(key), to_ns=ts_ns))
        self._maps.pop(vm, None)

    def take_from(self, out: dict[str, np.ndarray]) -> None:
        """Take in the `memslot` rows of decoded columns; their wire-only values become those of an event."""
        rows = np.flatnonzero(out["kind"] == _MEMSLOT_KIND)
        if not len(rows):
            return
        for row in rows.tolist():
            gpa, size, hva = (int(out[name][row]) for name in ("gfn", "rip", "hva"))
            # The VMM can change what it passed after the kernel has read it and before we do.
            if not is_memory(gpa * PAGE_BYTES, size, hva):
                continue
            slot = Memslot(
                vm=int(out["vm"][row]),
                slot=int(out["arg"][row]) & _SLOT,
                gpa=int(out["gfn"][row]) * PAGE_BYTES,
                size_bytes=int(out["rip"][row]),
                hva=int(out["hva"][row]),
                flags=int(out["arg"][row]) >> 32,
                from_ns=int(out["ts_ns"][row]),
                known_by="ioctl",
            )
            writable(out, "arg")[row] = self.add(slot, int(out["pages"][row])).slot
        writable(out, "arg")[rows] &= np.uint64(_SLOT)
        writable(out, "pages")[rows] = out["rip"][rows] // PAGE_BYTES
        writable(out, "rip")[rows] = 0

    def fill_gfns(self, out: dict[str, np.ndarray]) -> None:
        """Give rows with an hva inside a memslot of their time its gfn."""
        if not self._there and not self._gone:
            return
        rows = np.flatnonzero((out["valid"] & (VALID["hva"] | VALID["gfn"])) == VALID["hva"])
        if not len(rows):
            return
        for vm in np.unique(out["vm"][rows]).tolist():
            mine = rows[out["vm"][rows] == vm]
            gfn, known = self._lookup(vm).gfn_of_hva(out["hva"][mine], ts_ns=out["ts_ns"][mine], vm=vm)
            found = mine[known]
            writable(out, "gfn")[found] = gfn[known]
            writable(out, "valid")[found] |= np.uint8(VALID["gfn"])

    def _lookup(self, vm: int) -> MemslotMap:
        """Return one VM's memslots: where thousands come and go, those of all would be made for ever."""
        if vm not in self._maps:
            self._maps[vm] = MemslotMap([asdict(slot) for slot in self.slots if slot.vm == vm])
        return self._maps[vm]
