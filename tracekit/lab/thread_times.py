"""What the kernel's scheduler says of threads: the calling one, a whole process."""

from __future__ import annotations

from pathlib import Path

__all__ = ["process_ran_ns", "waited_ns"]


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


def process_ran_ns(pid: int) -> int:
    """Return the CPU time of all threads of a process so far: of QEMU nearly all is its guest's.

    Source: as `waited_ns`.

    >>> import os
    >>> process_ran_ns(os.getpid()) > 0
    True
    """
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)
