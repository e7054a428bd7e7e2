"""Events counted by somebody else as well: ftrace, QEMU's own trace, the guest's own account.

docs/probes.md has the table of what was shown against what, here and in other tests, and of which kinds.
"""

from __future__ import annotations

import json
import mmap
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from tests.live.recording import GUEST, TRACEKIT, ended, of_kind, record_command, wait_for, writing_to
from tests.live.second_tracer import SecondTracer, second_tracer
from tracekit.trace import Trace, open_trace
from tracekit.trace.schema import FLAG_ZEROED, PAGE_BYTES

pytestmark = pytest.mark.live("bpf", "root")

PAGES = ("kmem/mm_page_alloc", "kmem/mm_page_free")
DAMON_STATE = Path("/sys/kernel/mm/damon/admin/kdamonds/0/state")
DAMON = "damon/damon_aggregated"


def at_most_lost(trace: Trace) -> int:
    """How many events the ledger says may be missing at most (interrupts inside BPF programs)."""
    assert trace.losses.filter(~pl.col("reason").str.starts_with("nested")).height == 0
    counts = trace.losses["reason"].str.extract(r"at most ([\d,]+)").str.replace_all(",", "").cast(pl.Int64)
    return int(counts.sum())


def same_window(trace: Trace, tracer: SecondTracer, own: set[int]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Both tracers' rows between two quiet moments of both, without the recorder's own threads."""
    rows = tracer.rows.sort("ts_ns")
    # A thread of its own that has ended is not in `own`, but its process is.
    mine = pl.col("tid").is_in(list(own)) | pl.col("tgid").is_in(list(own))
    ours = trace.events.sort("ts_ns").collect()
    first = [int(task.name) for task in Path("/proc/1/task").iterdir()]
    if not ours["tid"].is_in(first).any():
        # Some sandboxes' kernels run no BPF program while their first process has the CPU (docs/probes.md).
        mine |= pl.col("tid").is_in(first) | (pl.col("tgid") == 1)
    theirs = rows.filter(~mine)
    # Its events are switched on one after the other: begin when all are.
    begin = rows["ts_ns"][0] + 200_000_000
    quiet = quiet_moments(ours["ts_ns"].cast(pl.Int64).to_numpy(), theirs["ts_ns"].to_numpy())
    start, end = quiet[quiet > begin][[0, -1]]
    ours, theirs = (one.filter(pl.col("ts_ns").is_between(start, end)) for one in (ours, theirs))
    return ours.with_columns(pl.col("kind").cast(pl.String)), theirs


def quiet_moments(ours: NDArray[np.int64], theirs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return moments (ns) with the same event before them for both tracers, and the same after.

    Between its two stamps an event may have waited for the CPU: then it lies on both sides of a moment.
    """
    apart = np.flatnonzero(np.diff(theirs) > 50_000)
    moments = theirs[apart + 1] - 25_000
    after = np.searchsorted(ours, moments)
    inside = (after > 0) & (after < len(ours))
    apart, moments, after = apart[inside], moments[inside], after[inside]
    near = [
        abs(ours[at] - theirs[theirs_at]) < 20_000
        for at, theirs_at in ((after - 1, apart), (after, apart + 1))
    ]
    return moments[near[0] & near[1]]


def test_pages_and_access_regions_of_this_machine_are_those_another_tracer_saw(tmp_path: Path) -> None:
    """This machine is a VM: from inside it, all that its kernel hands out, zeroed or not, and takes back."""
    path = tmp_path / "machine.trace"
    damon = DAMON_STATE.exists() and DAMON_STATE.read_text().strip() == "on"
    # Another process: reading what ftrace saw must not keep the recorder waiting.
    recorder = subprocess.Popen([*TRACEKIT, "record", "--guest", "--buffer", "128M", "-o", str(path)])
    with ended(recorder):
        wait_for((path / "meta.json").exists)
        time.sleep(0.5)
        with second_tracer(*PAGES, *([DAMON] if damon else [])) as tracer:
            time.sleep(1)
            with mmap.mmap(-1, 1009 * PAGE_BYTES) as pages:  # an idle machine hands out next to nothing
                pages.write(b"x" * len(pages))
            time.sleep(8 if damon else 1)  # DAMON here speaks every 5 s, later on a busy machine
            own = {int(task.name) for task in Path(f"/proc/{recorder.pid}/task").iterdir()}
        recorder.send_signal(signal.SIGINT)
        assert recorder.wait(timeout=60) == 0
    trace = open_trace(path)
    ours, theirs = same_window(trace, tracer, own)
    ours.write_parquet(tmp_path / "ours.parquet")  # for tests/endurance/guest_counts.py
    theirs.write_parquet(tmp_path / "theirs.parquet")
    for kind, event in (("page_alloc", "mm_page_alloc"), ("page_free", "mm_page_free")):
        seen = theirs.filter(pl.col("event") == event)
        seen = seen.with_columns(
            pl.col("tid").cast(pl.UInt32),
            gfn=pl.col("text").str.extract(r"pfn=0x([0-9a-f]+)").str.to_integer(base=16, dtype=pl.UInt64),
        )
        mine = ours.filter(pl.col("kind") == kind)
        keys = ["tid", "gfn"]
        both = mine.group_by(keys).len("mine").join(seen.group_by(keys).len("seen"), on=keys, how="full")
        both = both.select(pl.col("mine", "seen").fill_null(0).cast(pl.Int64))
        assert seen.height > 100
        assert both.filter(pl.col("mine") > pl.col("seen")).height == 0
        missing = int((both["seen"] - both["mine"]).sum())
        assert missing <= at_most_lost(trace)
        if kind == "page_alloc":
            zeroed = seen.filter(pl.col("text").str.contains("__GFP_ZERO", literal=True)).height
            assert 0 <= zeroed - mine.filter(pl.col("flags") & FLAG_ZEROED != 0).height <= missing
    if damon:
        rounds = aggregations(tracer)
        assert rounds
        accesses = trace.events.filter(pl.col("kind").cast(pl.String) == "access").sort("ts_ns").collect()
        for start, end, regions in rounds:
            mine = accesses.filter(pl.col("ts_ns").is_between(start - 10**9, end + 10**9))
            assert mine.select("gfn", "pages", "arg").rows() == regions


def aggregations(tracer: SecondTracer) -> list[tuple[int, int, list[tuple[int, int, int]]]]:
    """Return DAMON's rounds that the tracer saw whole: first and last ts_ns, regions (gfn, pages, accesses).

    Every region says how many its round has, so one that was cut where the tracer began or ended shows.
    """
    rows = tracer.of("damon_aggregated").sort("ts_ns", maintain_order=True)
    pattern = r"nr_regions=(\d+) (\d+)-(\d+): (\d+)"
    rounds: list[tuple[int, int, list[tuple[int, int, int]]]] = []
    for _, one in rows.group_by((pl.col("ts_ns").diff().fill_null(0) > 10**9).cum_sum(), maintain_order=True):
        found = [
            tuple(map(int, match.groups()))
            for match in (re.search(pattern, text) for text in one["text"])
            if match
        ]
        assert len(found) == one.height
        if all(expected == one.height for expected, *_ in found):
            regions = [(start // PAGE_BYTES, (end - start) // PAGE_BYTES, n) for _, start, end, n in found]
            rounds.append((one["ts_ns"][0], one["ts_ns"][-1], regions))
    return rounds


LINUX = """
import sys, time
from tracekit.lab.linux_guest import LinuxGuest, LinuxPlan
events = ("ram_block_discard_range", "virtio_balloon_handle_output")
log = (*(word for event in events for word in ("-trace", event)), "-D", sys.argv[1])
with LinuxGuest(LinuxPlan(memory_bytes=256 << 20, accel="tcg", qemu_arguments=log)) as guest:
    guest.allocate(100 << 20)
    guest.free()
    time.sleep(6)
    guest.balloon(224 << 20)
    guest.balloon(256 << 20)
"""


@pytest.mark.live("bpf", "root", "qemu-system-x86_64")
def test_what_qemu_says_it_discarded_is_what_was_recorded(tmp_path: Path) -> None:
    """A Linux boot, page reports, the balloon through the monitor: QEMU's own trace, call by call."""
    log = tmp_path / "qemu.log"
    trace, _ = record_command(tmp_path / "qemu.trace", sys.executable, "-c", LINUX, str(log))
    text = log.read_text()
    discarded = [
        (int(hva, 16), int(size, 16) // PAGE_BYTES)
        for hva, size in re.findall(r"ram_block_discard_range \S+@(0x[0-9a-f]+) \+ (0x[0-9a-f]+)", text)
    ]
    moved = [int(gpa, 16) // PAGE_BYTES for gpa in re.findall(r"handle_output .* gpa: (0x[0-9a-f]+)", text)]
    rows = {kind: of_kind(trace, kind) for kind in ("balloon_inflate", "balloon_deflate", "free_page_report")}
    pages = (32 << 20) // PAGE_BYTES
    taken = pl.concat([rows["balloon_inflate"], rows["free_page_report"]]).sort("ts_ns")
    assert taken.select("hva", "pages").rows() == discarded
    assert rows["balloon_inflate"].height == rows["balloon_deflate"].height == pages
    assert rows["free_page_report"]["pages"].sum() * PAGE_BYTES > 60 << 20
    in_order = pl.concat([rows["balloon_inflate"], rows["balloon_deflate"]]).sort("ts_ns")
    assert in_order["gfn"].to_list() == moved


@pytest.mark.live("kvm", "bpf", "root")
def test_a_guest_of_two_vcpus_is_counted_the_same_by_ftrace(tmp_path: Path) -> None:
    """Faults, mappings, calls and memslots of a KVM guest: ftrace's count of the same process."""
    account = tmp_path / "guest.json"
    options = ("--pages", "10007", "--vcpus", "2", "--order", "random", "--hot-add", "1009", "--zero-first")
    calls = ("syscalls/sys_enter_madvise", "kvm/kvm_vcpu_wakeup")
    faults = ("kvmmmu/kvm_mmu_spte_requested", "kvmmmu/kvm_mmu_set_spte")
    with second_tracer(*calls, *faults) as tracer:
        trace, _ = record_command(tmp_path / "guest.trace", *writing_to(account, *GUEST, *options))
    guest = json.loads(account.read_text())
    vm = [one["pid"] for one in trace.meta.vms].index(guest["pid"])
    rows = trace.events.filter(pl.col("vm") == vm).collect()
    ours = {kind: rows.filter(pl.col("kind") == kind) for kind in rows["kind"].cast(pl.String).unique()}
    theirs = tracer.rows.filter(pl.col("tgid") == guest["pid"])
    seen = dict(theirs["event"].value_counts().iter_rows())
    faults_taken = ours["ept_violation"].height
    assert faults_taken == guest["kvm_counters"]["pf_taken"] > 10_007 + 1009
    if trace.meta.host["mmu_mode"] == "shadow":
        assert faults_taken == seen["kvm_mmu_spte_requested"]
        # No `map` row at all is as good: on an idle machine every mapping is the one its own fault made.
        by_faults = ours["ept_violation"].filter(pl.col("level").is_not_null()).height
        mapped = by_faults + rows.filter(pl.col("kind") == "map").height
        # Both vCPUs may fault on one page at once: the later fault finds its mapping made, and sets nothing.
        met = faults_taken - ours["ept_violation"]["gfn"].n_unique()
        assert seen["kvm_mmu_set_spte"] <= mapped <= seen["kvm_mmu_set_spte"] + met
    assert ours["madvise"].height == seen["sys_madvise"]
    made = ours["memslot"].filter(pl.col("pages") > 0)
    assert made.height == len(guest["memslots"]) == 3
    assert "vcpu_block" not in ours
    assert "kvm_vcpu_wakeup" not in seen


UNMAPPED = 2003  # a prime
UNMAPS = f"""
import ctypes, mmap
from tracekit.lab.kvm import Kvm
size = 16 << 20
memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_NOHUGEPAGE)
at = ctypes.addressof(ctypes.c_char.from_buffer(memory))
with Kvm() as kvm, kvm.create_vm() as vm:
    vm.set_memslot(0, 0, size, at)
    for page in range(0, size, 4096): memory[page] = 1
    for number in range({UNMAPPED}): memory.madvise(mmap.MADV_DONTNEED, number * 8192, 4096)
"""


@pytest.mark.live("kvm", "bpf", "root")
def test_every_unmapping_of_a_vm_s_memory_is_the_one_ftrace_saw(tmp_path: Path) -> None:
    with second_tracer("kvm/kvm_unmap_hva_range") as tracer:
        trace, _ = record_command(tmp_path / "unmaps.trace", sys.executable, "-c", UNMAPS)
    (process,) = {vm["pid"] for vm in trace.meta.vms}
    theirs = tracer.rows.filter(pl.col("tgid") == process)
    spans = [[int(x, 16) for x in re.findall(r"0x([0-9a-f]+)", text)] for text in theirs["text"]]
    # Reclaim or khugepaged may unmap some of it too: those are no threads of the VM's.
    ours = of_kind(trace, "unmap").filter(pl.col("tid").is_in(theirs["tid"].unique().to_list()))
    assert ours.select("hva", "pages").rows() == [(a, (b - a) // PAGE_BYTES) for a, b in spans]
    assert ours.height >= UNMAPPED
