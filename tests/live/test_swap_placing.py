"""The programs that record swap-outs, run by the kernel on made-up arguments.

Which pages get a place, and of which the ledger says that they may have been a guest's?

BPF_PROG_TEST_RUN runs a raw tracepoint's program in the calling thread, whose last unmapping is made up too.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Iterator

import pytest

from tests.live.made_up import made_up_point
from tracekit.probes import bcc_package, constants, source, tracefs
from tracekit.probes.catalogue import HOST_PROBES
from tracekit.probes.program_run import run_program
from tracekit.probes.raw import raw_tracepoint
from tracekit.probes.ring import RingReader
from tracekit.probes.wire import LOST
from tracekit.trace.schema import KIND_CODE

pytestmark = pytest.mark.live("bpf", "root")

RING_BYTES = 1 << 20
HVA = 0x7F00_0000_1000
ANONYMOUS = 1  # reclaim writes an anonymous page
JUST_NOW_NS = 1_000_000  # of common.h
UNPLACED = LOST.index("swap_out_unplaced")
WRITTEN = made_up_point("vmscan", "mm_vmscan_write_folio", "pfn", "reclaim_flags")


class Reclaim:
    """One of the two programs loaded, on a kernel whose KVM tells of unmappings or does not."""

    def __init__(self, probe: str, *, notifies: bool) -> None:
        def lookup(category: str, event: str) -> tracefs.Tracepoint | None:
            if event == WRITTEN.event:
                return WRITTEN
            if event == "kvm_unmap_hva_range" and not notifies:
                return None
            return raw_tracepoint(category, event) or tracefs.tracepoint(category, event)

        chosen = [one for one in HOST_PROBES if one.name in ("process", "notifier", probe)]
        known = constants.kernel_constants("shadow", "kvm")
        text = source.build(chosen, lookup, ring_pages=RING_BYTES // 4096, defines=known)
        self.programs = bcc_package.compile_program(text.text)
        (name,) = (one.function for one in text.programs if one.probe == probe)
        self.fd = self.programs.load_func(name.encode(), bcc_package.load_bcc().BPF.RAW_TRACEPOINT).fd
        self.ring = RingReader(self.programs[b"ring"].map_fd, RING_BYTES)
        self.arguments = (0, ANONYMOUS) if probe == "written_out" else (0, known["ITEM_PSWPOUT"], 1)

    def unmapped(self, *, pages: int = 1, ago_ns: int = 0) -> None:
        """Let this thread have unmapped something."""
        table = self.programs[b"unmappings"]
        table[ctypes.c_uint32(threading.get_native_id())] = table.Leaf(
            HVA, time.monotonic_ns() - ago_ns, pages
        )

    def swap_out(self) -> tuple[list[int], int]:
        """Write a page out; return the rows' addresses, and how many had none and may be a guest's.

        Those are in the ledger; of a program that knows the cgroup, user space does that.
        """
        before = self._lost()
        run_program(self.fd, *self.arguments)
        records = self.ring.read().copy()
        self.ring.free()
        assert (records["kind"] == KIND_CODE["swap_out"]).all()
        return records["hva"].tolist(), self._lost() - before + int(records["gva"].sum())

    def swap_out_at_once(self, *, pages: int = 1) -> tuple[list[int], int]:
        """Do both so quickly that they belong together, however busy this machine is."""
        while True:
            start = time.monotonic_ns()
            self.unmapped(pages=pages)
            found = self.swap_out()
            if time.monotonic_ns() - start < JUST_NOW_NS:
                return found

    def _lost(self) -> int:
        return sum(cpu.count for cpu in self.programs[b"losses"][UNPLACED])

    def close(self) -> None:
        self.ring.close()
        self.programs.cleanup()


@pytest.fixture(params=["written_out", "memcg"])
def reclaim(request: pytest.FixtureRequest) -> Iterator[Reclaim]:
    if request.param == "memcg" and raw_tracepoint("memcg", "count_memcg_events") is None:
        pytest.skip("this kernel has no memcg:count_memcg_events to be taken raw")
    made = Reclaim(request.param, notifies=True)
    yield made
    made.close()


def test_what_may_have_been_a_guests_page_and_has_no_place_is_in_the_ledger(reclaim: Reclaim) -> None:
    without = [0] if reclaim.arguments[1] != ANONYMOUS else []  # a row without an address, or none
    # Nothing was unmapped in this thread that KVM knew: no guest's page, and no loss.
    assert reclaim.swap_out() == (without, 0)
    assert reclaim.swap_out_at_once() == ([HVA], 0)
    # It has had its swap-out: the next page is another one's, and again none of a guest's.
    assert reclaim.swap_out() == (without, 0)
    reclaim.unmapped(ago_ns=2 * JUST_NOW_NS)
    assert reclaim.swap_out() == (without, 1)


def test_unmappings_of_another_size_have_no_page(reclaim: Reclaim) -> None:
    # The count for a cgroup says how many pages went, and that is another number; what is written does not.
    expected = ([HVA], 0) if reclaim.arguments[1] == ANONYMOUS else ([0], 1)
    assert reclaim.swap_out_at_once(pages=16) == expected


def test_where_kvm_tells_of_no_unmapping_any_page_may_have_been_a_guests() -> None:
    reclaim = Reclaim("written_out", notifies=False)
    try:
        assert reclaim.swap_out() == ([], 1)
    finally:
        reclaim.close()
