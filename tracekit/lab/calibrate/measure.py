"""The measurements: each takes warm memory, recycles it, and gives nanoseconds for one operation.

A virtual machine's own host may back memory lazily, so every page is touched once before anything is timed,
and timed again after MADV_DONTNEED gave it back to a kernel that has it warm. Rounds of all measurements are
interleaved, so that a slow moment of the host falls on all of them alike; times are the thread's CPU time, so
that waiting for a CPU is not in them.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import numpy as np

from tracekit.lab.guest_memory import HUGE_BYTES, MADV_DONTNEED, MADV_POPULATE_WRITE, GuestMemory
from tracekit.lab.guest_plan import GuestPlan
from tracekit.lab.kvm import CAP_PRE_FAULT_MEMORY
from tracekit.lab.small_guest import SmallGuest

__all__ = ["RECIPES", "ZEROING", "Sample", "Samples", "measure_costs", "measure_zeroing"]

PAGES: Final[dict[int, int]] = {4096: 4096, HUGE_BYTES: 16}
"""Pages of a round by page size: 16 MiB and 32 MiB."""

EXITS: Final = 101
"""Exits of a round; the round's sample is their median."""

_GOES: Final = 4

RECIPES: Final[dict[str, str]] = {
    "ept_4k": "small guest writes 4 KiB pages that the host has discarded, less the same writes when mapped",
    "ept_2m": "small guest writes discarded 2 MiB pages, less the same when mapped; the least of 4 goes",
    "host_minor_4k": "this process writes 4 KiB pages it has discarded, less the same writes when mapped",
    "host_minor_2m": "this process writes discarded 2 MiB pages, less the same mapped; the least of 4 goes",
    "guest_zero_4k": "small guest zeroes mapped pages with rep stosq",
    "prefault_4k": "MADV_POPULATE_WRITE of discarded 4 KiB pages",
    "prefault_2m": "MADV_POPULATE_WRITE of discarded 2 MiB pages, the least of 4 goes",
    "unmap_4k": "MADV_DONTNEED of 4 KiB pages that the guest has mapped",
    "unmap_2m": "MADV_DONTNEED of 2 MiB pages that the guest has mapped, the least of 4 goes",
    "map_ahead": "KVM_PRE_FAULT_MEMORY of populated 4 KiB pages (left out where KVM has no such call)",
    "hypercall": "KVM_RUN of a guest that touches a mapped page and exits by `out`, Python's part included",
}
"""How each cost of the profile is measured."""

ZEROING: Final[dict[str, str]] = {
    "guest": "small guest zeroes its resident memory, backed by 2 MiB pages, with rep stosq; CPU time",
    "host": "this process zeroes the same memory with NumPy's fill; CPU time",
}
"""How the time to zero memory is measured, by who zeroes it."""

Sample = tuple[str, float]


@dataclass
class Samples:
    """Nanoseconds for one operation: one value a round, or as many as it happened where each was timed."""

    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, samples: Iterator[Sample]) -> None:
        """Add a round's samples."""
        for name, ns in samples:
            self.values.setdefault(name, []).append(ns)


def measure_costs(rounds: int, *, say: Callable[[str], None]) -> Samples:
    """Return `rounds` samples of every cost in `RECIPES`; the first round of each only warms its memory up.

    Raises `CapabilityError` where the host has no KVM.
    """
    with contextlib.ExitStack() as stack:
        measures: list[Callable[[], Iterator[Sample]]] = []
        for size, suffix in ((4096, "4k"), (HUGE_BYTES, "2m")):
            plan = GuestPlan(pages=PAGES[size], page_bytes=size, passes=2)
            guest = stack.enter_context(SmallGuest(plan))
            memory = stack.enter_context(GuestMemory(PAGES[size] * size, page_bytes=size))
            both = partial(_guest_faults, guest, suffix), partial(_host_faults, memory, size, suffix)
            measures += [partial(_least, measure) for measure in both] if size == HUGE_BYTES else both
        zeroing = stack.enter_context(SmallGuest(GuestPlan(pages=PAGES[4096], zero_first=True)))
        single = stack.enter_context(SmallGuest(GuestPlan(pages=1, passes=EXITS)))
        measures += [partial(_guest_zeroing, zeroing), partial(_exits, single)]
        if single.kvm.extension(CAP_PRE_FAULT_MEMORY):
            measures.append(_mapping_ahead)
        samples = Samples()
        for turn in range(-1, rounds):
            for measure in measures:
                if turn < 0:
                    list(measure())
                else:
                    samples.add(measure())
        say(f"{len(samples.values)} costs, {rounds} rounds")
    return samples


def measure_zeroing(sizes: tuple[int, ...], rounds: int) -> dict[tuple[str, int], list[float]]:
    """Return nanoseconds to zero resident memory, (guest or host, bytes) -> one value a round.

    The memory is backed with 2 MiB pages, so that no TLB misses of small pages are in the figure.
    """
    times: dict[tuple[str, int], list[float]] = {}
    for size in sizes:
        plan = GuestPlan(pages=size // HUGE_BYTES, page_bytes=HUGE_BYTES, zero_first=True, prealloc=True)
        with SmallGuest(plan) as guest:
            guest.run()
            for _ in range(rounds):
                zero = guest.run().vcpus[0].phases["zero"].cpu_ns
                times.setdefault(("guest", size), []).append(float(zero))
                times.setdefault(("host", size), []).append(_zero(guest.memory, size))
    return times


def _least(measure: Callable[[], Iterator[Sample]]) -> Iterator[Sample]:
    """Take a round's least of some goes, one straight after another.

    Where this host is a virtual machine itself, a huge page that its own host has not backed yet takes 1 to
    4 ms instead of 0.2, and which pages the kernel hands out changes with what else a round does. What a page
    costs that the machine has at hand is what straight repetition shows.
    """
    goes = [dict(measure()) for _ in range(_GOES)]
    yield from ((name, min(go[name] for go in goes)) for name in goes[0])


def _guest_faults(guest: SmallGuest, suffix: str) -> Iterator[Sample]:
    pages = guest.plan.pages
    phases = guest.run().vcpus[0].phases
    yield f"ept_{suffix}", max(0.0, (phases["touch"].cpu_ns - phases["touch2"].cpu_ns) / pages)
    yield f"unmap_{suffix}", _timed(lambda: guest.memory.advise(MADV_DONTNEED)) / pages


def _host_faults(memory: GuestMemory, size: int, suffix: str) -> Iterator[Sample]:
    pages = memory.size_bytes // size
    firsts = memory.view()[::size]
    memory.advise(MADV_DONTNEED)
    cold, warm = (_timed(lambda: np.copyto(firsts, 1)) for _ in range(2))
    yield f"host_minor_{suffix}", max(0.0, (cold - warm) / pages)
    memory.advise(MADV_DONTNEED)
    yield f"prefault_{suffix}", _timed(lambda: memory.advise(MADV_POPULATE_WRITE)) / pages


def _guest_zeroing(guest: SmallGuest) -> Iterator[Sample]:
    yield "guest_zero_4k", guest.run().vcpus[0].phases["zero"].cpu_ns / guest.plan.pages


def _exits(guest: SmallGuest) -> Iterator[Sample]:
    phases = guest.run().vcpus[0].phases.values()
    yield "hypercall", statistics.median(phase.cpu_ns for phase in phases)


def _mapping_ahead() -> Iterator[Sample]:
    with SmallGuest(GuestPlan(pages=PAGES[4096], prealloc=True, pre_fault=True)) as guest:
        yield "map_ahead", guest.run().pre_fault_ns / (guest.plan.memory_bytes >> 12)


def _zero(memory: GuestMemory, size: int) -> float:
    view = memory.view()[:size]
    return _timed(lambda: view.fill(0))


def _timed(work: Callable[[], object]) -> float:
    started = time.thread_time_ns()
    work()
    return float(time.thread_time_ns() - started)
