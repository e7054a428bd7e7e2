"""The good input that each target starts from."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from tracekit.trace import Meta, TraceWriter, compact, events_batch
from tracekit.trace.meta import Host, Vm
from tracekit.trace.schema import KINDS

__all__ = ["FILES", "files_of", "finished", "killed", "smaller"]

FILES = Path(__file__).parents[1] / "unit" / "import_files"
_ROWS = 28


def _rows(start: int) -> Any:
    numbers = np.arange(_ROWS)
    return events_batch(
        ts_ns=start + numbers * 1000,
        kind=np.arange(_ROWS) % len(KINDS),
        vm=(numbers % 2).astype(np.uint16),
        tid=100 + numbers % 3,
        vcpu=numbers % 2,
        gfn=(numbers * 37) % 512,
        hva=0x7F0000000000 + numbers * 4096,
        pages=1 + (numbers % 5),
        level=1,
        latency_ns=numbers * 10,
        arg=numbers,
        flags=numbers % 64,
        valid={"gfn": numbers % 4 != 0, "vcpu": numbers % 5 != 0},
    )


def _write(path: Path) -> TraceWriter:
    vms = [Vm(pid=7 + n, argv=["qemu", "-m", "2G"], vcpus=2, page_bytes=4096) for n in range(2)]
    meta = Meta(source="recorded", host=Host(kernel="6.18", mmu_mode="ept", cpus=2), vms=vms, start_ns=1000)
    writer = TraceWriter(path, meta)
    for vm in range(2):
        writer.add_memslot(
            vm=vm, slot=0, gpa=0, size_bytes=2 << 20, hva=0x7F0000000000, from_ns=0, known_by="ioctl"
        )
    writer.add_sample(2000, 0, "rss_bytes", 4096.0)
    writer.mark("begin", 1500)
    for frame in range(3):
        writer.append(_rows(1000 + frame * 100_000_000))
        writer.flush(everything=True)
    writer.add_loss(cpu=0, t0_ns=1000, t1_ns=2000, lost=3, reason="ring_full: map")
    writer.flush(everything=True)
    return writer


@cache
def _made(how: Callable[[Path], None]) -> dict[str, bytes]:
    folder = Path(tempfile.mkdtemp())
    try:
        how(folder)
        return files_of(folder / "x.trace")
    finally:
        shutil.rmtree(folder)


def files_of(path: Path) -> dict[str, bytes]:
    """Return the files of a trace by their names inside it."""
    return {f.relative_to(path).as_posix(): f.read_bytes() for f in sorted(path.rglob("*")) if f.is_file()}


def finished() -> dict[str, bytes]:
    """A finished trace."""
    return _made(_finished)


def smaller() -> dict[str, bytes]:
    """The same, compacted."""
    return _made(_smaller)


def killed() -> dict[str, bytes]:
    """The same, whose writer vanished before it closed."""
    return _made(_killed)


def _finished(folder: Path) -> None:
    _write(folder / "x.trace").close()


def _smaller(folder: Path) -> None:
    _write(folder / "big.trace").close()
    compact(folder / "big.trace", folder / "x.trace")


def _killed(folder: Path) -> None:
    writer = _write(folder / "y.trace")
    shutil.copytree(folder / "y.trace", folder / "x.trace")
    writer.abort()
