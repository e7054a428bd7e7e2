"""The enlightenments' formats and the VMM's answers, against values worked out by hand."""

from __future__ import annotations

import struct
import time

import pytest

from tracekit.lab import hyperv
from tracekit.lab.enlightenment import Backing, Enlightenment
from tracekit.lab.guest_memory import GuestMemory

GPA = 2 << 20


@pytest.fixture
def memory():
    with GuestMemory(4 << 20, page_bytes=4096) as guest_memory:
        yield guest_memory


def hint(heat: int, *descriptors: int) -> tuple[int, bytes]:
    control = hyperv.MEMORY_HEAT_HINT | len(descriptors) << 32
    return control, struct.pack(f"<{1 + len(descriptors)}Q", heat, *descriptors).ljust(4096, b"\0")


def test_range_descriptors_in_all_three_units():
    small = 0x12345 << 12 | 6  # 7 pages of 4 KiB from gfn 0x12345
    large = 5 << 21 | 1 << 11 | 2  # 3 pages of 2 MiB from the fifth
    gigantic = 3 << 30 | 1 << 12 | 1 << 11 | 0  # one of 1 GiB
    heat, ranges = hyperv.decode_heat_hint(hint(2, small, large, gigantic)[1], 3)
    assert heat == "discard"
    assert ranges == [(0x12345000, 7 * 4096), (5 << 21, 3 << 21), (3 << 30, 1 << 30)]


def test_only_the_biggest_ranges_are_reported():
    page = hyperv.boot_zeroed_page((first, first) for first in range(1, 301))
    assert len(page) == 4096
    count, start, pages = struct.unpack_from("<3Q", page)
    assert (count, start, pages) == (255, 300, 300)
    assert struct.unpack_from("<2Q", page, 8 + 254 * 16) == (46, 46)


def test_hyperv_leaves_replace_kvms():
    kvm = struct.pack("<2I", 2, 0) + struct.pack("<10I", 1, *(0,) * 9)
    kvm += struct.pack(
        "<10I", 0x40000000, 0, 0, 0x40000001, *struct.unpack("<3I", b"KVMKVMKVM\0\0\0"), 0, 0, 0
    )
    leaves = hyperv.with_hyperv_leaves(kvm)
    assert b"KVMKVM" not in leaves
    assert b"Microsoft Hv" in leaves
    assert struct.unpack_from("<I", leaves)[0] == (len(leaves) - 8) / 40 == 7


def test_the_vmm_knows_what_is_zeroed_until_the_guest_has_run(memory: GuestMemory):
    backings = [Backing(GPA, memory)]
    with Enlightenment(backings) as vmm:
        status, page = vmm.call(hyperv.QUERY_CAPABILITIES, bytes(4096))
        assert (status, struct.unpack_from("<Q", page)[0]) == (0, 0b1_0000_0011)
        assert struct.unpack_from("<3Q", vmm.call(hyperv.GET_BOOT_ZEROED, b"")[1]) == (1, 512, 1024)
        vmm.used()
        assert struct.unpack_from("<Q", vmm.call(hyperv.GET_BOOT_ZEROED, b"")[1]) == (0,)
        assert vmm.call(0x8004, bytes(4096)) == (hyperv.STATUS_INVALID_CODE, b"")


def test_hints_do_what_they_say_and_nothing_else(memory: GuestMemory):
    mapped: list[tuple[int, int]] = []
    with Enlightenment([Backing(GPA, memory)], map_pages=lambda *range_: mapped.append(range_)) as vmm:
        status, _ = vmm.call(*hint(1, GPA | 12, GPA + (1 << 20) | 0))
        assert status == 2 << 32
        deadline = time.monotonic() + 5
        while vmm.counts().get("prefaulted_pages", 0) < 14 and time.monotonic() < deadline:
            time.sleep(0.001)
        assert memory.resident_pages() == 14
        assert mapped == [(GPA, 13 * 4096), (GPA + (1 << 20), 4096)]
        vmm.call(*hint(2, GPA + 4096 | 2))
        assert memory.resident_pages() == 11
        vmm.call(*hint(0, GPA | 0))
        counts = vmm.counts()
    assert (counts["hot_pages"], counts["discard_pages"], counts["cold_pages"]) == (14, 3, 1)


@pytest.mark.parametrize("wrong", [hint(3, GPA), hint(1, 0), hint(2, GPA + (4 << 20)), hint(2, GPA | 1024)])
def test_wrong_hints_are_refused_and_touch_nothing(memory: GuestMemory, wrong):
    memory.view()[:] = 1
    with Enlightenment([Backing(GPA, memory)]) as vmm:
        assert vmm.call(*wrong) == (hyperv.STATUS_INVALID_PARAMETER, b"")
    assert memory.resident_pages() == 1024


def test_a_failed_prefault_is_raised_at_the_end(memory: GuestMemory):
    def broken(gpa: int, size_bytes: int) -> None:
        raise OSError("mapping failed")

    vmm = Enlightenment([Backing(GPA, memory)], map_pages=broken)
    vmm.__enter__()
    vmm.call(*hint(1, GPA))
    time.sleep(0.1)
    with pytest.raises(OSError, match="mapping failed"):
        vmm.__exit__(None)
