"""Memslots read from KVM's own structures, of VMs that the reader itself holds.

In a process of its own: once a process has had a VM, the kernel tells notifiers of its memory for ever.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from unittest import mock

import pytest

from tests.live.recording import run_alone
from tracekit.lab.kvm import Kvm
from tracekit.probes import memslot_walk
from tracekit.probes.memslot_walk import walked_memslots

pytestmark = pytest.mark.live("kvm", "bpf", "root")

PAGE = mmap.PAGESIZE
SLOTS = 1_009  # a prime; several in each bucket of KVM's table
MOST = 2_048  # that are read of one VM
LOG_DIRTY = 1  # KVM_MEM_LOG_DIRTY_PAGES


def there() -> list[tuple[int, ...]]:
    return sorted(one[1:5] for one in walked_memslots(os.getpid()))


def test_the_memslots_of_a_vm_that_runs_already_are_those_that_were_set() -> None:
    run_alone(__spec__.name)


def main() -> None:
    """Make VMs and read their memslots."""
    memory = mmap.mmap(-1, (SLOTS + 2) * 2 * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    start += -start % PAGE
    assert walked_memslots(os.getpid()) == []
    with Kvm() as kvm, kvm.create_vm() as vm:
        expected = []
        for slot in range(SLOTS):
            gpa, size, hva = slot << 30, (1 + slot % 2) * PAGE, start + 2 * slot * PAGE
            vm.set_memslot(slot, gpa, size, hva)
            expected.append((slot, gpa, size, hva))
        assert there() == expected
        # Another descriptor of it is no other VM.
        copy = os.dup(walked_memslots(os.getpid())[0].vm_fd)
        assert there() == expected
        os.close(copy)
        # One that is closed between being listed and being borrowed, or then is another file, is no VM's.
        descriptors = memslot_walk.vm_descriptors
        with mock.patch.object(memslot_walk, "vm_descriptors", lambda pid: {*descriptors(pid), copy}):
            assert there() == expected
        # Where the kernel refuses the program they are not known, and that is no failure.
        refused = mock.Mock(load_func=mock.Mock(side_effect=Exception("Failed to load BPF program")))
        with mock.patch.object(memslot_walk, "compile_program", return_value=refused):
            assert there() == []
        # One goes, one moves: KVM then uses the other of its two sets.
        vm.set_memslot(5, 5 << 30, 0, start)
        vm.set_memslot(7, 7 << 30, 0, start)
        vm.set_memslot(7, 7_777 << 30, PAGE, start)
        kept = [one for one in expected if one[0] not in (5, 7)]
        assert there() == sorted([*kept, (7, 7_777 << 30, PAGE, start)])
        with kvm.create_vm() as other:
            other.set_memslot(0, 0, PAGE, start, LOG_DIRTY)
            assert there().count((0, 0, PAGE, start)) == 2
            walked = walked_memslots(os.getpid())
            assert len({slot.vm_fd for slot in walked}) == 2
            assert [slot.number for slot in walked if slot.flags == LOG_DIRTY] == [0]
            # All are known or none: what is outside of a process' memslots passes for no guest's.
            for slot in range(MOST):
                other.set_memslot(1 + slot, 1 + slot << 30, PAGE, start)
            assert there() == []


if __name__ == "__main__":
    main()
