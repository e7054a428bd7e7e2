"""The traced processes as `meta.vms` lists them: pid, command line without secrets, number of vCPUs."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Sequence, Set
from functools import cache
from pathlib import Path
from typing import Any, Final, Protocol

from tracekit.probes.attach import processes_seen
from tracekit.probes.redaction import redact
from tracekit.probes.target import is_waiting
from tracekit.probes.vmm import Signature, signature_of
from tracekit.trace.meta import Vm
from tracekit.trace.schema import PAGE_BYTES

__all__ = ["ThisGuest", "VmList", "Vms"]

_signature: Final = cache(signature_of)


class Vms(Protocol):
    """The VMs of a recording."""

    @property
    def pids(self) -> list[int]:
        """The process of each VM, by the VM's index."""

    @property
    def signatures(self) -> list[Signature]:
        """How each VM's balloon looks from the host, by its index."""

    def know(self, newest: int) -> None:
        """Make sure that VMs up to this index are known."""

    def refresh(self) -> None:
        """Bring `meta.vms` up to date."""

    @property
    def ended(self) -> Set[int]:
        """The VMs whose process is gone: there is nothing more to look at."""


class ThisGuest:
    """The machine this is, recorded from inside: one VM, and no process of ours to look at."""

    def __init__(self, vms: list[Vm]) -> None:
        self.pids: list[int] = []
        self.signatures: list[Signature] = []
        self.ended: set[int] = set()
        vms.append(Vm(pid=0, argv=[], vcpus=os.cpu_count() or 1, page_bytes=PAGE_BYTES))

    def know(self, newest: int) -> None:
        """There is only one."""

    def refresh(self) -> None:
        """Nothing changes."""


class VmList:
    """Keeps `meta.vms` up to date with the processes that the BPF programs found."""

    def __init__(self, bpf: Any, vms: list[Vm], command: Sequence[str]) -> None:
        self._bpf, self._vms, self._command = bpf, vms, command
        self.ended: set[int] = set()

    @property
    def pids(self) -> list[int]:
        """The pid of each VM, by its index."""
        return [vm["pid"] for vm in self._vms]

    @property
    def signatures(self) -> list[Signature]:
        """How each VM's balloon looks from the host, by its index."""
        return [_signature(tuple(vm["argv"])) for vm in self._vms]

    def know(self, newest: int) -> None:
        """Make sure that VMs up to this index are known."""
        if newest >= len(self._vms):
            self.refresh()

    def refresh(self) -> None:
        """Add new processes; read the command line of those that live, as an exec may have changed it."""
        for process in processes_seen(self._bpf)[len(self._vms) :]:
            entry: dict[str, Any] = {"pid": process.pid, "argv": [], "vcpus": 0, "page_bytes": PAGE_BYTES}
            if process.parent:
                entry["parent_pid"] = process.parent
            elif self._command:
                entry["argv"] = redact(self._command)
            self._vms.append(entry)  # type: ignore[arg-type]
        vcpus = Counter(key.tgid for key in self._bpf[b"vcpus"])
        for index, vm in enumerate(self._vms):
            if index in self.ended:
                continue
            if not _is_there(vm["pid"]):
                self.ended.add(index)
            vm["vcpus"] = max(vm["vcpus"], vcpus[vm["pid"]])
            with contextlib.suppress(OSError):
                raw = Path(f"/proc/{vm['pid']}/cmdline").read_bytes()
                argv = [word.decode(errors="replace") for word in raw.split(b"\0")[:-1]]
                if argv and not is_waiting(argv):
                    vm["argv"] = redact(argv)


def _is_there(pid: int) -> bool:
    with contextlib.suppress(PermissionError):  # another user's is there too
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
    return True
