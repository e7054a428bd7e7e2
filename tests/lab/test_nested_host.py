"""The recorder on a KVM host with nested paging: `make lab` (minutes; not part of `make test`).

Everything runs inside the lab host, a QEMU machine with AMD's SVM and NPT, on an unmodified kernel with the
kvm-amd module. What a trace must hold is known from the guest's own count, from KVM's counters, from another
tracer's count or from the plan.
"""

from __future__ import annotations

import re

import polars as pl
import pytest

from tests.lab.nested import Lab, counts, events
from tests.live.test_record_kinds import PRELUDE, SWAP
from tracekit.lab.guest_plan import GuestPlan
from tracekit.trace.schema import FLAG_UNWRITTEN

pytestmark = pytest.mark.live("qemu-system-x86_64")

MIB = 1 << 20
NPF_RESERVED = 1 << 3
SWAPS = ("pswpin", "pswpout")
DEVICES = {
    "disk": "swapoff /dev/zram0 2>/dev/null; true",
    "memory": "echo 128M >/sys/block/zram0/disksize; mkswap /dev/zram0 >/dev/null; swapon -p 100 /dev/zram0",
}


@pytest.mark.parametrize(
    "options", ["--pages 4099 --vcpus 2 --order random --seed 5", "--pages 11 --page-size 2m"]
)
def test_every_first_touch_of_a_small_guest(lab: Lab, options: str):
    level = 2 if "2m" in options else 1
    trace, guest = lab.record(f"small{level}", f"tracekit lab guest --json {options}")
    plan = GuestPlan(**guest["plan"])
    faults = events(trace, "ept_violation")
    touched = faults.filter(pl.col("gfn") >= guest["first_gfn"])
    for vcpu in range(plan.vcpus):
        mine = touched.filter(pl.col("vcpu") == vcpu)
        assert mine["gfn"].to_list() == plan.gfns(vcpu).tolist()
    assert touched["level"].unique().to_list() == [level]
    assert touched["latency_ns"].null_count() == 0
    # KVM counts a fault fixed where it made a mapping; the other faults found it made by the other vCPU.
    assert len(faults) == guest["kvm_counters"]["pf_taken"]
    assert guest["kvm_counters"][f"pages_{'4k' if level == 1 else '2m'}"] >= plan.pages
    # A large page begins at another gfn than the one touched, which `arg` tells.
    low = faults.filter(pl.col("gfn") < guest["first_gfn"]).select(pl.coalesce("arg", "gfn"))
    assert set(low["arg"]) <= set(guest["low_gfns"])


def test_an_unmodified_linux_guest_with_balloon_and_page_reporting(lab: Lab):
    counted = "/sys/kernel/tracing/events/kvm/kvm_page_fault"
    lab.shell(f"echo hist:keys=error_code >{counted}/trigger")
    trace, account = lab.record(
        "linux", "tracekit lab linux --json --accel kvm --memory 256M --alloc 64M --balloon 224M"
    )
    # By error code; a reserved bit stands for a device's address, which is no memory.
    codes = re.findall(r"error_code: +(\d+) .*hitcount: +(\d+)", lab.shell(f"cat {counted}/hist"))
    lab.shell(f"echo '!hist:keys=error_code' >{counted}/trigger")
    theirs = sum(int(hits) for code, hits in codes if not int(code) & NPF_RESERVED)
    assert theirs > 1000
    assert len(events(trace, "ept_violation")) == theirs
    assert account["accel"] == "kvm"
    assert events(trace, "balloon_inflate")["pages"].sum() == 32 * MIB // 4096
    assert events(trace, "balloon_deflate")["pages"].sum() == 32 * MIB // 4096
    assert events(trace, "free_page_report")["pages"].sum() * 4096 > 40 * MIB
    faults = events(trace, "ept_violation")
    assert faults["gfn"].n_unique() > 1000
    assert faults["latency_ns"].null_count() == 0


@pytest.mark.parametrize("async_faults", ["on", "off"])
def test_asynchronous_page_faults_of_a_guest_that_swaps(lab: Lab, async_faults: str):
    """Less host memory than the guest touches, swap on a block device: the faults that wait are async."""
    events_of = "cd /sys/kernel/tracing; for event in not_present ready completed; do {}; done; true"
    switch = "echo {} >events/kvm/kvm_async_pf_$event/enable"
    lab.shell(f"echo >/sys/kernel/tracing/trace; {events_of.format(switch.format(1))}")
    before = lab.counters(*SWAPS)
    name, swapping = f"apf-{async_faults}", "tracekit lab swap --json --siblings 2 --touch 80M"
    trace, account = lab.record(name, f"{swapping} --async-faults {async_faults}")
    after = lab.counters(*SWAPS)
    lab.shell(events_of.format(switch.format(0)))
    seen = lab.shell(events_of.format("grep -c kvm_async_pf_$event: trace"))
    recorded = counts(trace)
    theirs = dict(zip(("apf_not_present", "apf_ready", "apf_completed"), map(int, seen.split()), strict=True))
    assert {kind: recorded.get(kind, 0) for kind in theirs} == theirs
    assert 50 < theirs["apf_completed"] < account["major_faults"]
    # A guest that takes part is interrupted for pages that are ready; for one that declines, KVM still reads
    # them in a worker, but halts the vCPU meanwhile.
    heard = sum(int(line.split()[1]) for line in account["interrupts"] if "HYP" in line)
    least, most = (2, theirs["apf_ready"]) if async_faults == "on" else (0, 0)
    assert least <= heard <= most, account
    assert events(trace, "apf_completed")["latency_ns"].null_count() == 0
    # Nothing else swaps in this host.
    written = pl.col("flags") & FLAG_UNWRITTEN == 0
    swapped = [events(trace, kind).filter(written)["pages"].sum() for kind in ("swap_in", "swap_out")]
    assert swapped == [b - a for a, b in zip(before, after, strict=True)]


@pytest.mark.parametrize("device", DEVICES)
def test_swaps_are_the_kernels_count_without_a_tracepoint_for_them(lab: Lab, device: str):
    """Every eighth page is one of zeros, which Linux since 6.12 does not write but counts."""
    lab.shell(DEVICES[device])
    group = f"/sys/fs/cgroup/{device}"
    lab.shell(
        f"echo +memory >/sys/fs/cgroup/cgroup.subtree_control; mkdir {group}; echo 16M >{group}/memory.max"
    )
    touch = SWAP.replace("= turn", "= turn if page % 32768 else 0")
    assert touch != SWAP
    program = lab.script("swap", PRELUDE + touch)
    zeros_too = () if lab.kernel == "6.1" else ("swpin_zero", "swpout_zero")
    before = lab.counters(*SWAPS, *zeros_too)
    trace, account = lab.record(f"swap-{device}", f"{program} /proc/self/fd/1 {group}")
    after = lab.counters(*SWAPS, *zeros_too)
    swapped_in, swapped_out, *unwritten = (b - a for a, b in zip(before, after, strict=True))
    lab.shell(f"rmdir {group}")
    assert swapped_in > 1000
    rows, gone = events(trace, "swap_in"), events(trace, "swap_out")
    flagged = pl.col("flags") & FLAG_UNWRITTEN != 0
    for some, count in ((rows, swapped_in), (gone, swapped_out)):
        assert some.filter(~flagged)["pages"].sum() == count
    assert [some.filter(flagged)["pages"].sum() for some in (rows, gone)] == (unwritten or [0, 0])
    # What comes in for a fault of ours has its address; a process's own page is none of the guest's memory.
    assert rows["gfn"].null_count() <= 16
    zeros = gone.filter(pl.col("gfn") % 8 == 0)
    assert zeros.height > 500
    assert zeros.filter(flagged).height == (0 if lab.kernel == "6.1" else zeros.height)
    unplaced = trace.losses["reason"].str.extract(r"at most ([\d,]+)", 1).str.replace_all(",", "")
    assert gone["gfn"].null_count() <= unplaced.cast(pl.Int64).sum() + 16
    major = events(trace, "host_fault").filter(pl.col("flags") & 1 == 1)
    assert 0 <= account["major"] - major.height <= 16
    # The trace says what told it, and that nothing is missing.
    functions = trace.meta.probes["functions"]["swap_io"]
    assert functions[:2] == [
        "swap_readpage" if lab.kernel == "6.1" else "swap_read_folio",
        "__swap_writepage",
    ]
    assert not trace.meta.probes["refused"].keys() & {"memcg", "memcg_function", "swap_io", "written_out"}


HUGE_PAGES = """
SIZE, LARGE = 64 << 20, 23 * HUGE
memory = mmap.mmap(-1, SIZE + HUGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
skip = -address(memory) % HUGE
def given(): return int(dict(line.split() for line in open("/proc/vmstat"))["thp_fault_alloc"])
memory.madvise(mmap.MADV_HUGEPAGE, skip, LARGE)
with Kvm() as kvm, kvm.create_vm() as vm:
    vm.set_memslot(0, 0, SIZE, address(memory) + skip)
    before = given()
    for page in range(0, SIZE, 4096): memory[skip + page + 5] = 1
    tell(given=given() - before, at=address(memory) + skip)
"""


def test_huge_pages_of_host_faults_are_the_kernels_count(lab: Lab):
    trace, account = lab.record("huge", f"{lab.script('huge', PRELUDE + HUGE_PAGES)} /proc/self/fd/1")
    assert account["given"] == 23
    faults = events(trace, "host_fault").filter(pl.col("gfn").is_not_null())
    huge, small = faults.filter(pl.col("level") == 2), faults.filter(pl.col("level").is_null())
    assert huge["gfn"].to_list() == [512 * at for at in range(23)]
    assert huge["pages"].unique().to_list() == [512]
    assert huge["arg"].to_list() == [account["at"] + at * 2 * MIB + 5 for at in range(23)]
    assert small["gfn"].to_list() == list(range(23 * 512, (64 * MIB) >> 12))
    assert trace.meta.probes["functions"]["memcg_function"] == ["__count_memcg_events"]


@pytest.mark.parametrize("lab", ["6.12"], indirect=True)
def test_hyperv_hints_of_an_enlightened_guest(lab: Lab):
    trace, guest = lab.record(
        "hyperv",
        "tracekit lab guest --json --pages 4099 --enlightened hyperv --hint discard --hint-batch 64"
        " --hint-lead -2 --zero-first --hot-add 1009",
    )
    calls = events(trace, "hv_hypercall")
    plain = calls.filter(pl.col("level").is_null())["arg"]
    assert {f"call_{code:#x}": count for code, count in plain.value_counts().iter_rows()} == {
        name: count for name, count in guest["calls"].items() if name.startswith("call_")
    }
    ranges = calls.filter(pl.col("level").is_not_null())
    assert set(ranges["arg"]) == {0x8003 | 3 << 16}  # 1 + heat type (2: discard) above the code
    assert ranges["pages"].sum() == guest["calls"]["discard_pages"]
    assert ranges["gfn"].to_list()[:63] == [512 + 64 * batch for batch in range(63)]
    # The VMM drops what a hint discards: of a VMM that is not known, that is a page report (docs/probes.md).
    dropped = events(trace, "free_page_report")
    assert dropped.select("gfn", "pages").equals(ranges.select("gfn", "pages"))
