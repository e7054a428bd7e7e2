"""The program that decodes hypercalls, run by the kernel on the arguments of calls that nobody makes here.

BPF_PROG_TEST_RUN runs a raw tracepoint's program with given arguments, in the calling thread: so every
extended call of Hyper-V (0x8001-0x8006) can be made up, with an input page in this process's own memory.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.live.made_up import MadeUp, made_up_point
from tracekit.probes import tracefs
from tracekit.probes.wire import VALID
from tracekit.trace.schema import KIND_CODE

pytestmark = pytest.mark.live("bpf", "root")

GPA = 0x7_0000_0000  # where the input page's slot begins
FIELDS = ("code", "fast", "var_cnt", "rep_cnt", "rep_idx", "ingpa", "outgpa")


class Hypervisor(MadeUp):
    """The decoder loaded, this thread traced as a vCPU, one memslot of one page of ours."""

    def __init__(self) -> None:
        point = made_up_point("kvm", "kvm_hv_hypercall", *FIELDS)

        def lookup(category: str, event: str) -> tracefs.Tracepoint | None:
            return point if event == point.event else tracefs.tracepoint(category, event)

        super().__init__(lookup, ("kvm_ioctl", "hypercall"), {point.event}, mmu=("npt", "kvm_amd"))
        self.trace_this_thread(vm_fd=7)
        self.page = mmap.mmap(-1, 4096)
        slots = self.programs[b"memslots"]
        at = ctypes.addressof(ctypes.c_char.from_buffer(self.page))
        slots[slots.Key(os.getpid(), 7, 2)] = slots.Leaf(2, 0, GPA, 4096, at)
        # Another VM of this process has the same slot, with other memory.
        slots[slots.Key(os.getpid(), 8, 2)] = slots.Leaf(2, 0, GPA, 4096, 4096)

    def call(self, code: int, *, count: int = 0, fast: bool = False, gpa: int = GPA) -> np.ndarray:
        """Let the program see a hypercall; return the records that it made."""
        self.run("kvm_hv_hypercall", code, fast, 0, count, 0, gpa, 0)
        return self.records()


@pytest.fixture(scope="module")
def hypervisor() -> Iterator[Hypervisor]:
    with Hypervisor.loaded() as made:
        yield made


def told(records: Any) -> list[tuple[int, int | None, int, int | None]]:
    """(arg, gfn or None, pages, level or None) of each record, all of this vCPU."""
    assert (records["kind"] == KIND_CODE["hv_hypercall"]).all()
    assert (records["vm"] == 3).all()
    assert (records["vcpu"] == 1).all()
    has = [(bool(r["valid"] & VALID["gfn"]), bool(r["valid"] & VALID["level"])) for r in records]
    return [
        (int(r["arg"]), int(r["gfn"]) if gfn else None, int(r["pages"]), int(r["level"]) if level else None)
        for r, (gfn, level) in zip(records, has, strict=True)
    ]


@pytest.mark.parametrize("code", [0x8001, 0x8002, 0x8004, 0x8005])
def test_calls_without_ranges_are_one_record(hypervisor: Hypervisor, code: int) -> None:
    assert told(hypervisor.call(code)) == [(code, GPA >> 12, 0, None)]
    assert told(hypervisor.call(code, fast=True, gpa=5)) == [(code, None, 0, None)]


@pytest.mark.parametrize("code", [0x8003, 0x8006])
@pytest.mark.parametrize(("heat", "number"), [("cold", 0), ("hot", 1), ("discard", 2)])
def test_heat_hints_have_their_ranges(hypervisor: Hypervisor, code: int, heat: str, number: int) -> None:
    ranges = (
        (0x12345 << 12 | 6, (0x12345, 7, 1)),  # 7 small pages
        (0x2A << 21 | 0x800 | 2, (0x2A << 9, 3 << 9, 2)),  # 3 of 2 MiB
        (0x600 << 21 | 0x1800, (0x600 << 9, 1 << 18, 3)),  # one of 1 GiB
        (0x77 << 12 | 0x7FF, (0x77, 2048, 1)),  # the most there can be
    )
    hypervisor.page[: 8 * 5] = struct.pack("<5Q", number, *(packed for packed, _ in ranges))
    arg = code | (1 + number) << 16
    expected = [(arg, gfn, pages, level) for _, (gfn, pages, level) in ranges]
    assert told(hypervisor.call(code, count=4)) == [(code, GPA >> 12, 4, None), *expected]


def test_what_cannot_be_read_or_is_too_much_is_in_the_ledger(hypervisor: Hypervisor) -> None:
    before = hypervisor.lost("unreadable_argument")
    assert told(hypervisor.call(0x8003, count=5, gpa=0x1000)) == [(0x8003, 1, 5, None)]
    assert hypervisor.lost("unreadable_argument") == before + 5
    hypervisor.page[:] = struct.pack("<512Q", 1, *(gfn << 12 for gfn in range(511)))
    rows = told(hypervisor.call(0x8003, count=511))
    assert [gfn for _, gfn, _, _ in rows[1:]] == list(range(len(rows) - 1))
    assert len(rows) - 1 + hypervisor.lost("ranges_cut") == 511
