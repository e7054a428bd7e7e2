"""What the host's kernel does beside faults: context switches, ksmd, a balloon's discards."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import numpy as np

from tracekit.errors import CapabilityError
from tracekit.lab.calibrate.measure import Sample, Samples
from tracekit.lab.guest_memory import MADV_DONTNEED, MADV_MERGEABLE, MADV_POPULATE_WRITE, GuestMemory
from tracekit.lab.ksm import ksm_counter, ksm_settings, merged_pages

__all__ = ["SYSTEM", "measure_system"]

SYSTEM: Final[dict[str, str]] = {
    "epf_switch": "two processes on one CPU pass a byte to and fro; CPU time less that of the calls, half",
    "ksm_scan_4k": "ksmd's CPU time for each page that it scanned, with nothing new to merge",
    "ksm_merge_4k": "ksmd's CPU time for each page that it merged, scanning included",
    "ksm_break_4k": "a write to a merged page, less the same write when it is private",
    "balloon_4k": "the host's part of a balloon's inflation: one MADV_DONTNEED a page, less an empty call",
}
"""How each of these costs is measured."""

_PAGES: Final = 2048
_PASSES: Final = 1000
_PATIENCE_S: Final = 15.0


def measure_system(rounds: int, *, say: Callable[[str], None]) -> Samples:
    """Return `rounds` samples of every cost in `SYSTEM` that this host can do; the others are said.

    KSM's settings are put back, and what it merged for us ends with our memory.
    """
    samples = Samples()
    for _ in range(rounds):
        samples.add(_switch())
        samples.add(_discards())
    try:
        for _ in range(max(2, rounds // 8)):
            samples.add(_ksm())
    except (CapabilityError, OSError) as error:
        say(f"left out KSM: {error}")
    return samples


def _switch() -> Iterator[Sample]:
    there, back = os.pipe(), os.pipe()
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cpus)})
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            for _ in range(_PASSES):
                os.write(back[1], os.read(there[0], 1))
        os._exit(0)
    try:
        started = time.thread_time_ns()
        for _ in range(_PASSES):
            os.write(there[1], b"x")
            os.read(back[0], 1)
        both = time.thread_time_ns() - started
        _, _, usage = os.wait4(child, 0)
        both += round((usage.ru_utime + usage.ru_stime) * 1e9)
        started = time.thread_time_ns()
        for _ in range(_PASSES):
            os.write(there[1], b"x")
            os.read(there[0], 1)
        alone = time.thread_time_ns() - started
    finally:
        os.sched_setaffinity(0, cpus)
        for fd in (*there, *back):
            os.close(fd)
    yield "epf_switch", max(0.0, (both - 2 * alone) / (2 * _PASSES))


def _discards() -> Iterator[Sample]:
    with GuestMemory(_PAGES << 12, page_bytes=4096) as memory:
        memory.advise(MADV_POPULATE_WRITE)
        started = time.thread_time_ns()
        for page in range(_PAGES):
            memory.advise(MADV_DONTNEED, page << 12, 4096)
        full = time.thread_time_ns() - started
        started = time.thread_time_ns()
        for page in range(_PAGES):
            memory.advise(MADV_DONTNEED, page << 12, 0)
        yield "balloon_4k", max(0.0, (full - (time.thread_time_ns() - started)) / _PAGES)


def _ksm() -> Iterator[Sample]:
    """Let ksmd merge pairs of equal pages, then scan them for nothing; then write one of each pair."""
    daemon = _ksmd()
    with GuestMemory(_PAGES << 12, page_bytes=4096) as memory:
        _fill_with_pairs(memory)
        memory.advise(MADV_MERGEABLE)
        spent = _spent(daemon)
        with ksm_settings(pages_to_scan=_PAGES, sleep_millisecs=1, run=1):
            deadline = time.monotonic() + _PATIENCE_S
            while (merged := merged_pages()) < _PAGES:
                if time.monotonic() > deadline:
                    raise CapabilityError("ksmd did not merge equal pages in time")
                time.sleep(0.01)
            yield "ksm_merge_4k", (_spent(daemon) - spent) / merged
            spent, scanned = _spent(daemon), ksm_counter("pages_scanned")
            time.sleep(0.3)
            yield "ksm_scan_4k", (_spent(daemon) - spent) / max(1, ksm_counter("pages_scanned") - scanned)
        cold, warm = (_write_each(memory) for _ in range(2))
        yield "ksm_break_4k", max(0.0, (cold - warm) / _PAGES)


def _fill_with_pairs(memory: GuestMemory) -> None:
    random = np.random.default_rng(0)
    halves = random.integers(0, 256, (_PAGES // 2, 4096), dtype=np.uint8)
    memory.view().reshape(_PAGES, 4096)[:] = halves.repeat(2, axis=0)


def _write_each(memory: GuestMemory) -> float:
    started = time.thread_time_ns()
    memory.view()[::4096] = 1
    return float(time.thread_time_ns() - started)


def _ksmd() -> Path:
    for comm in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            if comm.read_text() == "ksmd\n":
                return comm.with_name("schedstat")
    raise CapabilityError("there is no ksmd")


def _spent(schedstat: Path) -> int:
    """Return the CPU time of a thread in ns."""
    return int(schedstat.read_text().split()[0])
