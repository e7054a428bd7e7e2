"""A memory cgroup (v2) whose limit can be set while its processes run."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self

from tracekit.datasets.memory_limit import remove_group
from tracekit.errors import CapabilityError

__all__ = ["MemoryLimit"]

_ROOT: Final = Path("/sys/fs/cgroup")


class MemoryLimit:
    """A cgroup of its own, without a limit at first; its processes must end before the with block does.

    Raises `CapabilityError` where cgroup v2's memory controller can't be had, or this user may not.
    """

    def __init__(self) -> None:
        self.path = _ROOT / f"tracekit-{os.getpid()}-{time.monotonic_ns()}"
        self._handed_down = False
        try:
            controls = (_ROOT / "cgroup.subtree_control").read_text().split()
            if "memory" not in controls:
                (_ROOT / "cgroup.subtree_control").write_text("+memory")
                self._handed_down = True
            self.path.mkdir()
        except OSError as error:
            raise CapabilityError(
                f"no memory cgroup can be made: {error.strerror or error}",
                hint="as root, on a host with cgroup v2 (the lab host: tracekit lab host run)",
            ) from error

    @contextlib.contextmanager
    def joined(self) -> Iterator[None]:
        """Start processes in the cgroup: what this process starts in the block is born there."""
        (home,) = (
            line.removeprefix("0::")
            for line in Path("/proc/self/cgroup").read_text().split()
            if line.startswith("0::")
        )
        (self.path / "cgroup.procs").write_text(str(os.getpid()))
        try:
            yield
        finally:
            (_ROOT / home.lstrip("/") / "cgroup.procs").write_text(str(os.getpid()))

    def set(self, limit_bytes: int | None) -> None:
        """Limit the memory of the cgroup's processes (None: no limit); what is above it goes at once."""
        (self.path / "memory.max").write_text("max" if limit_bytes is None else str(limit_bytes))

    def count(self, name: str) -> int:
        """Return a counter of memory.stat, such as pgmajfault."""
        lines = (self.path / "memory.stat").read_text().splitlines()
        return next(int(value) for key, value in map(str.split, lines) if key == name)

    def close(self) -> None:
        """Remove the cgroup, and put the root's controllers back as they were."""
        try:
            remove_group(self.path, within_s=5.0)
        finally:
            if self._handed_down:
                with contextlib.suppress(OSError):  # others have made groups meanwhile that need it
                    (_ROOT / "cgroup.subtree_control").write_text("-memory")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
