"""What the kernel's scheduler says of threads: the calling one, a VM's vCPUs."""

from __future__ import annotations

from pathlib import Path

__all__ = ["vcpus_ran_ns", "waited_ns"]


def waited_ns() -> int:
    """Return how long this thread could have run and had no CPU since it began (0: nobody counts).

    Source: /proc/thread-self/schedstat (CPU time, run delay, slices); Documentation/scheduler/sched-stats.

    >>> waited_ns() >= 0
    True
    """
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1])
    except OSError:
        return 0


def vcpus_ran_ns(pid: int) -> int:
    """Return the CPU time of all vCPUs of a process so far: its guest's, and what KVM does for it on the way.

    Source: as `waited_ns`, of the threads that QEMU names "CPU N/KVM".
    """
    tasks = [task for task in Path(f"/proc/{pid}/task").iterdir() if "/KVM" in (task / "comm").read_text()]
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)
