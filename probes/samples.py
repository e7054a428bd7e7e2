"""Once a second, the host's own counters of each VM: the ground truth to check events and models with."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

__all__ = ["sample_host", "sample_process"]

_KIB: Final = 1024
_STATUS: Final = {"VmRSS": "rss_bytes", "VmHWM": "rss_peak_bytes", "VmSwap": "swap_bytes"}
_SMAPS: Final = {"Pss": "pss_bytes", "AnonHugePages": "anon_huge_bytes"}
_KVM: Final = Path("/sys/kernel/debug/kvm")
_CGROUP: Final = {
    "memory.current": "cgroup_memory_bytes",
    "memory.swap.current": "cgroup_swap_bytes",
    "memory.usage_in_bytes": "cgroup_memory_bytes",
    "memory.memsw.usage_in_bytes": "cgroup_memory_and_swap_bytes",
}
_RUNNING: Final = re.compile(r"^procs_running (\d+)", re.MULTILINE)
_PRESSURE: Final = re.compile(r"^(some|full) .*total=(\d+)", re.MULTILINE)


def sample_process(pid: int, *, pss: bool = True) -> Iterator[tuple[str, float]]:
    """Yield (metric, value) for one process; nothing for what cannot be read.

    `pss` walks the page tables (smaps_rollup): milliseconds a GiB, so leave it out for huge VMs.
    """
    yield from _table(Path(f"/proc/{pid}/status"), _STATUS)
    if pss:
        yield from _table(Path(f"/proc/{pid}/smaps_rollup"), _SMAPS)
    with contextlib.suppress(OSError, IndexError, ValueError):
        # The command's name (field 2) may hold spaces and brackets: count from its end.
        after = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        yield "minor_faults", float(after[7])
        yield "major_faults", float(after[9])
    yield from _kvm_counters(pid)
    yield from _cgroup(pid)


def sample_host() -> Iterator[tuple[str, float]]:
    """Yield (metric, value) of the whole host: memory pressure, available memory, free swap, its run queue.

    `runnable_threads` are those that run or could, without the one that asks (procs_running in proc(5)).
    """
    with contextlib.suppress(OSError):
        for kind, total in _PRESSURE.findall(Path("/proc/pressure/memory").read_text()):
            yield f"psi_memory_{kind}_us", float(total)
    wanted = {"MemAvailable": "host_available_bytes", "SwapFree": "host_swap_free_bytes"}
    yield from _table(Path("/proc/meminfo"), wanted)
    with contextlib.suppress(OSError):
        for running in _RUNNING.findall(Path("/proc/stat").read_text()):
            yield "runnable_threads", max(0.0, float(running) - 1)
        yield "cpus", float(os.sysconf("SC_NPROCESSORS_ONLN"))


def _table(path: Path, wanted: dict[str, str]) -> Iterator[tuple[str, float]]:
    """Yield the wanted lines of a `Name:  123 kB` file, in bytes."""
    with contextlib.suppress(OSError):
        for line in path.read_text().splitlines():
            name, _, rest = line.partition(":")
            if name in wanted:
                yield wanted[name], float(rest.split()[0]) * _KIB


def _kvm_counters(pid: int) -> Iterator[tuple[str, float]]:
    """Yield KVM's counters of the process's VMs (debugfs, root only), summed where it has several."""
    total: dict[str, float] = {}
    with contextlib.suppress(OSError):
        for folder in _KVM.glob(f"{pid}-*"):
            for path in folder.iterdir():
                with contextlib.suppress(OSError, ValueError):
                    name = f"kvm_{path.name}"
                    total[name] = total.get(name, 0.0) + float(path.read_text())
    yield from total.items()


def _cgroup(pid: int) -> Iterator[tuple[str, float]]:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers not in ("", "memory"):
                continue
            for root in (f"/sys/fs/cgroup/{controllers}", "/sys/fs/cgroup"):
                for file, metric in _CGROUP.items():
                    with contextlib.suppress(OSError, ValueError):
                        yield metric, float(Path(f"{root}{path}/{file}").read_text())
                if controllers == "":
                    break
