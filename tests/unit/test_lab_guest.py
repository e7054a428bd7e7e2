"""The small guest's plan and machine code, as far as they go without running."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracekit.errors import CapabilityError, UsageError
from tracekit.lab import guest_code
from tracekit.lab.guest_memory import HUGE_BYTES, MADV_DONTNEED, GuestMemory
from tracekit.lab.guest_plan import GuestPlan
from tracekit.lab.kvm import Kvm, MemoryRegion, Regs, Sregs
from tracekit.lab.visit_order import Mixer


@given(
    pages=st.integers(1, 700),
    vcpus=st.integers(1, 5),
    order=st.sampled_from(["seq", "random", "stride"]),
    stride=st.integers(1, 40),
    seed=st.integers(0, 1 << 64),
)
def test_shares_partition_the_range_in_every_order(pages, vcpus, order, stride, seed):
    plan = GuestPlan(
        pages=pages, vcpus=min(vcpus, pages), order=order, stride=stride, seed=seed, step_bytes=8192
    )
    shares = [plan.gfns(vcpu) for vcpu in range(plan.vcpus)]
    assert [len(share) for share in shares] == [plan.share(vcpu) for vcpu in range(plan.vcpus)]
    assert np.array_equal(np.sort(np.concatenate(shares)), 512 + 2 * np.arange(pages))


def test_random_order_has_no_long_runs():
    gfns = GuestPlan(pages=65537, order="random", seed=11).gfns(0)
    steps = np.diff(gfns)
    assert (np.abs(steps) == 1).mean() < 0.001
    assert abs(np.corrcoef(np.arange(len(gfns)), gfns)[0, 1]) < 0.05


@pytest.mark.parametrize(
    "wrong",
    [
        {"page_bytes": 8192},
        {"step_bytes": 4097},
        {"step_bytes": 2 << 30},
        {"vcpus": 0},
        {"vcpus": 3, "pages": 2},
        {"vcpus": 65},
        {"stride": 0},
        {"pages": 513, "memory_bytes": 2 * HUGE_BYTES},
        {"memory_bytes": 64 * HUGE_BYTES + 4096},
        {"pages": 1 << 27},
        {"passes": 0},
        {"hint": "hot"},
        {"hint": "hot", "enlightened": "port", "order": "random"},
        {"hint": "hot", "enlightened": "port", "hint_batch": 100},
        {"hint": "hot", "enlightened": "port", "hint_batch": 4096},
        {"hot_add_pages": 1, "vcpus": 2},
    ],
)
def test_impossible_plans_are_usage_errors(wrong):
    with pytest.raises(UsageError) as caught:
        GuestPlan(**wrong)
    assert caught.value.hint


def test_structures_have_the_kernels_sizes():
    import ctypes

    sizes = {ctypes.sizeof(Regs): 144, ctypes.sizeof(Sregs): 0x138, ctypes.sizeof(MemoryRegion): 32}
    assert all(ours == kernels for ours, kernels in sizes.items())


@pytest.mark.parametrize("what", ["missing", "not KVM", "a folder"])
def test_no_kvm_is_a_capability_error_that_says_what_to_do(tmp_path: Path, what: str):
    device = {"missing": tmp_path / "kvm", "not KVM": Path("/dev/null"), "a folder": tmp_path}[what]
    before = {entry.name for entry in Path("/proc/self/fd").iterdir()}
    with pytest.raises(CapabilityError) as caught:
        Kvm(device)
    assert caught.value.hint
    assert {entry.name for entry in Path("/proc/self/fd").iterdir()} == before


def test_memory_counts_its_resident_pages_and_gives_them_back():
    with GuestMemory(8 << 20, page_bytes=4096) as memory:
        assert memory.address % HUGE_BYTES == 0
        view = memory.view()
        view[: 37 * 4096 : 4096] = 1
        assert memory.resident_pages() == 37
        memory.advise(MADV_DONTNEED, 5 * 4096, 3 * 4096)
        assert memory.resident_pages() == 34
        with pytest.raises(CapabilityError, match="madvise"):
            memory.advise(9999)
        del view


@pytest.mark.skipif(not shutil.which("objdump"), reason="objdump (binutils) is not installed")
@pytest.mark.parametrize("transport", ["port", "hyperv"])
def test_the_listing_says_what_a_disassembler_says(tmp_path: Path, transport):
    hint = guest_code.Hint("discard", 64, -3)
    loops = {
        "zero": guest_code.Loop("seq", "zero", skip_zeroed=True),
        "a": guest_code.Loop("random", "write", hint=hint, think=1000),
        "b": guest_code.Loop("stride", "read"),
    }
    code, labels, listing = guest_code.build(
        loops,
        mixer=Mixer.from_seed(5, bits=9),
        step_bytes=HUGE_BYTES,
        transport=transport,
        hypercall_page=0x4000,
    )
    (tmp_path / "code").write_bytes(code)
    disassembly = subprocess.run(
        ["objdump", "-D", "-b", "binary", "-m", "i386:x86-64", "-M", "intel", tmp_path / "code"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    theirs = [line.split("\t")[2].split()[0] for line in disassembly.splitlines() if line.count("\t") == 2]
    ours = [text.split()[0] for _, _, text in listing]
    assert [name.replace("movabs", "mov") for name in theirs] == ours
    assert labels["ask"] == 0
