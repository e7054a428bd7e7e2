"""Refuses work that this machine's memory cannot hold, before it is begun: a trace can name any amount."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tracekit.errors import UsageError

__all__ = ["require_memory"]

_SHARE: Final = 0.75


def require_memory(needed_bytes: int, what: str) -> None:
    """Raise UsageError when `what` needs more than three quarters of the memory that is available now.

    >>> require_memory(1 << 60, "the state of a replay")
    Traceback (most recent call last):
    tracekit.errors.UsageError: the state of a replay needs 1,073,741,824.0 GiB of memory, more than ...
    """
    if needed_bytes < 64 << 20:
        return
    room = _available_bytes() * _SHARE
    if needed_bytes > room:
        raise UsageError(
            f"{what} needs {needed_bytes / 2**30:,.1f} GiB of memory, more than the {room / 2**30:,.1f} GiB "
            "that may be used",
            hint="a machine with more memory; if the trace should be small, it is not what tracekit wrote",
        )


def _available_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return 1 << 62
