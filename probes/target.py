"""What is traced: a command, held back until the probes watch it, or processes that already run."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tracekit.errors import FailedError, UsageError

__all__ = [
    "Child",
    "Process",
    "attach",
    "is_waiting",
    "processes_seen",
    "require_processes",
    "start_child",
    "vcpu_descriptors",
]

# Waits until the recorder watches it, then becomes the command; when the recorder is gone it ends.
_WAIT_THEN_BECOME: Final = """
import os, sys
gate = int(sys.argv[1])
os.set_inheritable(gate, False)
if not os.read(gate, 1):
    sys.exit(125)
try:
    os.execvp(sys.argv[2], sys.argv[2:])
except OSError as error:
    sys.exit(f"tracekit: cannot run {sys.argv[2]}: {error.strerror}")
"""
_VCPU_THREAD: Final = re.compile(r"^CPU (\d+)/KVM$")
_VCPU_FD: Final = re.compile(r"^anon_inode:kvm-vcpu:(\d+)$")
_SECONDS_TO_END: Final = 5.0


def is_waiting(argv: Sequence[str]) -> bool:
    """Return whether a command line is that of a child that has not yet become the command."""
    return _WAIT_THEN_BECOME in argv


@dataclass(frozen=True)
class Process:
    """A traced process: its `vm` index, its pid, and its parent's (0 = it is what was asked for)."""

    vm: int
    pid: int
    parent: int


class Child:
    """A command that has been started but is held back until `release`."""

    def __init__(self, process: subprocess.Popen[bytes], gate: int) -> None:
        self._process, self._gate = process, gate
        self.pid = process.pid

    def release(self) -> None:
        """Let the command start."""
        os.write(self._gate, b"\n")
        os.close(self._gate)
        self._gate = -1

    def poll(self) -> int | None:
        """Return the exit code as a shell gives it (128 + signal), or None while it runs."""
        code = self._process.poll()
        return 128 - code if code is not None and code < 0 else code

    def end(self) -> int:
        """End the command if it still runs (SIGTERM, after 5 s SIGKILL) and return its exit code."""
        if self._gate >= 0:
            os.close(self._gate)
            self._gate = -1
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        code = self.poll()
        return 0 if code is None else code


def start_child(command: Sequence[str], *, user: int | None = None, group: int | None = None) -> Child:
    """Start a command, held back; `user` and `group` are the ids it shall run as.

    Raises UsageError when there is no such program.
    """
    if shutil.which(command[0]) is None:
        raise UsageError(f"no program {command[0]!r} to run", hint="tracekit record -- PROGRAM ARGUMENTS…")
    read_end, gate = os.pipe()
    extra: dict[str, Any] = {} if user is None else {"user": user, "group": group, "extra_groups": []}
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _WAIT_THEN_BECOME, str(read_end), *command],
            pass_fds=(read_end,),
            **extra,
        )
    except OSError as error:
        os.close(gate)
        raise FailedError(f"cannot start {command[0]!r}: {error.strerror}") from error
    finally:
        os.close(read_end)
    return Child(process, gate)


def require_processes(pids: Sequence[int]) -> None:
    """Raise UsageError when one of the processes is not there."""
    for pid in pids:
        _threads(pid)


def attach(bpf: Any, pids: Sequence[int], *, armed: bool) -> None:
    """Put processes with all their threads into the kernel's table of traced threads, VM by VM.

    `armed` ones are silent until they exec. `bpf` has the maps of bpf/common.h by name.
    Raises UsageError when a process is not there.
    """
    threads, processes = bpf["threads"], bpf["processes"]
    for vm, pid in enumerate(pids):
        key = ctypes.c_uint32(vm)
        processes[key] = processes.Leaf(tgid=pid, parent=0)
        by_fd = vcpu_descriptors(pid)
        for fd, vcpu in by_fd.items():
            vcpus = bpf["vcpus"]
            vcpus[vcpus.Key(tgid=pid, fd=fd)] = ctypes.c_uint32(vcpu)
        done: set[int] = set()
        # New threads of a thread in the table join by themselves: list until nothing new is there.
        while new := _threads(pid) - done:
            for tid in new:
                leaf = threads.Leaf(tgid=pid, vm=vm, vcpu=_vcpu_of_thread(pid, tid), vcpu_fd=-1, armed=armed)
                threads[ctypes.c_uint32(tid)] = leaf
            done |= new
    bpf["next_vm"][0] = ctypes.c_uint32(len(pids))


def processes_seen(bpf: Any) -> list[Process]:
    """Return every process that was ever traced, in order of `vm`."""
    seen = [Process(key.value, leaf.tgid, leaf.parent) for key, leaf in bpf["processes"].items()]
    return sorted(seen, key=lambda process: process.vm)


def vcpu_descriptors(pid: int) -> dict[int, int]:
    """Return the vCPUs that a process holds, file descriptor -> vCPU number (from /proc; may be empty)."""
    found = {}
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if match := _VCPU_FD.match(str(entry.readlink())):
                    found[int(entry.name)] = int(match[1])
    return found


def _threads(pid: int) -> set[int]:
    try:
        return {int(entry.name) for entry in Path(f"/proc/{pid}/task").iterdir()}
    except OSError:
        raise UsageError(f"no process {pid}", hint="pgrep -a qemu   lists running QEMUs") from None


def _vcpu_of_thread(pid: int, tid: int) -> int:
    """Return the vCPU that a thread runs, by the name QEMU and others give it, or -1."""
    with contextlib.suppress(OSError):
        if match := _VCPU_THREAD.match(Path(f"/proc/{pid}/task/{tid}/comm").read_text().strip()):
            return int(match[1])
    return -1
