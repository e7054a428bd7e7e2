"""Whose event it is, where its memory is mapped, and what a VMM's call was: rules, on made-up rows."""

from __future__ import annotations

import mmap
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tracekit.probes.attribution import Attribution, cgroup_id, cgroup_lineage
from tracekit.probes.filemap import fill_hvas, parse_maps
from tracekit.probes.memslots import Memslot, MemslotTable
from tracekit.probes.other_vms import OtherVms
from tracekit.probes.vmm import Signature, classify, signature_of
from tracekit.probes.wire import RECORD, VALID, VM_UNKNOWN
from tracekit.trace.loss_reasons import SWAP_OUT_UNPLACED
from tracekit.trace.schema import KIND_CODE, KINDS


class NoWriter:
    def add_memslot(self, **_: Any) -> None:
        """The trace is not what is tested here."""


def rows(*given: dict[str, Any]) -> dict[str, np.ndarray]:
    """Decoded columns from rows; `valid` is a tuple of column names."""
    names = [name for name in RECORD.names or () if name not in ("length", "page")]
    out = {name: np.zeros(len(given), RECORD[name]) for name in names}
    for index, row in enumerate(given):
        plain = {"pages": 1, **row, "kind": KIND_CODE[row["kind"]]}
        plain["valid"] = sum(VALID[name] for name in row.get("valid", ()))
        for name, value in plain.items():
            out[name][index] = value
    return out


def kinds(out: dict[str, np.ndarray]) -> list[str]:
    return [KINDS[code] for code in out["kind"]]


@pytest.fixture
def two_vms() -> MemslotTable:
    table = MemslotTable(NoWriter())  # type: ignore[arg-type]
    for vm, slot, gpa, hva in ((0, 0, 0, 0x10000), (0, 1, 0x100000, 0x20000), (1, 0, 0, 0x50000)):
        table.add(Memslot(vm, slot, gpa, 0x8000, hva, 0, 10, "ioctl"))
    return table


@pytest.mark.parametrize(
    ("text", "group"),
    [
        ("0::/vm\n", "vm"),
        ("0::/\n", ""),
        ("5:cpu:/c\n4:memory:/vm\n0::/other\n", "memory/vm"),
        ("4:memory,cpu:/\n0::/other\n", ""),
        ("4:cpu:/c\n0::/vm\n", "unified/vm"),
    ],
)
def test_a_memory_cgroup_is_found_in_every_layout(tmp_path: Path, text: str, group: str) -> None:
    (tmp_path / "proc" / "7").mkdir(parents=True)
    (tmp_path / "proc" / "7" / "cgroup").write_text(text)
    (tmp_path / "proc" / "7" / "stat").write_text("7 (a) b) S 1 7 7 0 -1 4194304 97 0")
    folder = tmp_path / "cgroup" / group
    folder.mkdir(parents=True)
    expected = folder.stat().st_ino if group else 0
    assert cgroup_id(7, tmp_path / "proc", tmp_path / "cgroup") == expected
    assert cgroup_id(8, tmp_path / "proc", tmp_path / "cgroup") is None


@pytest.mark.parametrize(("text", "group"), [("4:memory:/\n0::/\n", None), ("0::/vm\n", "vm")])
def test_where_an_exiting_process_was_is_not_known_by_the_root_that_version_1_shows(
    tmp_path: Path, text: str, group: str | None
) -> None:
    with subprocess.Popen(["true"]) as ended:
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)  # not yet waited for
        stat = Path(f"/proc/{ended.pid}/stat").read_text()
    (tmp_path / "proc" / "7").mkdir(parents=True)
    (tmp_path / "proc" / "7" / "stat").write_text(stat)
    (tmp_path / "proc" / "7" / "cgroup").write_text(text)
    (tmp_path / "cgroup" / "vm").mkdir(parents=True)
    expected = (tmp_path / "cgroup" / group).stat().st_ino if group else None
    assert cgroup_id(7, tmp_path / "proc", tmp_path / "cgroup") == expected


def test_a_process_that_was_in_a_vms_cgroup_for_a_moment_does_not_share_it(
    two_vms: MemslotTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    cgroups: dict[int, tuple[int, ...] | None] = {100: (77, 1), 200: (77, 1)}
    monkeypatch.setattr("tracekit.probes.attribution.cgroup_lineage", cgroups.get)
    attribution = Attribution(two_vms, lambda: [100, 200])
    gone = rows({"kind": "swap_out", "ts_ns": 20, "vm": VM_UNKNOWN, "arg": 77, "valid": ("arg",)})
    assert attribution.resolve({name: column.copy() for name, column in gone.items()})["vm"].tolist() == []
    cgroups[100] = (0, 1)  # back in the root's
    assert attribution.resolve({name: column.copy() for name, column in gone.items()})["vm"].tolist() == [1]
    cgroups[200] = None  # it has ended, and its last rows come
    assert attribution.resolve({name: column.copy() for name, column in gone.items()})["vm"].tolist() == [1]
    # In the root's anybody may be.
    gone["arg"][:] = 0
    assert attribution.resolve(gone)["vm"].tolist() == []
    assert attribution.foreign == 2


def test_the_cgroups_above_are_known(tmp_path: Path) -> None:
    (tmp_path / "proc" / "7").mkdir(parents=True)
    (tmp_path / "proc" / "7" / "cgroup").write_text("0::/a/b\n")
    (tmp_path / "proc" / "7" / "stat").write_text("7 (a) S 1 7 7 0 -1 0 97 0")
    root = tmp_path / "cgroup"
    assert cgroup_lineage(7, tmp_path / "proc", root) == (0,)  # none to be seen: no telling
    (root / "a" / "b").mkdir(parents=True)
    ids = [folder.stat().st_ino for folder in (root / "a" / "b", root / "a", root)]
    assert cgroup_lineage(7, tmp_path / "proc", root) == tuple(ids)
    (tmp_path / "proc" / "7" / "cgroup").write_text("0::/\n")
    assert cgroup_lineage(7, tmp_path / "proc", root) == (0, ids[-1])


VM_GROUP, SLICE, ROOT_GROUP, OTHER = 77, 70, 1, 88


def unplaced(cgroup: int) -> dict[str, Any]:
    """A page went out without an address, after an unmapping of the thread that was not its own."""
    return {"kind": "swap_out", "ts_ns": 20, "vm": VM_UNKNOWN, "arg": cgroup, "gva": 1, "valid": ("arg",)}


@pytest.mark.parametrize(
    ("seen", "possible"),
    [
        # Its own cgroup, one above it, and where the kernel told none.
        ({100: (VM_GROUP, SLICE, ROOT_GROUP)}, {VM_GROUP, SLICE, ROOT_GROUP, 0}),
        # In the root's: others have cgroups of their own.
        ({100: (0, ROOT_GROUP)}, {ROOT_GROUP, 0}),
        # No hierarchy to be seen, or nothing known of any process: anybody's may be.
        ({100: (0,)}, {VM_GROUP, SLICE, ROOT_GROUP, 0, OTHER}),
        ({}, {VM_GROUP, SLICE, ROOT_GROUP, 0, OTHER}),
    ],
)
def test_a_page_that_went_out_somewhere_is_lost_only_where_it_can_be_a_vms(
    two_vms: MemslotTable,
    monkeypatch: pytest.MonkeyPatch,
    seen: dict[int, tuple[int, ...]],
    possible: set[int],
) -> None:
    monkeypatch.setattr("tracekit.probes.attribution.cgroup_lineage", seen.get)
    attribution = Attribution(two_vms, lambda: [100, 200])
    groups = (VM_GROUP, SLICE, ROOT_GROUP, 0, OTHER)
    out = attribution.resolve(rows(*(unplaced(group) for group in groups), {**unplaced(OTHER), "gva": 0}))
    at_most = sum(loss.at_most or 0 for loss in attribution.take_losses() if loss.reason == SWAP_OUT_UNPLACED)
    assert at_most == len(possible)
    assert not out["gva"].any()


def test_a_vms_own_cgroup_and_those_it_was_in_are_remembered(
    two_vms: MemslotTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[int, tuple[int, ...] | None] = {100: (OTHER, ROOT_GROUP)}
    monkeypatch.setattr("tracekit.probes.attribution.cgroup_lineage", seen.get)
    attribution = Attribution(two_vms, lambda: [100])
    attribution.note_cgroups()
    seen[100] = (VM_GROUP, ROOT_GROUP)
    attribution.note_cgroups()
    seen[100] = None  # it has ended
    attribution.resolve(rows(unplaced(OTHER), unplaced(VM_GROUP), unplaced(SLICE)))
    assert [loss.at_most for loss in attribution.take_losses()] == [2]


def test_pages_of_shared_memory_may_be_charged_to_anybody(
    ram: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tracekit.probes.attribution.cgroup_lineage", lambda _: (VM_GROUP, ROOT_GROUP))
    table = MemslotTable(NoWriter())  # type: ignore[arg-type]
    table.add(Memslot(0, 0, 0, 4096, ram[1], 0, 10, "ioctl"))
    attribution = Attribution(table, lambda: [os.getpid()])
    attribution.resolve(rows(unplaced(OTHER)))
    assert [loss.at_most for loss in attribution.take_losses()] == [1]


def test_an_address_tells_the_vm_and_foreign_memory_goes(two_vms: MemslotTable) -> None:
    attribution = Attribution(two_vms, lambda: [100, 200])
    out = attribution.resolve(
        rows(
            {"kind": "ksm_merge", "ts_ns": 20, "vm": VM_UNKNOWN, "hva": 0x51000, "valid": ("hva",)},
            {"kind": "ksm_merge", "ts_ns": 20, "vm": VM_UNKNOWN, "hva": 0x90000, "valid": ("hva",)},
            {"kind": "ksm_merge", "ts_ns": 9, "vm": VM_UNKNOWN, "hva": 0x51000, "valid": ("hva",)},
            {"kind": "host_fault", "ts_ns": 20, "vm": 1, "hva": 0x90000, "valid": ("hva",)},
        )
    )
    assert list(zip(kinds(out), out["vm"].tolist(), strict=True)) == [("ksm_merge", 1), ("host_fault", 1)]
    assert attribution.foreign == 2


def test_notifier_rows_are_cut_to_the_memslots_they_touch(two_vms: MemslotTable) -> None:
    attribution = Attribution(two_vms, lambda: [100, 200])
    out = attribution.resolve(
        rows(
            # From a traced thread of VM 0: spans the end of slot 0, a gap, and the start of slot 1.
            {"kind": "unmap", "ts_ns": 20, "vm": 0, "hva": 0x16000, "pages": 12, "valid": ("hva",)},
            # Of VM 0's own other memory: not the guest's.
            {"kind": "unmap", "ts_ns": 20, "vm": 0, "hva": 0x90000, "pages": 4, "valid": ("hva",)},
            # From kswapd: whole inside VM 1.
            {"kind": "age", "ts_ns": 20, "vm": VM_UNKNOWN, "hva": 0x52000, "pages": 1, "valid": ("hva",)},
        )
    )
    found = sorted(
        zip(kinds(out), out["vm"].tolist(), out["hva"].tolist(), out["pages"].tolist(), strict=True)
    )
    assert found == [("age", 1, 0x52000, 1), ("unmap", 0, 0x16000, 2), ("unmap", 0, 0x20000, 2)]


def test_rows_are_cut_to_each_of_many_memslots_that_they_touch() -> None:
    """Forty memslots of four pages, eight apart; the rows begin anywhere, and one is all memory."""
    table = MemslotTable(NoWriter())  # type: ignore[arg-type]
    for slot in range(40):
        table.add(Memslot(0, slot, slot << 20, 4 << 12, (64 + 8 * slot) << 12, 0, 10, "ioctl"))
    rng = np.random.default_rng(5)
    given = [(int(page), int(pages)) for page, pages in rng.integers((50, 1), (400, 20), (500, 2))]
    given.append((0, 1000))
    expected = sorted(
        (low << 12, high - low)
        for page, pages in given
        for start in range(64, 64 + 8 * 40, 8)
        if (low := max(page, start)) < (high := min(page + pages, start + 4))
    )
    unmaps = [
        {"kind": "unmap", "vm": 0, "ts_ns": 20, "hva": p << 12, "pages": n, "valid": ("hva",)}
        for p, n in given
    ]
    out = Attribution(table, lambda: [100]).resolve(rows(*unmaps))
    assert sorted(zip(out["hva"].tolist(), out["pages"].tolist(), strict=True)) == expected


def test_a_memslot_that_has_just_gone_still_answers_for_its_time(two_vms: MemslotTable) -> None:
    two_vms.add(Memslot(1, 0, 0, 0, 0, 0, 1_000_000, "ioctl"))
    out = rows(
        {"kind": "unmap", "ts_ns": 999_999, "vm": VM_UNKNOWN, "hva": 0x50000, "valid": ("hva",)},
        {"kind": "unmap", "ts_ns": 1_000_000, "vm": VM_UNKNOWN, "hva": 0x50000, "valid": ("hva",)},
    )
    attribution = Attribution(two_vms, lambda: [100, 200])
    assert attribution.resolve(out)["ts_ns"].tolist() == [999_999]
    two_vms.add(Memslot(0, 9, 1 << 40, 4096, 1 << 40, 0, 5_000_000_000, "ioctl"))
    assert len(two_vms.slots) == 3  # forgotten after a while, so that thousands of changes cost nothing


class Neighbours(OtherVms):
    """Untraced VMs with memory at these addresses."""

    def __init__(self, *places: tuple[int, int]) -> None:
        self.places = places

    def ranges(self, traced: Sequence[int]) -> list[tuple[int, int]]:
        return list(self.places)


NOBODYS = {"ts_ns": 20, "vm": VM_UNKNOWN, "hva": 0x51000, "valid": ("hva",)}


@pytest.mark.parametrize("kind", ["unmap", "age", "ksm_merge", "ksm_break", "swap_out"])
def test_whose_memory_it_is_counts_more_than_the_address(two_vms: MemslotTable, kind: str) -> None:
    attribution = Attribution(two_vms, lambda: [100, 200], Neighbours((0x50000, 0x60000)))
    row = {**NOBODYS, "kind": kind}
    out = attribution.resolve(rows({**row, "rip": 200}, {**row, "rip": 300}, {**row, "rip": 0}))
    assert out["vm"].tolist() == [1, 1]
    assert out["rip"].tolist() == [0, 0]
    # One was another process', and of one nothing but the address is known, which another VM has too.
    assert (attribution.foreign, attribution.uncertain) == (1, 1)


def test_an_address_that_only_one_vm_has_is_certain(two_vms: MemslotTable) -> None:
    attribution = Attribution(two_vms, lambda: [100, 200], Neighbours((0x52000, 0x60000)))
    unmapped = {**NOBODYS, "kind": "unmap"}
    attribution.resolve(rows(unmapped, {**unmapped, "hva": 0x90000}, {**unmapped, "vm": 1, "hva": 0x52000}))
    assert attribution.uncertain == 0
    attribution.resolve(rows({**unmapped, "pages": 2}))
    assert attribution.uncertain == 1
    # Two traced ones may have the same address, too.
    two_vms.add(Memslot(0, 2, 1 << 30, 0x8000, 0x50000, 0, 10, "ioctl"))
    attribution.resolve(rows(unmapped))
    assert attribution.uncertain == 2


def test_other_vms_are_those_of_kvm_that_are_not_traced(tmp_path: Path) -> None:
    of_kvm, processes, now = tmp_path / "kvm", tmp_path / "proc", [0]
    maps = {
        30: "7f0000000000-7f0000008000 rw-p 00000000 00:00 0\n7f0000010000-7f0000011000 r--p 0 00:00 0\n",
        31: "7f0000020000-7f0000021000 rw-s 00000000 00:01 9 /memfd:ram\n",
        32: "7f0000030000-7f0000031000 rw-p 00000000 00:00 0\n",  # no VM
    }
    for pid, text in maps.items():
        (processes / str(pid)).mkdir(parents=True)
        (processes / str(pid) / "maps").write_text(text)
        (processes / str(pid) / "status").write_text(f"Name:\tvmm\nTgid:\t{pid}\n")
    # KVM names the thread that made the VM, which need not be the first one.
    (processes / "35").mkdir()
    (processes / "35" / "status").write_text("Tgid:\t31\n")
    for name in ("30-11", "35-4", "99-7"):
        (of_kvm / name).mkdir(parents=True)
    (of_kvm / "exits").touch()
    others = OtherVms(of_kvm, processes, lambda: now[0])
    first, second = (0x7F0000000000, 0x7F0000008000), (0x7F0000020000, 0x7F0000021000)
    assert sorted(others.ranges([])) == [first, second]
    assert others.ranges([30]) == [second]
    (of_kvm / "35-4").rmdir()
    assert others.ranges([30]) == [second]  # it looks once a second
    now[0] += 1_000_000_000
    assert others.ranges([30]) == []


def advised(process: int, pidfd: int = 0, caller: int = 0) -> dict[str, Any]:
    """A `process_madvise` row of a process behind a pidfd, or (0) of what the caller's pidfd is now."""
    row = {"kind": "process_madvise", "ts_ns": 20, "vm": VM_UNKNOWN, "hva": 1, "valid": ("hva",)}
    return {**row, "rip": process, "gva": pidfd << 32 | caller}


def test_the_process_behind_a_pidfd_tells_the_vm(two_vms: MemslotTable) -> None:
    me = os.getpid()
    pidfd = os.pidfd_open(me)
    attribution = Attribution(two_vms, lambda: [me, 200])
    try:
        # What the kernel found counts, whatever the descriptor is by now.
        out = attribution.resolve(rows(advised(200, pidfd, me), {**advised(300, pidfd, me), "hva": 0x10000}))
        assert out["vm"].tolist() == [1]
        assert attribution.foreign == 1
        # Where it found nothing, what the descriptor is now.
        out = attribution.resolve(rows(advised(0, pidfd, me)))
        assert out["vm"].tolist() == [0]
        assert out["rip"].tolist() == out["gva"].tolist() == [0]
    finally:
        os.close(pidfd)
    assert attribution.take_losses() == []


def test_a_pidfd_that_tells_nothing_any_more_is_a_loss(two_vms: MemslotTable) -> None:
    me = os.getpid()
    attribution = Attribution(two_vms, lambda: [me, 200])
    given = [advised(0, 999_999, me), {**advised(0, 999_999, me), "ts_ns": 30}, advised(me)]
    assert attribution.resolve(rows(*given))["vm"].tolist() == [0]
    assert attribution.foreign == 0
    (loss,) = attribution.take_losses()
    assert (loss.t0_ns, loss.t1_ns, loss.lost, loss.at_most) == (20, 30, None, 2)
    assert attribution.take_losses() == []


@pytest.fixture
def ram() -> Iterator[tuple[int, int]]:
    """(descriptor, address) of a file of which pages 2 to 5 are mapped."""
    fd = os.memfd_create("ram")
    os.truncate(fd, 8 * 4096)
    memory = mmap.mmap(fd, 4 * 4096, offset=2 * 4096)
    (mapping,) = [
        m for m in parse_maps(Path("/proc/self/maps").read_text()) if m.inode == os.fstat(fd).st_ino
    ]
    yield fd, mapping.start
    memory.close()
    os.close(fd)


def test_a_files_offset_becomes_the_address_of_its_mapping(ram: tuple[int, int]) -> None:
    fd, start = ram
    out = rows(
        {"kind": "fallocate", "hva": 3 * 4096, "rip": fd},
        {"kind": "fallocate", "hva": 7 * 4096, "rip": fd},
        {"kind": "fallocate", "hva": 0, "rip": 999_999},
        {"kind": "madvise", "hva": 5, "valid": ("hva",)},
    )
    hugetlb = fill_hvas(out, [os.getpid()])
    assert out["hva"].tolist() == [start + 4096, 0, 0, 5]
    assert ((out["valid"] & VALID["hva"]) != 0).tolist() == [True, False, False, True]
    assert not hugetlb.any()


def test_a_file_that_the_kernel_told_is_no_other_by_the_same_descriptor(ram: tuple[int, int]) -> None:
    fd, start = ram
    file = os.fstat(fd)
    in_kernel = os.major(file.st_dev) << 20 | os.minor(file.st_dev)
    punched = {"kind": "fallocate", "hva": 3 * 4096, "rip": in_kernel << 32 | fd}
    out = rows(
        {**punched, "gva": file.st_ino},
        {**punched, "gva": file.st_ino, "rip": in_kernel << 32 | 999_999},  # closed meanwhile
        {**punched, "gva": file.st_ino + 1, "level": 2},  # another file had this number, of huge pages
    )
    hugetlb = fill_hvas(out, [os.getpid()])
    assert out["hva"].tolist() == [start + 4096, start + 4096, 0]
    assert hugetlb.tolist() == [False, False, True]
    assert [out[name].tolist() for name in ("rip", "gva", "level")] == [[0] * 3] * 3


QEMU = ["/usr/bin/qemu-system-x86_64", "-m", "1G", "-device"]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([*QEMU, "virtio-balloon-pci"], Signature("qemu", True, False)),
        ([*QEMU, "virtio-balloon-pci,id=b,free-page-reporting=on"], Signature("qemu", True, True)),
        ([*QEMU, "virtio-net-pci"], Signature("qemu", False, False)),
        (
            [*QEMU, "virtio-balloon-pci,free-page-reporting=on", "-device", "virtio-mem-pci,memdev=m"],
            Signature("qemu", True, False),
        ),
        (
            ["cloud-hypervisor", "--balloon", "size=0,free_page_reporting=on"],
            Signature("cloud-hypervisor", True, True),
        ),
        (["cloud-hypervisor", "--kernel", "x"], Signature("cloud-hypervisor", False, False)),
        (["./firecracker", "--api-sock", "x"], Signature("firecracker", joins_pages=True)),
        (["crosvm", "run"], Signature("unknown")),
        ([], Signature("unknown")),
    ],
)
def test_a_command_line_tells_the_signature(argv: list[str], expected: Signature) -> None:
    assert signature_of(argv) == expected


GUEST = ("hva", "gfn")
DONTNEED, WILLNEED, REMOVE, COLD = 4, 3, 9, 20
CALLS = (
    {"kind": "madvise", "arg": DONTNEED, "gfn": 7, "valid": GUEST},
    {"kind": "madvise", "arg": DONTNEED, "gfn": 1024, "pages": 1024, "valid": GUEST},
    {"kind": "madvise", "arg": DONTNEED, "gfn": 9, "pages": 5, "valid": GUEST},
    {"kind": "madvise", "arg": REMOVE, "gfn": 8, "valid": GUEST},
    {"kind": "madvise", "arg": WILLNEED, "gfn": 7, "valid": GUEST},
    {"kind": "madvise", "arg": WILLNEED, "gfn": 512, "pages": 512, "valid": GUEST},
    {"kind": "madvise", "arg": COLD, "gfn": 7, "valid": GUEST},
    {"kind": "madvise", "arg": DONTNEED, "valid": ("hva",)},
    {"kind": "fallocate", "arg": 3, "gfn": 7, "valid": GUEST},
    {"kind": "fallocate", "arg": 3, "gfn": 512, "pages": 512, "valid": GUEST},  # hugetlb
    {"kind": "fallocate", "arg": 0, "gfn": 512, "pages": 512, "valid": GUEST},  # hugetlb, not a hole
)
UP, D, R, M, F = "balloon_inflate", "balloon_deflate", "free_page_report", "madvise", "fallocate"


@pytest.mark.parametrize(
    ("signature", "expected"),
    [
        (Signature("qemu", True, True), [UP, R, R, UP, D, M, M, M, F, R, F]),
        (Signature("qemu", True, False), [UP, M, M, UP, D, M, M, M, F, UP, F]),
        (Signature("qemu", False, False), [M, M, M, M, M, M, M, M, F, F, F]),
        (Signature("firecracker", joins_pages=True), [UP, UP, UP, UP, M, M, M, M, F, UP, F]),
        (Signature("firecracker", reports=True, joins_pages=True), [UP, R, UP, UP, M, M, M, M, F, R, F]),
        (Signature("unknown"), [UP, R, R, UP, D, M, M, M, F, UP, F]),
    ],
)
def test_the_rule_for_each_vmm(signature: Signature, expected: list[str]) -> None:
    out = rows(*CALLS)
    hugetlb = np.arange(len(CALLS)) >= 9
    before = {name: column.copy() for name, column in out.items() if name != "kind"}
    classify(out, [signature], hugetlb)
    assert kinds(out) == expected
    assert all((out[name] == column).all() for name, column in before.items())


def test_each_vm_is_judged_by_its_own_vmm() -> None:
    out = rows(*({**CALLS[0], "vm": vm} for vm in (0, 1)))
    classify(out, [Signature("qemu", False, False), Signature("qemu", True, False)], np.zeros(2, bool))
    assert kinds(out) == ["madvise", "balloon_inflate"]
