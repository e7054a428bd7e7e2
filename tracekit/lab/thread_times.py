"""What the kernel's scheduler says of the calling thread."""

from __future__ import annotations

from pathlib import Path

__all__ = ["waited_ns"]


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
