"""Where a file is mapped in a process: fallocate names a file, a guest's memory is a mapping of it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from tracekit.probes.wire import VALID
from tracekit.trace.repeated import writable
from tracekit.trace.schema import KIND_CODE

__all__ = ["Mapping", "fill_hvas", "parse_maps"]

_FALLOCATE: Final = KIND_CODE["fallocate"]
_HUGE_BYTES: Final = 1 << 21


@dataclass(frozen=True)
class Mapping:
    """One line of /proc/PID/maps; `device` and `inode` are 0 for anonymous memory."""

    start: int
    end: int
    permissions: str
    offset: int
    device: int
    inode: int
    path: str


def parse_maps(text: str) -> list[Mapping]:
    """Read the text of /proc/PID/maps.

    >>> parse_maps("7f00-7f80 rw-s 00001000 00:01 77  /memfd:ram (deleted)")[0].path
    '/memfd:ram (deleted)'
    """
    found = []
    for line in text.splitlines():
        span, permissions, offset, device, inode, *path = line.split(maxsplit=5)
        start, _, end = span.partition("-")
        major, _, minor = device.partition(":")
        found.append(
            Mapping(
                start=int(start, 16),
                end=int(end, 16),
                permissions=permissions,
                offset=int(offset, 16),
                device=os.makedev(int(major, 16), int(minor, 16)),
                inode=int(inode),
                path=path[0] if path else "",
            )
        )
    return found


def fill_hvas(out: dict[str, np.ndarray], pids: Sequence[int]) -> np.ndarray:
    """Give `fallocate` rows the address where their range is mapped, where it is; `pids` is by VM.

    On the wire `hva` holds the offset in the file and `rip` the descriptor. Returns which of all rows
    (bool[n]) are of hugetlb memory, which only a file's own rows can say.
    """
    hugetlb = np.zeros(len(out["kind"]), bool)
    rows = np.flatnonzero(out["kind"] == _FALLOCATE)
    if not len(rows):
        return hugetlb
    offset = out["hva"][rows]
    writable(out, "hva")[rows] = 0
    vm, fd = out["vm"][rows], out["rip"][rows]
    writable(out, "rip")[rows] = 0
    for one_vm, one_fd in {(int(v), int(f)) for v, f in zip(vm, fd, strict=True)}:
        mine = (vm == one_vm) & (fd == one_fd)
        if one_vm >= len(pids):
            continue
        hugetlb[rows[mine]] = _is_hugetlb(pids[one_vm], one_fd)
        for mapping in _mappings_of(pids[one_vm], one_fd):
            first, size = np.uint64(mapping.offset), np.uint64(mapping.end - mapping.start)
            inside = mine & (offset >= first) & (offset - first < size)
            writable(out, "hva")[rows[inside]] = offset[inside] - first + np.uint64(mapping.start)
            writable(out, "valid")[rows[inside]] |= np.uint8(VALID["hva"])
    return hugetlb


def _is_hugetlb(pid: int, fd: int) -> bool:
    """Tell hugetlbfs by its block size, which is the huge page's."""
    with contextlib.suppress(OSError):
        return os.statvfs(f"/proc/{pid}/fd/{fd}").f_bsize >= _HUGE_BYTES
    return False


def _mappings_of(pid: int, fd: int) -> list[Mapping]:
    with contextlib.suppress(OSError):
        file = Path(f"/proc/{pid}/fd/{fd}").stat()
        maps = parse_maps(Path(f"/proc/{pid}/maps").read_text())
        return [m for m in maps if (m.device, m.inode) == (file.st_dev, file.st_ino)]
    return []
