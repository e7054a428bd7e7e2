"""Swap-in: small guests touch pages that the host has paged out, to zram and to a file of our own."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

import numpy as np

from tracekit.datasets.memory_limit import file_swap, zram_swap
from tracekit.errors import CapabilityError
from tracekit.lab.calibrate.measure import Sample, Samples
from tracekit.lab.guest_memory import MADV_PAGEOUT
from tracekit.lab.guest_plan import GuestPlan
from tracekit.lab.small_guest import SmallGuest

__all__ = ["SWAPPING", "measure_swap_in"]

SWAPPING: Final[dict[str, str]] = {
    "swap_in_zram": "small guest touches half-random pages that were paged out to zram, less when warm",
    "swap_in_file": "the same from a swap file on this machine's disk; wall-clock time, for it waits",
    "swap_out_zram": "MADV_PAGEOUT of these pages to zram",
}
"""How each of these costs is measured."""

PAGES: Final = 2048
_SWAP_BYTES: Final = 64 << 20
_ATTEMPTS: Final = 20


def measure_swap_in(rounds: int, *, say: Callable[[str], None]) -> Samples:
    """Return `rounds` samples of every cost in `SWAPPING` that this host can do; the others are said."""
    samples = Samples()
    with tempfile.TemporaryDirectory(prefix="tracekit-swap-", dir="/var/tmp") as folder:
        places: dict[str, AbstractContextManager[None]] = {
            "zram": zram_swap(_SWAP_BYTES),
            "file": file_swap(_SWAP_BYTES, Path(folder)),
        }
        for place, swap in places.items():
            try:
                with swap:
                    for turn in range(-1, rounds):
                        found = list(_round(place, turn + 1))
                        samples.add(iter(found if turn >= 0 else []))
            except CapabilityError as error:
                say(f"left out swap-in from {place}: {error.message}")
    return samples


def _round(place: str, seed: int) -> Iterator[Sample]:
    """Run a guest three times over the same memory: to fill it, after paging it out, and warm."""
    noise = np.random.default_rng(seed).integers(0, 256, (PAGES, 2048), dtype=np.uint8)
    with SmallGuest(GuestPlan(pages=PAGES, order="random", seed=seed, access="read", passes=2)) as guest:
        guest.memory.view()[: PAGES * 4096].reshape(PAGES, 4096)[:, 2048:] = noise
        guest.run()
        out = _timed_pageout(guest) / PAGES
        for _ in range(_ATTEMPTS):  # a page that is on its way to a disk stays until it is there
            if not (left := guest.memory.resident_pages()):
                break
            time.sleep(0.05)
            guest.memory.advise(MADV_PAGEOUT)
        phases = guest.run().vcpus[0].phases
    clock = "cpu_ns" if place == "zram" else "elapsed_ns"
    gone = PAGES - left
    if gone < PAGES // 2:
        raise CapabilityError(f"the kernel paged out {gone} of {PAGES} pages")
    cold, warm = (getattr(phases[name], clock) for name in ("touch", "touch2"))
    yield f"swap_in_{place}", max(0.0, (cold - warm) / gone)
    if place == "zram":
        yield "swap_out_zram", out


def _timed_pageout(guest: SmallGuest) -> float:
    started = time.thread_time_ns()
    guest.memory.advise(MADV_PAGEOUT)
    return float(time.thread_time_ns() - started)
