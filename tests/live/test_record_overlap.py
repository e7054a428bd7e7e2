"""Two VMs of one host have memory at the same addresses: what happens to one is not the other's."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from tests.live.made_up import MadeUp, made_up_point
from tests.live.recording import TRACEKIT, ended, of_kind, run_alone
from tracekit.probes import tracefs
from tracekit.probes.program_run import run_program
from tracekit.trace import open_trace
from tracekit.trace.schema import KIND_CODE

PAGES = 8192
AT = 0x7000_0000_0000
# A VM with memory at that address. It does what a line on its stdin says: takes pages away from itself, or
# has the host make huge pages of another process' small ones.
VMM = f"""
import ctypes, os, sys
from tracekit.lab.kvm import Kvm
SIZE = 4096 * {PAGES}
HUGE, COLLAPSE = 2 << 20, 25
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
class Range(ctypes.Structure): _fields_ = [("base", ctypes.c_void_p), ("bytes", ctypes.c_size_t)]
at = libc.mmap({AT}, SIZE, 3, 0x100022, -1, 0)
assert at == {AT}
assert not libc.madvise(at, SIZE, 15)  # small pages
with Kvm() as kvm, kvm.create_vm() as vm:
    vm.set_memslot(0, 0, SIZE, at)
    ctypes.memset(at, 1, SIZE)
    libc.madvise(at, SIZE, 14)  # they may become huge
    print(os.getpid(), flush=True)
    for line in sys.stdin:
        what, number, *whom = line.split()
        if what == "discard":
            for page in range(int(number)): assert not libc.madvise(at + 8192 * page, 4096, 4)
        elif what == "collapse":
            pidfd = os.pidfd_open(int(whom[0]))
            ranges = (Range * int(number))(*((at + HUGE * (3 + i), HUGE) for i in range(int(number))))
            assert libc.syscall(440, pidfd, ranges, int(number), COLLAPSE, 0) == HUGE * int(number)
        print("done", flush=True)
"""


def told(vmm: subprocess.Popen[str], *line: object) -> str:
    assert vmm.stdin is not None
    assert vmm.stdout is not None
    if line:
        print(*line, file=vmm.stdin, flush=True)
    return vmm.stdout.readline().strip()


def started(*command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.mark.live("kvm", "bpf", "root")
def test_what_an_unrecorded_vm_does_to_its_memory_is_not_the_recorded_ones(tmp_path: Path) -> None:
    vmm = (sys.executable, "-c", VMM)
    out = tmp_path / "one.trace"
    with (
        ended(started(*vmm)) as other,
        ended(started(*TRACEKIT, "record", "-o", str(out), "--", *vmm)) as recorder,
    ):
        told(other)
        recorded = int(told(recorder))
        assert told(other, "discard", 1009) == "done"
        assert told(recorder, "discard", 101) == "done"
        assert told(other, "collapse", 5, recorded) == "done"
        assert told(recorder, "collapse", 3, other.pid) == "done"
        assert recorder.stdin is not None
        recorder.stdin.close()
        assert recorder.wait() == 0
    trace = open_trace(out)
    pids = [vm["pid"] for vm in trace.meta.vms]
    mine = pids.index(recorded)
    unmapped, advised = of_kind(trace, "unmap"), of_kind(trace, "process_madvise")
    assert unmapped["vm"].unique().to_list() == advised["vm"].unique().to_list() == [mine]
    # What it takes away from itself, and what the other has made of its pages; nothing of the other's own.
    own = unmapped.filter(unmapped["tid"] == recorded)
    assert own["gfn"].to_list() == [2 * page for page in range(101)]
    huge = [512 * (3 + i) for i in range(5)]
    assert advised["gfn"].to_list() == huge
    by_other = unmapped.filter((unmapped["tid"] == other.pid) & (unmapped["pages"] == 512))
    assert by_other["gfn"].unique().sort().to_list() == huge
    assert unmapped.filter(unmapped["tid"] == other.pid)["gfn"].min() >= huge[0]
    # Of threads of the kernel nothing but the address is known: so many rows are uncertain, and no others.
    by_kernel = pl.concat([unmapped, of_kind(trace, "age")]).filter(
        ~pl.col("tid").is_in([recorded, other.pid])
    )
    uncertain = [note.split()[0] for note in trace.meta.notes if "may be another VM's" in note]
    assert [int(number) for number in uncertain] == [by_kernel.height] * bool(by_kernel.height)


# What a program of the kernel alone can tell: a place in its memory, and the structure of this process's.
TELL = """
struct words { u64 at[16]; };
BPF_ARRAY(words, struct words, 1);
BPF_ARRAY(addresses, u64, 2);
int tell(void *context)
{
    u32 zero = 0, one = 1;
    struct words *range = words.lookup(&zero);
    u64 *range_at = addresses.lookup(&zero), *mm = addresses.lookup(&one);
    if (!range || !range_at || !mm)
        return 0;
    *range_at = (u64)range;
    *mm = range->at[RANGE_MM_OFFSET / 8] = kernel_u64(bpf_get_current_task() + TASK_MM_OFFSET);
    range->at[RANGE_START_OFFSET / 8] = START;
    return 0;
}
"""
START = AT + 4096


class Notifier(MadeUp):
    """The programs of the probe as where functions can be hooked, each run by the name of its event."""

    def __init__(self) -> None:
        ageing = ("mm", "start", "end")
        points = {
            "unmaps": made_up_point("function", "unmaps", "range"),
            "ages": made_up_point("function", "ages", *ageing),
            "ages_lightly": made_up_point("function", "ages_lightly", *ageing),
            "kvm_unmap_hva_range": made_up_point("kvm", "kvm_unmap_hva_range", "start", "end"),
            "kvm_age_hva": made_up_point("kvm", "kvm_age_hva", "start", "end"),
        }

        def lookup(category: str, event: str) -> tracefs.Tracepoint | None:
            return points.get(event) or tracefs.tracepoint(category, event)

        super().__init__(lookup, ("notifier",), points, defines={"START": START}, more=TELL)
        run_program(self.load("tell"))
        self.range, self.mm = (self.programs[b"addresses"][at].value for at in (0, 1))

    def see(self, event: str, *arguments: int) -> list[tuple[int, int]]:
        """Let an event happen in this thread; return (kind, owner) of the rows that come of it."""
        self.run(event, *arguments)
        records = self.records()
        return list(zip(records["kind"].tolist(), records["rip"].tolist(), strict=True))


@pytest.mark.live("bpf", "root")
def test_the_function_that_notifies_says_whose_memory_it_is() -> None:
    """In a process of its own: one that has had a VM is told of its memory for ever."""
    run_alone(__spec__.name)


def main() -> None:
    """Let the notifier's functions be called for memory of this process, which has no VM."""
    with Notifier.loaded() as notifier:
        of_this_mm = notifier.mm, START, START + 4096
        for hook, arguments, event, kind in (
            ("unmaps", (notifier.range,), "kvm_unmap_hva_range", "unmap"),
            ("ages", of_this_mm, "kvm_age_hva", "age"),
            ("ages_lightly", of_this_mm, "kvm_age_hva", "age"),
        ):
            # What was said of addresses says nothing of others: of those it is not known whose they are.
            assert notifier.see(event, START + 8192, START + 12288) == [(KIND_CODE[kind], 0)]
            assert notifier.see(hook, *arguments) == []
            assert notifier.see(event, START, START + 4096) == [(KIND_CODE[kind], os.getpid())]
            assert notifier.see(event, START + 8192, START + 12288) == [(KIND_CODE[kind], 0)]
            threads = notifier.programs[b"threads"]
            threads[ctypes.c_uint32(os.getpid())] = threads.Leaf(tgid=os.getpid(), vm=5, vcpu=-1)
            notifier.run(event, START, START + 4096)
            assert notifier.records()["vm"].tolist() == [5]
            del threads[ctypes.c_uint32(os.getpid())]


if __name__ == "__main__":
    main()
