"""Which VM an event belongs to, where the kernel does not say it: by address, by cgroup, by pidfd.

Notifiers, KSM, reclaim and asynchronous faults run in threads of the kernel or of another process. What they
touch tells the VM: the process whose memory it is, where the programs know that, or an address inside a
memslot of one traced VM, the memory cgroup a page is charged to, the process behind a pidfd. Events of memory
that belongs to no traced VM are not the trace's business and go.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from tracekit.probes.losses import Loss
from tracekit.probes.memslots import Memslot, MemslotTable
from tracekit.probes.other_vms import OtherVms, SharedMemory
from tracekit.probes.wire import VALID, VM_UNKNOWN
from tracekit.trace.loss_reasons import SWAP_OUT_UNPLACED
from tracekit.trace.repeated import writable
from tracekit.trace.schema import KIND_CODE, PAGE_BYTES

__all__ = ["UNKNOWN_PIDFD", "Attribution", "cgroup_id", "cgroup_lineage"]

UNKNOWN_PIDFD: Final = "process_madvise by a pidfd that was closed"
"""Why a row is lost of which it can't be told whose it was."""


def _of_kinds(*kinds: str) -> np.ndarray:
    """Return which kinds' codes are of these: bool[256]."""
    return np.isin(np.arange(256), [KIND_CODE[kind] for kind in kinds])


_UNMAP: Final = KIND_CODE["unmap"]
_AGE: Final = KIND_CODE["age"]
_SWAP_OUT: Final = KIND_CODE["swap_out"]
_PROCESS_MADVISE: Final = KIND_CODE["process_madvise"]
_OWNED: Final = _of_kinds("unmap", "age", "ksm_merge", "ksm_break", "swap_out")
"""Kinds whose records have in `rip` whose memory it is: a process, or 0."""
_LOOKED_AT: Final = _OWNED | _of_kinds("process_madvise")
_BY_CGROUP: Final = (KIND_CODE["swap_out"], KIND_CODE["swap_in"])
_CGROUPS: Final = Path("/sys/fs/cgroup")
_PROCESSES: Final = Path("/proc")
_FOREIGN: Final = VM_UNKNOWN - 1  # of rows that are surely of no traced VM, on their way out
_LOST: Final = VM_UNKNOWN - 2  # of rows that are in the ledger, likewise
_ROOT: Final = 0
_FEW_SLOTS: Final = 16  # look for each of them in all rows
_EXITING: Final = 0x4  # PF_EXITING (include/linux/sched.h), of the flags in /proc/PID/stat
_FLAGS_FIELD: Final = 6  # of stat, from the state on, which follows the name


def cgroup_id(pid: int, processes: Path = _PROCESSES, cgroups: Path = _CGROUPS) -> int | None:
    """Return the id of a process's memory cgroup as tracepoints have it; 0: the root's, None: it ended.

    In a hierarchy of version 1 a process that is exiting, or not waited for yet, is shown in the root's.
    """
    lineage = cgroup_lineage(pid, processes, cgroups)
    return None if lineage is None else lineage[0]


def cgroup_lineage(
    pid: int, processes: Path = _PROCESSES, cgroups: Path = _CGROUPS
) -> tuple[int, ...] | None:
    """Return what `cgroup_id` does, and then the ids of the cgroups above, up to the root's own.

    Alone, 0 says that there is no telling: the hierarchy can't be seen here.
    """
    try:
        lines = (processes / str(pid) / "cgroup").read_text().splitlines()
    except OSError:
        return None
    paths = {controllers: path for _, controllers, path in (line.split(":", 2) for line in lines)}
    # Version 1 names its controllers, version 2 does not: it has memory where no other has.
    path = next((path for names, path in paths.items() if "memory" in names.split(",")), paths.get("", "/"))
    if path == "/" and _is_exiting(pid, processes):
        return None
    for root in (cgroups / "memory", cgroups, cgroups / "unified"):
        with contextlib.suppress(OSError):
            own = root / path.lstrip("/")
            ids = [folder.stat().st_ino for folder in (own, *own.parents) if folder.is_relative_to(root)]
            return (_ROOT, *ids) if path == "/" else tuple(ids)
    return (_ROOT,)


def _is_exiting(pid: int, processes: Path) -> bool:
    try:
        behind_the_name = (processes / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return True
    return bool(int(behind_the_name[_FLAGS_FIELD]) & _EXITING)


class Attribution:
    """Finds the VM of decoded columns' rows whose `vm` is VM_UNKNOWN; `foreign` counts the rows of no VM.

    `uncertain` counts the rows whose VM only the address told, where another VM of this host has memory at
    that address too. `pids` returns each VM's process, by the VM's index.
    """

    def __init__(
        self, memslots: MemslotTable, pids: Callable[[], Sequence[int]], others: OtherVms | None = None
    ) -> None:
        self._memslots = memslots
        self._pids = pids
        self._cgroups: dict[int, int] = {}
        self._charged: dict[int, set[int]] = {}
        self._shared = SharedMemory(memslots)
        self._lost: list[Loss] = []
        self._others = OtherVms() if others is None else others
        self.foreign = self.uncertain = 0

    def resolve(self, out: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the columns with every row's VM known; notifier rows are cut to the memslots they touch."""
        if not ((out["vm"] == VM_UNKNOWN).any() or _LOOKED_AT[out["kind"]].any()):
            return out
        self._by_pidfd(out)
        self._by_cgroup(out)
        self._by_owner(out)
        self._by_address(out)
        out = self._cut_to_memslots(out)
        gone = out["vm"] >= _LOST
        if not gone.any():
            return out
        self.foreign += int(np.count_nonzero(gone & (out["vm"] != _LOST)))
        return {name: column[~gone] for name, column in out.items()}

    def take_losses(self) -> list[Loss]:
        """Return what has been lost here since the last time: events that may have been a traced VM's."""
        taken, self._lost = self._lost, []
        return taken

    def note_cgroups(self) -> None:
        """Remember which cgroup each VM is in: rows of one that has just ended still come.

        A process may have been in another's for a moment, to start it there.
        """
        for pid in self._pids():
            if (found := cgroup_lineage(pid)) is not None:
                self._cgroups[pid] = found[0]
                self._charged.setdefault(pid, set()).update(found)

    def _vm_of(self) -> dict[int, int]:
        """Return the VM of each process; of equal numbers the last one had it."""
        return {pid: vm for vm, pid in enumerate(self._pids())}

    def _by_owner(self, out: dict[str, np.ndarray]) -> None:
        """Tell the VM of rows where the kernel said whose memory it is: a traced process', or none's here."""
        rows = np.flatnonzero(_OWNED[out["kind"]])
        if not len(rows):
            return
        owner = out["rip"][rows]
        open_ones = (out["vm"][rows] == VM_UNKNOWN) & (owner != 0)
        if open_ones.any():
            vm_of = self._vm_of()
            for process in np.unique(owner[open_ones]).tolist():
                writable(out, "vm")[rows[open_ones & (owner == process)]] = vm_of.get(process, _FOREIGN)
        writable(out, "rip")[rows] = 0

    def _by_address(self, out: dict[str, np.ndarray]) -> None:
        rows = np.flatnonzero((out["vm"] == VM_UNKNOWN) & ((out["valid"] & VALID["hva"]) != 0))
        if not len(rows):
            return
        first = out["hva"][rows]
        end = first + np.maximum(out["pages"][rows], 1).astype(np.uint64) * np.uint64(PAGE_BYTES)
        ts = out["ts_ns"][rows]
        found = np.full(len(rows), VM_UNKNOWN, np.uint16)
        several = np.zeros(len(rows), bool)
        for slot, touching in _touched(self._memslots.slots, first, end, ts):
            several[touching] |= (found[touching] != VM_UNKNOWN) & (found[touching] != slot.vm)
            found[touching] = slot.vm
        writable(out, "vm")[rows] = found
        if not (known := found != VM_UNKNOWN).any():
            return
        for low, high in self._others.ranges(self._pids()):
            several |= known & (first < high) & (end > low)
        self.uncertain += int(np.count_nonzero(several))

    def _by_cgroup(self, out: dict[str, np.ndarray]) -> None:
        rows = np.flatnonzero((out["vm"] == VM_UNKNOWN) & np.isin(out["kind"], _BY_CGROUP))
        if not len(rows):
            return
        self.note_cgroups()
        ids = [self._cgroups.get(pid) for pid in self._pids()]
        for vm, own in enumerate(ids):
            # A cgroup that two traced VMs share says nothing of either, and in the root's anybody may be.
            if own and ids.count(own) == 1:
                writable(out, "vm")[rows[out["arg"][rows] == own]] = vm
        self._enter_unplaced(out, rows)
        writable(out, "arg")[rows] = 0
        writable(out, "valid")[rows] &= ~np.uint8(VALID["arg"])

    def _enter_unplaced(self, out: dict[str, np.ndarray], rows: np.ndarray) -> None:
        """Enter swap-outs without an address into the ledger that can be a traced VM's, by their cgroup.

        A page is charged to the cgroup of who touched it first: where the VM's process is or was, maybe
        before it was moved down from one above; of shared memory, where any process is.
        """
        marked = rows[(out["kind"][rows] == _SWAP_OUT) & (out["gva"][rows] != 0)]
        if not len(marked):
            return
        writable(out, "gva")[marked] = 0
        pids = self._pids()
        # One that ended before it was looked at was where its parent is, which is traced too.
        known = [self._charged[pid] for pid in pids if pid in self._charged]
        if known and {_ROOT} not in known and not self._shared.is_there(pids):
            possible = np.array([0, *set().union(*known)], np.uint64)  # 0: the kernel's structures told none
            marked = marked[np.isin(out["arg"][marked], possible)]
        if len(marked):
            ts = out["ts_ns"][marked]
            span = int(ts.min()), int(ts.max())
            self._lost.append(Loss(None, *span, None, SWAP_OUT_UNPLACED, at_most=len(marked)))

    def _by_pidfd(self, out: dict[str, np.ndarray]) -> None:
        """Tell `process_madvise` rows' VM by the process that the kernel found behind the pidfd.

        Where it could not, the caller is asked what the descriptor is now. It may be closed, or the caller
        gone: then these may have been a traced VM's, and are lost.
        """
        rows = np.flatnonzero(out["kind"] == _PROCESS_MADVISE)
        if not len(rows):
            return
        unknown = rows[out["vm"][rows] == VM_UNKNOWN]
        vm_of = self._vm_of()
        target = out["rip"][unknown]
        asked = np.where(target == 0, out["gva"][unknown], np.uint64(0))
        # A call has many rows, and a caller makes many: of equal ones only one is looked at.
        for process, caller in {*zip(target.tolist(), asked.tolist(), strict=True)}:
            found = process or _process_of(caller & 0xFFFFFFFF, caller >> 32)
            same = unknown[(target == process) & (asked == caller)]
            writable(out, "vm")[same] = _LOST if found is None else vm_of.get(found, _FOREIGN)
            if found is None:
                ts = out["ts_ns"][same]
                span = int(ts.min()), int(ts.max())
                self._lost.append(Loss(None, *span, None, UNKNOWN_PIDFD, at_most=len(same)))
        for name in ("rip", "gva"):
            writable(out, name)[rows] = 0

    def _cut_to_memslots(self, out: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Replace notifier rows by their parts inside memslots: outside is not the guest's memory."""
        slots = self._memslots.slots
        with_slots = {slot.vm for slot in slots}
        rows = np.flatnonzero(_is_notified(out["kind"]) & np.isin(out["vm"], list(with_slots)))
        if not len(rows):
            return out
        first = out["hva"][rows]
        end = first + out["pages"][rows].astype(np.uint64) * np.uint64(PAGE_BYTES)
        keep = np.ones(len(out["kind"]), bool)
        keep[rows] = False
        parts = [{name: column[keep] for name, column in out.items()}]
        vm, named = out["vm"][rows], set(out["vm"][rows].tolist())
        mine = [slot for slot in slots if slot.vm in named]
        for slot, touching in _touched(mine, first, end, out["ts_ns"][rows]):
            inside = touching[vm[touching] == slot.vm]
            if not len(inside):
                continue
            part = {name: column[rows[inside]] for name, column in out.items()}
            part["hva"] = np.maximum(first[inside], np.uint64(slot.hva))
            bytes_inside = np.minimum(end[inside], np.uint64(slot.hva + slot.size_bytes)) - part["hva"]
            part["pages"] = (bytes_inside // np.uint64(PAGE_BYTES)).astype(np.uint32)
            parts.append(part)
        return {name: np.concatenate([part[name] for part in parts]) for name in out}


def _touched(
    slots: Sequence[Memslot], first: np.ndarray, end: np.ndarray, ts_ns: np.ndarray
) -> Iterator[tuple[Memslot, np.ndarray]]:
    """Yield each memslot that is touched, by address and in time, with the rows that touch it, in order."""
    near = _near(slots, first, end) if len(slots) > _FEW_SLOTS else ((slot, None) for slot in slots)
    for slot, rows in near:
        low, high, ts = (first, end, ts_ns) if rows is None else (first[rows], end[rows], ts_ns[rows])
        inside = (low < slot.hva + slot.size_bytes) & (high > slot.hva) & (high > low)
        inside &= (ts >= slot.from_ns) & (ts < slot.to_ns)
        touching = np.flatnonzero(inside)
        if len(touching):
            yield slot, touching if rows is None else rows[touching]


def _near(
    slots: Sequence[Memslot], first: np.ndarray, end: np.ndarray
) -> Iterator[tuple[Memslot, np.ndarray]]:
    """Yield memslots with rows that may touch them: a thousand are not each looked for in all rows."""
    order = np.argsort(first, kind="stable")
    ranked, longest = first[order], (end - first).max()
    start = np.array([slot.hva for slot in slots], np.uint64)
    stop = start + np.array([slot.size_bytes for slot in slots], np.uint64)
    from_rank = np.searchsorted(ranked, start - np.minimum(start, longest))
    to_rank = np.searchsorted(ranked, stop)
    for at in np.flatnonzero(from_rank < to_rank).tolist():
        yield slots[at], np.sort(order[from_rank[at] : to_rank[at]])


def _is_notified(kind: np.ndarray) -> np.ndarray:
    notified: np.ndarray = (kind == _UNMAP) | (kind == _AGE)
    return notified


def _process_of(caller: int, pidfd: int) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f"/proc/{caller}/fdinfo/{pidfd}").read_text().splitlines():
            if line.startswith("Pid:"):
                return int(line.split()[1])
    return None
