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

from tests.live.made_up import MadeUp, made_up_point
from tracekit.probes import tracefs
from tracekit.probes.raw import raw_tracepoint
from tracekit.trace.schema import KIND_CODE

pytestmark = pytest.mark.live("bpf", "root")

HVA = 0x7F00_0000_1000
ANONYMOUS = 1  # reclaim writes an anonymous page
JUST_NOW_NS = 1_000_000  # of common.h
UNPLACED = "swap_out_unplaced"
WRITTEN = made_up_point("vmscan", "mm_vmscan_write_folio", "pfn", "reclaim_flags")


class Reclaim(MadeUp):
    """One of the two programs loaded, on a kernel whose KVM tells of unmappings or does not."""

    def __init__(self, probe: str, notifies: bool) -> None:
        def lookup(category: str, event: str) -> tracefs.Tracepoint | None:
            if event == WRITTEN.event:
                return WRITTEN
            if event == "kvm_unmap_hva_range" and not notifies:
                return None
            return raw_tracepoint(category, event) or tracefs.tracepoint(category, event)

        self.event = WRITTEN.event if probe == "written_out" else "count_memcg_events"
        super().__init__(lookup, ("notifier", probe), {self.event})
        self.arguments = (0, ANONYMOUS) if probe == "written_out" else (0, self.known["ITEM_PSWPOUT"], 1)

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
        before = self.lost(UNPLACED)
        self.run(self.event, *self.arguments)
        records = self.records()
        assert (records["kind"] == KIND_CODE["swap_out"]).all()
        return records["hva"].tolist(), self.lost(UNPLACED) - before + int(records["gva"].sum())

    def swap_out_at_once(self, *, pages: int = 1) -> tuple[list[int], int]:
        """Do both so quickly that they belong together, however busy this machine is."""
        while True:
            start = time.monotonic_ns()
            self.unmapped(pages=pages)
            found = self.swap_out()
            if time.monotonic_ns() - start < JUST_NOW_NS:
                return found


@pytest.fixture(params=["written_out", "memcg"])
def reclaim(request: pytest.FixtureRequest) -> Iterator[Reclaim]:
    if request.param == "memcg" and raw_tracepoint("memcg", "count_memcg_events") is None:
        pytest.skip("this kernel has no memcg:count_memcg_events to be taken raw")
    with Reclaim.loaded(request.param, True) as made:
        yield made


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
    with Reclaim.loaded("written_out", False) as reclaim:
        assert reclaim.swap_out() == ([], 1)
