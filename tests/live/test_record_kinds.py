"""Every kind of event that this host can make, a known number of times or the kernel's own count."""

from __future__ import annotations

import contextlib
import json
import mmap
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.live.recording import TRACEKIT, ended, of_kind, record_command, wait_for
from tests.live.second_tracer import field, second_tracer
from tests.unit.test_probes_source import OLD_PAGE_FAULT
from tracekit.probes import bcc_package, btf, constants, run, source, tracefs
from tracekit.probes.catalogue import HOST_PROBES, host_probes
from tracekit.replay import load_profile
from tracekit.replay import run as replay
from tracekit.trace import Trace, open_trace
from tracekit.trace.schema import FLAG_UNWRITTEN

TRACEPOINT = 5  # BPF_PROG_TYPE_TRACEPOINT

pytestmark = pytest.mark.live("kvm", "bpf", "root")

# What all these VMMs begin with: a VM whose memory is `memory`, and `at` is where it is.
PRELUDE = """
import ctypes, json, mmap, os, resource, sys, time
from tracekit.lab.kvm import Kvm, Vm
libc = ctypes.CDLL(None, use_errno=True)
HUGE = 2 << 20
def address(m): return ctypes.addressof(ctypes.c_char.from_buffer(m))
def anonymous(size):
    m = mmap.mmap(-1, size + HUGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    m.madvise(mmap.MADV_NOHUGEPAGE)
    return m, -address(m) % HUGE
def tell(**account): json.dump(account, open(sys.argv[1], "w"))
"""


def record_script(folder: Path, script: str, *arguments: str) -> tuple[Trace, dict[str, Any]]:
    account = folder / "account.json"
    command = [sys.executable, "-c", PRELUDE + script, str(account), *arguments]
    trace, _ = record_command(folder / "kinds.trace", *command)
    assert trace.meta.probes["refused"] == {}
    return trace, json.loads(account.read_text())


CALLS = """
SIZE = 64 << 20
memory, skip = anonymous(SIZE)
fd = os.memfd_create("ram"); os.truncate(fd, SIZE)
shared = mmap.mmap(fd, SIZE)
with Kvm() as kvm, kvm.create_vm() as vm:
    vm.set_memslot(0, 0, SIZE, address(memory) + skip)
    vm.set_memslot(1, 1 << 32, SIZE, address(shared))
    for page in range(0, SIZE, 4096): memory[skip + page] = shared[page] = 1
    for i in range(257): memory.madvise(mmap.MADV_DONTNEED, skip + 8192 * i, 4096)
    for i in range(101): memory.madvise(mmap.MADV_WILLNEED, skip + 8192 * i, 4096)
    for i in range(13): memory.madvise(mmap.MADV_DONTNEED, skip + (1 + 2 * i) * HUGE, HUGE)
    for i in range(17): libc.fallocate(fd, 3, ctypes.c_long(4096 * (100 + 2 * i)), ctypes.c_long(4096))
    outside = mmap.mmap(-1, HUGE)
    for i in range(7): outside.madvise(mmap.MADV_DONTNEED, 0, 4096)
    class Iovec(ctypes.Structure): _fields_ = [("base", ctypes.c_void_p), ("len", ctypes.c_size_t)]
    pidfd = os.pidfd_open(os.getpid())
    for i in range(5):
        ranges = [(address(memory) + skip + (60 << 20) + (i * 3 + k) * 65536, 8192) for k in range(3)]
        assert libc.syscall(440, pidfd, (Iovec * 3)(*ranges), 3, mmap.MADV_COLD, 0) == 3 * 8192
    time.sleep(1)  # the recorder looks up the mapping of `fd` while it is there
    vm.set_memslot(1, 1 << 32, 0, 0)
    tell(at=address(memory) + skip, shared=address(shared))
""".replace("mmap.MADV_COLD", "20")


def test_calls_of_a_vmm_are_told_apart_and_have_their_gfns(tmp_path: Path) -> None:
    trace, _ = record_script(tmp_path, CALLS)
    four_gib = 1 << 20  # as a gfn
    inflated, reported = of_kind(trace, "balloon_inflate"), of_kind(trace, "free_page_report")
    assert inflated["gfn"].to_list() == [2 * i for i in range(257)]
    assert inflated["pages"].unique().to_list() == [1]
    assert of_kind(trace, "balloon_deflate")["gfn"].to_list() == [2 * i for i in range(101)]
    assert reported["gfn"].to_list() == [512 * (1 + 2 * i) for i in range(13)]
    assert reported["pages"].unique().to_list() == [512]
    punched = of_kind(trace, "fallocate")
    assert punched["gfn"].to_list() == [four_gib + 100 + 2 * i for i in range(17)]
    cooled = of_kind(trace, "process_madvise")
    assert cooled["gfn"].to_list() == [(60 << 8) + 16 * i for i in range(15)]
    assert cooled["pages"].unique().to_list() == [2]
    # What is not guest memory is no balloon's.
    advised = of_kind(trace, "madvise")
    assert advised.filter(pl.col("arg") == 4).height == 7
    assert advised["gfn"].null_count() == advised.height
    # Each page taken away was unmapped from the guest as well, as KVM was told: nothing more, nothing less.
    taken = pl.concat([inflated, reported, punched]).select("gfn", "pages").sort("gfn", "pages")
    unmapped = of_kind(trace, "unmap")
    assert unmapped.select("gfn", "pages").sort("gfn", "pages").equals(taken)
    for kind in ("balloon_inflate", "free_page_report", "fallocate", "process_madvise"):
        assert of_kind(trace, kind)["latency_ns"].min() > 0
    slots = trace.memslots.sort("slot")
    assert slots["to_ns"].is_null().to_list() == [True, False]


DUPLICATE = """
SIZE = 16 << 20
memory, skip = anonymous(SIZE)
start = address(memory) + skip
with Kvm() as kvm, kvm.create_vm() as one, Vm(os.dup(one.fd), 4096) as same:
    one.set_memslot(0, 0, SIZE, start)
    same.set_memslot(0, 0, 0, start)
    same.set_memslot(0, SIZE, SIZE, start)
    for page in range(0, SIZE, 4096): memory[skip + page] = 1
    for i in range(211): memory.madvise(mmap.MADV_DONTNEED, skip + 8192 * i, 4096)
tell()
"""


def test_a_vm_is_one_whichever_of_its_descriptors_a_vmm_uses(tmp_path: Path) -> None:
    trace, _ = record_script(tmp_path, DUPLICATE)
    slots = trace.memslots.sort("from_ns")
    assert slots.select("slot", "gpa").rows() == [(0, 0), (0, 16 << 20)]
    assert slots["to_ns"].is_null().to_list() == [False, True]
    taken = [4096 + 2 * i for i in range(211)]
    assert of_kind(trace, "balloon_inflate")["gfn"].to_list() == taken
    assert of_kind(trace, "unmap").filter(pl.col("pages") == 1)["gfn"].to_list() == taken


ONE_THREAD = """
SIZE = 2 << 20
memory, skip = anonymous(SIZE)
memory[skip + 0x1000 : skip + 0x1001] = b"\\xf4"
descriptors = set()
with Kvm() as kvm:
    for index in (1, 3):
        with kvm.create_vm() as vm, vm.create_vcpu(index) as vcpu:
            vm.set_memslot(0, 0, SIZE, address(memory) + skip)
            sregs = vcpu.sregs()
            sregs.cs.base = sregs.cs.selector = 0
            vcpu.set_sregs(sregs)
            regs = vcpu.regs()
            regs.rip, regs.rflags = 0x1000, 2
            vcpu.set_regs(regs)
            vcpu.run()
            descriptors.add(vcpu.fd)
            memory.madvise(mmap.MADV_DONTNEED, skip + 4096 * index, 4096)
tell(descriptors=len(descriptors))
"""


def test_a_vcpu_that_gets_the_descriptor_of_a_closed_one_is_not_that_one(tmp_path: Path) -> None:
    trace, account = record_script(tmp_path, ONE_THREAD)
    assert account["descriptors"] == 1
    assert of_kind(trace, "balloon_inflate").select("gfn", "vcpu").rows() == [(1, 1), (3, 3)]


TWO_VMS = """
SIZE = 16 << 20
(first, skip), (second, skip_too) = anonymous(SIZE), anonymous(SIZE)
with Kvm() as kvm, kvm.create_vm() as one, kvm.create_vm() as other:
    one.set_memslot(0, 0, SIZE, address(first) + skip)
    other.set_memslot(0, 0, SIZE, address(second) + skip_too)
    for page in range(0, SIZE, 4096): first[skip + page] = second[skip_too + page] = 1
    for i in range(211): first.madvise(mmap.MADV_DONTNEED, skip + 8192 * i, 4096)
    for i in range(101): second.madvise(mmap.MADV_DONTNEED, skip_too + 8192 * i, 4096)
    tell(first=address(first) + skip, second=address(second) + skip_too)
"""


REUSED = """
SIZE = 8 << 20
parts = [anonymous(SIZE) for _ in range(3)]
starts = [address(memory) + skip for memory, skip in parts]
with Kvm() as kvm:
    with kvm.create_vm() as first:
        first.set_memslot(0, 0, SIZE, starts[0])
        first.set_memslot(1, SIZE, SIZE, starts[1])
        number = first.fd
    with kvm.create_vm() as second:
        assert second.fd == number
        second.set_memslot(0, 0, SIZE, starts[2])
        time.sleep(0.3)
        for memory, skip in parts[1:]:
            for page in range(211): memory.madvise(mmap.MADV_DONTNEED, skip + 4096 * page, 4096)
        time.sleep(0.3)
tell(starts=starts)
"""


def test_a_vm_that_gets_the_descriptor_of_a_closed_one_has_none_of_its_memory(tmp_path: Path) -> None:
    trace, account = record_script(tmp_path, REUSED)
    advice = trace.events.filter(pl.col("arg") == mmap.MADV_DONTNEED).collect()
    _, closed, there = (
        advice.filter(pl.col("hva").is_between(start, start + (8 << 20), closed="left"))
        for start in account["starts"]
    )
    assert (closed.height, there.height) == (211, 211)
    assert there["gfn"].to_list() == list(range(211))
    assert closed["gfn"].null_count() == 211
    assert trace.memslots.height == 3
    assert trace.memslots["to_ns"].null_count() <= 1


def test_two_vms_of_one_process_have_their_own_slots(tmp_path: Path) -> None:
    trace, account = record_script(tmp_path, TWO_VMS)
    slots = trace.memslots.sort("slot")
    assert slots["hva"].to_list() == [account["first"], account["second"]]
    assert slots["slot"].to_list() == [0, 1 << 24]
    assert slots["to_ns"].is_null().all()
    assert of_kind(trace, "memslot")["arg"].to_list() == [0, 1 << 24]
    taken = [2 * i for i in (*range(211), *range(101))]
    assert of_kind(trace, "balloon_inflate")["gfn"].to_list() == taken
    # KVM is told of an unmapping once for each VM of the process.
    assert of_kind(trace, "unmap")["gfn"].to_list() == [gfn for gfn in taken for _ in range(2)]


SWAP = """
open(sys.argv[2] + "/cgroup.procs", "w").write(str(os.getpid()))
SIZE = 24 << 20
memory, skip = anonymous(SIZE)
memory.madvise(mmap.MADV_RANDOM)
with Kvm() as kvm, kvm.create_vm() as vm:
    vm.set_memslot(0, 0, SIZE, address(memory) + skip)
    for turn in (1, 2):
        for page in range(0, SIZE, 4096): memory[skip + page] = turn
    tell(major=resource.getrusage(resource.RUSAGE_SELF).ru_majflt, at=address(memory) + skip)
"""


def swap_counters() -> tuple[int, int]:
    values = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    return int(values["pswpin"]), int(values["pswpout"])


@contextlib.contextmanager
def small_cgroup_with_swap(limit: str) -> Iterator[Path]:
    """A memory cgroup of this limit, and a zram swap device of our own; both are gone afterwards."""
    control = Path("/sys/class/zram-control")
    group = Path("/sys/fs/cgroup/memory/tracekit-test")
    if not control.exists() or not group.parent.exists():
        pytest.skip("no zram or no cgroup v1 memory controller")
    number = int((control / "hot_add").read_text())
    device, block = f"/dev/zram{number}", Path(f"/sys/block/zram{number}")
    try:
        (block / "disksize").write_text("128M")
        subprocess.run(["mkswap", device], check=True, capture_output=True)
        subprocess.run(["swapon", device], check=True)
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(limit)
        yield group
    finally:
        with contextlib.suppress(FileNotFoundError):
            group.rmdir()
        subprocess.run(["swapoff", device], check=False, capture_output=True)
        (block / "reset").write_text("1")
        (control / "hot_remove").write_text(str(number))


def in_turns(n: int) -> list[str]:
    """Return n swaps of one page, every other one first: out, out, ..., in, in, ..."""
    return ["swap_out"] * (n - n // 2) + ["swap_in"] * (n // 2)


def test_swap_is_the_kernels_count_and_waited_for_faults_are_major(tmp_path: Path) -> None:
    items = [btf.enum_value("vm_event_item", name) for name in ("PSWPIN", "PSWPOUT")]
    counted = "memcg/count_memcg_events"
    with small_cgroup_with_swap("16M") as group:
        with second_tracer(counted, only=" || ".join(f"item == {item}" for item in items)) as tracer:
            before = swap_counters()
            trace, account = record_script(tmp_path, SWAP, str(group))
            machine = [b - a for a, b in zip(before, swap_counters(), strict=True)]
        mine = group.stat().st_ino
    # DAMON, where it runs, swaps pages of others meanwhile: the kernel's count is the whole machine's.
    swaps = [[int(field(text, name)) for name in ("memcg_id", "item", "val")] for text in tracer.rows["text"]]
    total = [sum(n for _, what, n in swaps if what == item) for item in items]
    swapped_in, swapped_out = (sum(n for who, what, n in swaps if (who, what) == (mine, i)) for i in items)
    for own, whole, seen in zip((swapped_in, swapped_out), machine, total, strict=True):
        assert own <= whole <= seen
    assert swapped_in > 5000
    rows = of_kind(trace, "swap_in")
    assert rows["pages"].sum() == swapped_in
    assert rows["gfn"].null_count() == 0
    gone = of_kind(trace, "swap_out")
    assert gone["pages"].sum() == swapped_out
    # Each page goes out before it comes in, and in before it goes out again: the addresses are right. Where
    # reclaim was preempted between unmapping and writing, a swap-out has none, and one turn is missing.
    known = gone.filter(pl.col("gfn").is_not_null())
    turns = pl.concat([known, rows]).sort("ts_ns").group_by("gfn", maintain_order=True).agg("kind")
    broken = [kinds for kinds in turns["kind"].to_list() if kinds[::2] + kinds[1::2] != in_turns(len(kinds))]
    assert len(broken) <= gone.height - known.height < 0.02 * gone.height
    # And so many may be missing at most, says the ledger.
    unplaced = trace.losses["reason"].str.extract(r"^swap_out_unplaced \(at most ([\d,]+)\)$", 1)
    assert unplaced.null_count() == trace.losses["lost"].drop_nulls().len() == 0
    assert gone.height - known.height <= unplaced.str.replace_all(",", "").cast(pl.Int64).sum()
    # A page of the process's own (of a file, which the limit evicts as well) may come back meanwhile: a major
    # fault of its account that is none of the guest's memory.
    faults = of_kind(trace, "host_fault").filter((pl.col("flags") & 1 == 1) & pl.col("gfn").is_not_null())
    assert faults.height == swapped_in
    assert 0 <= account["major"] - faults.height <= 16


def test_pages_of_zeros_go_without_a_write_and_are_the_kernels_count(tmp_path: Path) -> None:
    items = [btf.enum_value("vm_event_item", name) for name in ("SWPIN_ZERO", "SWPOUT_ZERO")]
    if None in items:
        pytest.skip("this kernel writes pages of zeros like any other")
    zeros = SWAP.replace("= turn", "= 0")
    assert zeros != SWAP
    with small_cgroup_with_swap("16M") as group:
        with second_tracer(
            "memcg/count_memcg_events", only=" || ".join(f"item == {item}" for item in items)
        ) as tracer:
            trace, _ = record_script(tmp_path, zeros, str(group))
        mine = group.stat().st_ino
    counted = [
        [int(field(text, name)) for name in ("memcg_id", "item", "val")] for text in tracer.rows["text"]
    ]
    came, went = (sum(n for who, what, n in counted if (who, what) == (mine, item)) for item in items)
    assert went > 5000
    unwritten = pl.col("flags") & FLAG_UNWRITTEN != 0
    rows = of_kind(trace, "swap_in").filter(unwritten)
    gone = of_kind(trace, "swap_out").filter(unwritten)
    assert (rows["pages"].sum(), gone["pages"].sum()) == (came, went)
    assert rows["gfn"].null_count() == 0
    assert gone["gfn"].null_count() < 0.02 * gone.height
    # The limit holds: what is left of the guest's memory by the trace fits into it.
    ledger = replay(trace, ["baseline"], profile=load_profile("published"))
    peak = ledger.rows.filter(pl.col("metric") == "resident_peak")["baseline"].item()
    assert peak <= (16 << 20) + 4096 * gone["gfn"].null_count()


def test_what_reclaim_writes_is_the_kernels_count_of_the_guests_swap_outs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The probe `written_out`, which serves where nothing better can run, held against what is better."""
    serve = [
        probe for probe in host_probes("shadow") if probe.name not in ("memcg", "swap_io", "memcg_function")
    ]
    monkeypatch.setattr(run, "host_probes", lambda mode: serve)
    item = btf.enum_value("vm_event_item", "PSWPOUT")
    with small_cgroup_with_swap("16M") as group:
        with second_tracer("memcg/count_memcg_events", only=f"item == {item}") as tracer:
            trace, _ = record_script(tmp_path, SWAP, str(group))
        mine = group.stat().st_ino
    counted = sum(
        int(field(text, "val")) for text in tracer.rows["text"] if int(field(text, "memcg_id")) == mine
    )
    gone = of_kind(trace, "swap_out")
    assert gone["gfn"].null_count() == 0
    unplaced = trace.losses["reason"].str.extract(r"^swap_out_unplaced \(at most ([\d,]+)\)$", 1)
    at_most = unplaced.drop_nulls().str.replace_all(",", "").cast(pl.Int64).sum()
    written = gone["pages"].sum()
    print(f"written out {written} and at most {at_most}; the kernel counted {counted}")
    assert written > 5000
    # The VMM's own pages, which are no guest's, are in the kernel's count.
    assert written <= counted <= written + at_most + 16


# A process that had a VM: the last thing that KVM was told of its memory is long ago.
SWAP_LATER = """
open(sys.argv[2] + "/cgroup.procs", "w").write(str(os.getpid()))
SIZE = 24 << 20
memory, skip = anonymous(SIZE)
with Kvm() as kvm, kvm.create_vm() as vm:
    vm.set_memslot(0, 0, SIZE, address(memory) + skip)
    memory[skip] = 1
    memory.madvise(mmap.MADV_DONTNEED, skip, 4096)
time.sleep(0.01)
for turn in (1, 2):
    for page in range(0, SIZE, 4096): memory[skip + page] = turn
"""


def test_what_another_vm_swaps_is_no_loss_of_this_one(tmp_path: Path) -> None:
    """Swap-outs that find no unmapping to go with are no guest's in a cgroup without traced processes."""
    own = Path("/sys/fs/cgroup/memory/tracekit-recorded")
    out, account = tmp_path / "own.trace", tmp_path / "account.json"
    with small_cgroup_with_swap("16M") as group:
        own.mkdir()
        try:
            join = f'echo $$ > {own}/cgroup.procs; exec "$@"'
            record = [*TRACEKIT, "record", "--json", "-o", str(out), "--", "sleep", "60"]
            pipe = subprocess.PIPE
            with ended(
                subprocess.Popen(["sh", "-c", join, "sh", *record], stdout=pipe, text=True)
            ) as recorder:
                wait_for((out / "meta.json").exists)
                before = swap_counters()
                other = [sys.executable, "-c", PRELUDE + SWAP_LATER, str(account), str(group)]
                subprocess.run(other, check=True)
                assert swap_counters()[1] - before[1] > 5000
                recorder.send_signal(signal.SIGINT)
                report = json.loads(recorder.communicate(timeout=60)[0])
        finally:
            wait_for(lambda: not (own / "cgroup.procs").read_text())  # who waits for the probes' end
            own.rmdir()
    assert of_kind(open_trace(out), "swap_out").is_empty()
    assert report["losses"] == {}


KSM = """
SIZE, PAGES = 8 << 20, 211
memory, skip = anonymous(SIZE)
with Kvm() as kvm, kvm.create_vm() as vm:
    vm.set_memslot(0, 0, SIZE, address(memory) + skip)
    for i in range(PAGES): memory[skip + 8192 * i : skip + 8192 * i + 4096] = b"tracekit" * 512
    memory.madvise(12)  # MADV_MERGEABLE
    deadline = time.monotonic() + 30
    while True:
        sharing = int(open("/proc/self/ksm_merging_pages").read())
        if sharing >= PAGES or time.monotonic() > deadline: break
        time.sleep(0.02)
    time.sleep(0.2)
    memory.madvise(13)  # MADV_UNMERGEABLE
    tell(sharing=sharing, at=address(memory) + skip)
"""


@contextlib.contextmanager
def ksm_running() -> Iterator[None]:
    """KSM on and quick, and as it was afterwards."""
    folder = Path("/sys/kernel/mm/ksm")
    if not folder.exists():
        pytest.skip("this kernel has no KSM")
    wanted = {"run": "1", "pages_to_scan": "4000", "sleep_millisecs": "5"}
    before = {name: (folder / name).read_text().strip() for name in wanted}
    if before["run"] != "0":
        pytest.skip("KSM is in use on this host")
    try:
        for name, value in wanted.items():
            (folder / name).write_text(value)
        yield
    finally:
        for name, value in before.items():
            (folder / name).write_text(value)


def test_ksm_merges_and_breaks_of_guest_pages(tmp_path: Path) -> None:
    pages = 211
    with ksm_running():
        trace, account = record_script(tmp_path, KSM)
    assert account["sharing"] == pages
    merged = of_kind(trace, "ksm_merge")
    expected = {2 * i for i in range(pages)}
    assert set(merged["gfn"]) == expected
    assert set(merged["hva"]) == {account["at"] + 8192 * i for i in range(pages)}
    assert set(of_kind(trace, "ksm_break")["gfn"]) <= expected


def test_ageing_of_guest_memory_is_attributed_by_its_address(tmp_path: Path) -> None:
    """Somebody must read accessed bits for this: DAMON, where it runs."""
    script = (
        "SIZE = 256 << 20\n"
        "memory, skip = anonymous(SIZE)\n"
        "with Kvm() as kvm, kvm.create_vm() as vm:\n"
        "    vm.set_memslot(0, 0, SIZE, address(memory) + skip)\n"
        "    for page in range(0, SIZE, 4096): memory[skip + page] = 1\n"
        "    time.sleep(1)\n"
        "    tell(at=address(memory) + skip)\n"
    )
    started = time.monotonic()
    trace, account = record_script(tmp_path, script)
    aged = of_kind(trace, "age")
    assert time.monotonic() - started < 60
    assert aged["gfn"].null_count() == 0
    assert aged["hva"].is_between(account["at"], account["at"] + (256 << 20), closed="left").all()
    state = Path("/sys/kernel/mm/damon/admin/kdamonds/0/state")
    if state.exists() and state.read_text().strip() == "on":
        assert aged.height > 0


@pytest.mark.parametrize("age", ["new", "old"])
@pytest.mark.parametrize(("mode", "module"), [("ept", "kvm_intel"), ("npt", "kvm_amd")])
def test_the_kernel_takes_the_programs_for_nested_paging_of_both_layouts(
    age: str, mode: str, module: str
) -> None:
    """They can't fire where KVM shadows page tables, but the verifier reads them all the same."""
    old = tracefs.parse_format("kvm", OLD_PAGE_FAULT)

    def lookup(category: str, event: str) -> tracefs.Tracepoint | None:
        return old if age == "old" and event == "kvm_page_fault" else tracefs.tracepoint(category, event)

    catalogue = [probe for probe in HOST_PROBES if probe.name in ("process", "fault_tdp")]
    text = source.build(catalogue, lookup, ring_pages=16, defines=constants.kernel_constants(mode, module))
    programs = bcc_package.compile_program(text.text)
    loaded = {p.function: programs.load_func(p.function.encode(), TRACEPOINT) for p in text.programs}
    assert len(loaded) == 10
    assert all(function.fd > 0 for function in loaded.values())
    programs.cleanup()
