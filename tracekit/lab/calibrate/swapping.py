"""Swapping: small guests touch pages that the host has paged out, and more than their memory limit holds."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

import numpy as np

from tracekit.datasets.memory_limit import file_swap, memory_limit, zram_swap
from tracekit.errors import CapabilityError
from tracekit.lab.calibrate.measure import Sample, Samples
from tracekit.lab.guest_memory import MADV_PAGEOUT
from tracekit.lab.guest_plan import GuestPlan
from tracekit.lab.small_guest import SmallGuest

__all__ = ["SWAPPING", "measure_swap_in", "measure_swap_out"]

SWAPPING: Final[dict[str, str]] = {
    "swap_in_zram": "small guest touches half-random pages that were paged out to zram, less when warm",
    "swap_in_file": "small guest touches half-random pages that were paged out to a swap file on this"
    " machine's disk, less when warm; wall-clock time, for it waits, readahead included",
    "swap_out_zram": "small guest touches over and over a third more than its memory cgroup holds: CPU time a"
    " page, less swap_in_zram and unmap_4k; where there is no such limit, as page_out_zram",
    "page_out_zram": "MADV_PAGEOUT of the pages above, less unmap_4k",
}
"""How each of these costs is measured."""

PAGES: Final = {"zram": 2048, "file": 512}
"""Pages of a guest by where they go: a disk may take a millisecond a page."""
_SWAP_BYTES: Final = 64 << 20
_ATTEMPTS: Final = 20
_LIMIT_BYTES: Final = 64 << 20
_LIMITED_PAGES: Final = 21841
"""A third more than the limit."""
_LIMITED_ROUNDS: Final = 6


def measure_swap_in(rounds: int, unmap_ns: float, *, say: Callable[[str], None]) -> Samples:
    """Return `rounds` samples of swap-in and paging out; what this host can't do is said.

    `unmap_ns` of each page paged out has a price of its own.
    """
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
                        found = list(_round(place, turn + 1, unmap_ns))
                        samples.add(iter(found if turn >= 0 else []))
            except CapabilityError as error:
                say(f"left out swap-in from {place}: {error.message}")
    return samples


def measure_swap_out(rounds: int, beside_ns: float, *, say: Callable[[str], None]) -> Samples:
    """Return samples of what evicting a page costs the task that faults, or none where nothing can limit it.

    `beside_ns` of each fault is its swap-in and the unmapping, which have prices of their own.
    """
    samples = Samples()
    try:
        for turn in range(min(rounds, _LIMITED_ROUNDS)):
            samples.add(_limited_round(turn, beside_ns))
    except (CapabilityError, OSError, subprocess.CalledProcessError) as error:
        say(f"left out reclaim under a limit: {error}")
        return Samples()
    return samples


def _limited_round(seed: int, beside_ns: float) -> Iterator[Sample]:
    """Run a guest in a process of its own: a process stays in the cgroup that it joined."""
    order = "random" if seed % 2 else "seq"
    words = ("lab", "guest", "--pages", str(_LIMITED_PAGES), "--passes", "3", "--order", order, "--json")
    with memory_limit(_LIMIT_BYTES, 4 * _LIMIT_BYTES) as group:
        command = (sys.executable, "-m", "tracekit", *words, "--seed", str(seed), "--cgroup", str(group))
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    phases = json.loads(said)["vcpus"][0]["phases"]
    spent = sum(phases[name]["cpu_ns"] for name in ("touch2", "touch3"))
    yield "swap_out_zram", max(0.0, spent / (2 * _LIMITED_PAGES) - beside_ns)


def _round(place: str, seed: int, unmap_ns: float) -> Iterator[Sample]:
    """Run a guest three times over the same memory: to fill it, after paging it out, and warm."""
    pages = PAGES[place]
    noise = np.random.default_rng(seed).integers(0, 256, (pages, 2048), dtype=np.uint8)
    with SmallGuest(GuestPlan(pages=pages, order="random", seed=seed, access="read", passes=2)) as guest:
        guest.memory.view()[: pages * 4096].reshape(pages, 4096)[:, 2048:] = noise
        guest.run()
        out = _timed_pageout(guest) / pages
        # A page that was on its way to a disk stays in the swap cache when it is there, and nothing is mapped
        # that could be paged out: a read maps it again, and then it can go at once, for it is clean.
        for _ in range(_ATTEMPTS):
            stays = guest.memory.resident()
            if not (left := int(stays.sum())):
                break
            time.sleep(0.05)
            guest.memory.view()[::4096][stays].max()
            guest.memory.advise(MADV_PAGEOUT)
        phases = guest.run().vcpus[0].phases
    clock = "cpu_ns" if place == "zram" else "elapsed_ns"
    gone = pages - left
    if gone < pages // 2:
        raise CapabilityError(f"the kernel paged out {gone} of {pages} pages")
    cold, warm = (getattr(phases[name], clock) for name in ("touch", "touch2"))
    yield f"swap_in_{place}", max(0.0, (cold - warm) / gone)
    if place == "zram":
        yield "page_out_zram", max(0.0, out - unmap_ns)


def _timed_pageout(guest: SmallGuest) -> float:
    started = time.thread_time_ns()
    guest.memory.advise(MADV_PAGEOUT)
    return float(time.thread_time_ns() - started)
