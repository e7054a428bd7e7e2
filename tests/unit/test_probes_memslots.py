"""Memslots as the recorder learns of them: seen as they are made, asked for, or assumed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tracekit.probes import slots
from tracekit.probes.filemap import Mapping
from tracekit.probes.memslots import Memslot, MemslotTable
from tracekit.probes.slots import assume
from tracekit.probes.wire import RECORD, VALID
from tracekit.trace.schema import KIND_CODE


class Notes:
    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def add_memslot(self, **row: Any) -> None:
        self.rows.append(row)


def table_columns(**columns: Any) -> dict[str, np.ndarray]:
    rows = len(next(iter(columns.values())))
    names = [name for name in RECORD.names or () if name not in ("length", "page")]
    return {n: np.array(columns.get(n, [0] * rows), RECORD[n]) for n in names}


def test_memslots_give_later_rows_their_gfn_until_they_are_deleted() -> None:
    notes = Notes()
    table = MemslotTable(notes)  # type: ignore[arg-type]
    kinds = [KIND_CODE[k] for k in ("memslot", "host_fault", "host_fault", "memslot", "host_fault", "unmap")]
    columns = table_columns(
        kind=kinds,
        ts_ns=[10, 11, 12, 20, 21, 9],
        gfn=[0x100, 0, 0, 0x100, 0, 0],
        hva=[0x700000, 0x701234, 0x900000, 0, 0x701234, 0x700000],
        rip=[0x10000, 1, 1, 0, 1, 1],
        arg=[3 | 2 << 32, 0, 0, 3, 0, 0],
        valid=[VALID["gfn"] | VALID["hva"]] + [VALID["hva"]] * 2 + [VALID["gfn"]] + [VALID["hva"]] * 2,
    )
    table.take_from(columns)
    table.fill_gfns(columns)
    has_gfn = (columns["valid"] & VALID["gfn"]) != 0
    assert has_gfn.tolist() == [True, True, False, True, False, False]
    assert columns["gfn"][1] == 0x101
    assert columns["pages"][[0, 3]].tolist() == [16, 0]
    assert columns["rip"][[0, 3]].tolist() == [0, 0]
    assert columns["arg"][[0, 3]].tolist() == [3, 3]
    assert notes.rows[0] == {
        **{"vm": 0, "slot": 3, "gpa": 0x100000, "size_bytes": 0x10000, "hva": 0x700000, "flags": 2},
        **{"from_ns": 10, "known_by": "ioctl"},
    }


GIB = 1 << 30


def mapping(start: int, size: int, path: str = "", permissions: str = "rw-p") -> Mapping:
    return Mapping(start, start + size, permissions, 0, 0, 0, path)


@pytest.mark.parametrize(
    ("argv", "maps", "expected"),
    [
        (["qemu-system-x86_64", "-m", "1G"], [mapping(8 * GIB, GIB)], [(0, GIB, 8 * GIB)]),
        (
            ["qemu-system-x86_64", "-m", "6G"],
            [mapping(8 * GIB, 6 * GIB), mapping(1, 7 * GIB, permissions="---p")],
            [(0, 3 * GIB, 8 * GIB), (4 * GIB, 3 * GIB, 11 * GIB)],
        ),
        (
            ["qemu-system-x86_64", "-M", "q35", "-m", "4096"],
            [mapping(8 * GIB, 4 * GIB)],
            [(0, 2 * GIB, 8 * GIB), (4 * GIB, 2 * GIB, 10 * GIB)],
        ),
        (["qemu-system-x86_64", "-m", "2G"], [mapping(8 * GIB, GIB)], []),
        (["vmm"], [mapping(GIB, 96 << 20), mapping(0, 1 << 20)], [(0, 96 << 20, GIB)]),
        # Memory of the VMM's own never passes for the guest's: an arena of malloc, full or half full ...
        (["vmm"], [mapping(GIB, 64 << 20), mapping(0, 1 << 20)], []),
        (["vmm"], [mapping(GIB, 40 << 20)], []),
        (
            ["vmm"],
            [mapping(GIB, 64 << 20), mapping(3 * GIB, 32 << 20, "/memfd:ram", "rw-s")],
            [(0, 32 << 20, 3 * GIB)],
        ),
        # ... nor any of two that fit as well.
        (["vmm"], [mapping(GIB, 96 << 20), mapping(2 * GIB, 128 << 20)], []),
        (["qemu-system-x86_64", "-m", "64"], [mapping(GIB, 64 << 20), mapping(2 * GIB, 64 << 20)], []),
        (["vmm"], [mapping(GIB, 64 << 20, "[heap]")], []),
    ],
)
def test_memory_that_is_assumed_has_the_vmms_usual_layout(
    argv: list[str], maps: list[Mapping], expected: list[tuple[int, int, int]]
) -> None:
    assert assume(argv, maps) == expected


def test_a_vm_whose_memory_is_not_known_for_sure_gets_a_note_and_no_memslots(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    maps = tmp_path / "maps"
    maps.write_text("40000000-44000000 rw-p 00000000 00:00 0\n")  # 64 MiB, as an arena of malloc
    monkeypatch.setattr(slots, "holds_vm", lambda pid: True)
    monkeypatch.setattr(slots, "Path", lambda path: maps)
    table: Any = SimpleNamespace(slots=[], vms=set())
    vm: Any = {"pid": 7, "argv": ["vmm"]}
    finder = slots.SlotFinder(table, {}, [vm], None, 0)
    finder.look(running=True)
    assert table.slots == []
    (note,) = says = finder.notes
    assert note.startswith("memslots that VM 0 had before are not known")
    assert note.endswith("no one mapping is its memory for sure")
    # One that it deletes, or makes, since then changes nothing in that.
    table.vms.add(0)
    finder.look(running=True)
    assert finder.notes == says


def test_a_monitor_that_never_appears_is_told_of(tmp_path: Path) -> None:
    socket = tmp_path / "qmp"
    table: Any = SimpleNamespace(slots=[], vms={0})
    vm: Any = {"pid": 7, "argv": ["qemu", "-accel", "kvm"]}
    finder = slots.SlotFinder(table, {}, [vm], socket, 0)
    finder.look(running=False)
    assert finder.notes == [f"the monitor's socket {socket} was never there: it was not asked"]
    socket.touch()
    finder.look(running=False)
    socket.unlink()
    finder.look(running=False)
    assert finder.notes == []


def test_virtual_machines_of_one_process_have_slots_of_their_own_until_they_are_closed() -> None:
    notes: list[dict[str, Any]] = []
    there = {7, 9}
    table = MemslotTable(
        SimpleNamespace(add_memslot=lambda **row: notes.append(row)),  # type: ignore[arg-type]
        lambda _: there,
    )

    def add(descriptor: int, hva: int, now: int, *, pages: int = 1, slot: int = 0) -> int:
        made = Memslot(0, slot, 0, 4096 * pages, hva, 0, now, "ioctl")
        return table.add(made, descriptor).slot

    assert (add(7, 0x1000, 1), add(9, 0x2000, 2), add(7, 0x3000, 3)) == (0, 1 << 24, 0)
    assert {slot.hva: slot.to_ns < 2**64 - 1 for slot in table.slots} == {
        0x1000: True,
        0x2000: False,
        0x3000: False,
    }
    assert add(9, 0, 4, pages=0) == 1 << 24
    assert [slot.hva for slot in table.slots if slot.to_ns == 4] == [0x2000]
    # A new one ends what was closed before, but nothing where the process is gone and cannot be asked.
    there = {12}
    assert add(12, 0x4000, 5) == 2 << 24
    assert [(row["slot"], row["size_bytes"], row["from_ns"]) for row in notes[-2:]] == [
        (0, 0, 5),
        (2 << 24, 4096, 5),
    ]
    there = set()
    assert add(13, 0x5000, 6) == 3 << 24
    assert {slot.hva for slot in table.slots if slot.to_ns > 6} == {0x4000, 0x5000}
    # One that ran before the recording, with a descriptor that is not known: it is the first.
    assert table.add(Memslot(1, 4, 0, 4096, 0x6000, 0, 7, "assumed")).slot == 4
    assert table.add(Memslot(1, 4, 0, 4096, 0x7000, 0, 8, "ioctl"), 5).slot == 4


def test_memslots_of_a_vm_that_is_gone_serve_its_last_rows_and_are_forgotten() -> None:
    notes: list[dict[str, Any]] = []
    table = MemslotTable(SimpleNamespace(add_memslot=lambda **row: notes.append(row)))  # type: ignore[arg-type]
    second = 1_000_000_000
    for vm in range(3):
        table.add(Memslot(vm, 0, 0, 4096, 0x1000, 0, vm * second, "ioctl"))
    table.end(0, 3 * second)
    assert (table.there, len(table.slots), table.vms) == ({1, 2}, 3, {0, 1, 2})

    def gfn_known(vm: int, ts_ns: int) -> bool:
        out = {
            "valid": np.array([VALID["hva"]], np.uint8),
            "hva": np.array([0x1008], np.uint64),
            "gfn": np.zeros(1, np.uint64),
            "vm": np.array([vm], np.uint16),
            "ts_ns": np.array([ts_ns], np.uint64),
        }
        table.fill_gfns(out)
        return bool(out["valid"][0] & VALID["gfn"])

    assert gfn_known(0, 3 * second - 1)
    assert not gfn_known(0, 3 * second)
    assert gfn_known(1, 9 * second)
    table.add(Memslot(3, 0, 0, 4096, 0x1000, 0, 6 * second, "ioctl"))
    assert {slot.vm for slot in table.slots} == {1, 2, 3}
    assert not gfn_known(0, 3 * second - 1)
    assert len(notes) == 4  # what the trace says of them stays as the VMM said it
