"""What the kernel's scheduler says of threads: the calling one, a whole process."""

from __future__ import annotations

import os
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
    """Return the CPU time of a process so far, ended threads included: of QEMU nearly all is its guest's.

    Source: /proc/PID/stat (utime, stime, in clock ticks); proc_pid_stat(5).

    >>> process_ran_ns(os.getpid()) > 0
    True
    """
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * 10**9 // os.sysconf("SC_CLK_TCK")
