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
_MINOR_BITS: Final = 20


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

    On the wire `hva` holds the offset in the file, `gva` its inode's number, and `rip` the descriptor with
    the device above it; `level` is 2 where its blocks are huge pages. Where the kernel could not tell the
    inode (0), the descriptor is asked what it is now. Returns which of all rows (bool[n]) are of hugetlb
    memory, which only a file's own rows can say.
    """
    hugetlb = np.zeros(len(out["kind"]), bool)
    rows = np.flatnonzero(out["kind"] == _FALLOCATE)
    if not len(rows):
        return hugetlb
    offset, vm, rip, number = out["hva"][rows], out["vm"][rows], out["rip"][rows], out["gva"][rows]
    hugetlb[rows] = out["level"][rows] > 1
    for name in ("hva", "rip", "gva", "level"):
        writable(out, name)[rows] = 0
    # A VMM calls once for each page, and of the same file: of equal ones only one is looked at.
    for one_vm, one_rip, one_number in {*zip(vm.tolist(), rip.tolist(), number.tolist(), strict=True)}:
        mine = (vm == one_vm) & (rip == one_rip) & (number == one_number)
        if one_vm >= len(pids):
            continue
        pid, fd = pids[one_vm], one_rip & 0xFFFFFFFF
        if one_number:
            file = _device(one_rip >> 32), one_number
        else:
            hugetlb[rows[mine]] = _is_hugetlb(pid, fd)
            file = _behind(pid, fd)
        for mapping in _mappings_of(pid, file):
            first, size = np.uint64(mapping.offset), np.uint64(mapping.end - mapping.start)
            inside = mine & (offset >= first) & (offset - first < size)
            writable(out, "hva")[rows[inside]] = offset[inside] - first + np.uint64(mapping.start)
            writable(out, "valid")[rows[inside]] |= np.uint8(VALID["hva"])
    return hugetlb


def _device(in_kernel: int) -> int:
    """Return a device number of the kernel's (dev_t of include/linux/kdev_t.h) as os.stat has it."""
    return os.makedev(in_kernel >> _MINOR_BITS, in_kernel & ((1 << _MINOR_BITS) - 1))


def _is_hugetlb(pid: int, fd: int) -> bool:
    """Tell hugetlbfs by its block size, which is the huge page's."""
    with contextlib.suppress(OSError):
        return os.statvfs(f"/proc/{pid}/fd/{fd}").f_bsize >= _HUGE_BYTES
    return False


def _behind(pid: int, fd: int) -> tuple[int, int]:
    """Return the file (device, inode) that a descriptor is now; (0, 0) where it is none."""
    with contextlib.suppress(OSError):
        file = Path(f"/proc/{pid}/fd/{fd}").stat()
        return file.st_dev, file.st_ino
    return 0, 0


def _mappings_of(pid: int, file: tuple[int, int]) -> list[Mapping]:
    if not file[1]:
        return []
    with contextlib.suppress(OSError):
        maps = parse_maps(Path(f"/proc/{pid}/maps").read_text())
        return [m for m in maps if (m.device, m.inode) == file]
    return []
