"""Faults of the host around a recording: clocks, tracefs, headers, CPUs, and VMs that come, go and grow."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

from tests.endurance.workload import Account, account, command, emitted, finished, start_recorder
from tracekit.probes.bcc_package import KERNEL_TREE
from tracekit.trace import open_trace

__all__ = ["HOST_FAULTS"]

# Every look at the calendar's clock is off by up to a day, another way each time.
CLOCK_SHIM = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>
int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(clock, now);
    if (!failed && clock == CLOCK_REALTIME) now->tv_sec += rand() % 172800 - 86400;
    return failed;
}
"""

# Many VMMs, a few at a time, each with one guest that touches so many pages and is gone.
MANY_VMS = """
import os, sys
from tracekit.lab.guest_plan import GuestPlan
from tracekit.lab.small_guest import SmallGuest
told = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)
vms, pages, at_once = map(int, sys.argv[2:])
running = ended = 0
while ended < vms:
    if running < at_once and running + ended < vms:
        if not os.fork():
            with SmallGuest(GuestPlan(pages=pages)) as guest:
                run = guest.run()
            touches = sum(phase.touches for vcpu in run.vcpus for phase in vcpu.phases.values())
            os.write(told, touches.to_bytes(8, "little"))
            os._exit(0)
        running += 1
        continue
    _, status = os.wait()
    assert not status, status
    running, ended = running - 1, ended + 1
"""


def clock_jumps(folder: Path, rng: random.Random) -> Account:
    """CLOCK_REALTIME jumps all the time for the recorder; events have the kernel's monotonic clock."""
    (folder / "clock.c").write_text(CLOCK_SHIM)
    shim = folder / "clock.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(shim), str(folder / "clock.c"), "-ldl"], check=True)
    environment = {**os.environ, "LD_PRELOAD": str(shim)}
    work = command(folder / "counter", 400_009, 100_000)
    finished(start_recorder(folder / "x.trace", "--", *work, env=environment))
    trace = open_trace(folder / "x.trace")
    times = trace.events.select("ts_ns").collect()["ts_ns"]
    assert times.is_sorted()
    assert times.is_between(trace.meta.start_ns or 0, trace.meta.stop_ns or 0).all()
    return account(trace, folder / "counter")


def no_tracepoint(folder: Path, rng: random.Random) -> Account:
    """The recorder finds no page fault tracepoints (in a mount namespace of its own): it says so, goes on."""
    hide = (
        "for events in /sys/kernel/tracing /sys/kernel/debug/tracing; do mount -t tmpfs none $events/events/"
    )
    script = f'{hide}exceptions; done; exec "$@"'
    record = [sys.executable, "-m", "tracekit", "record", "-o", str(folder / "x.trace"), "--"]
    work = command(folder / "counter", 400_009)
    arguments = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", script, "sh", *record, *work]
    finished(subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True))
    trace = open_trace(folder / "x.trace")
    assert "exceptions:page_fault_user" in trace.meta.probes["refused"]["host_fault"]
    return account(trace, folder / "counter")


def headers_gone(folder: Path, rng: random.Random) -> Account:
    """The kernel's header tree is removed while the recording goes on."""
    tree = folder / "headers"
    shutil.copytree(KERNEL_TREE, tree)
    environment = {**os.environ, "BCC_KERNEL_SOURCE": str(tree)}
    work = command(folder / "counter", 400_009, 100_000)
    recorder = start_recorder(folder / "x.trace", "--", *work, env=environment)
    while emitted(folder / "counter")[1] < 1000 and recorder.poll() is None:
        pass
    shutil.rmtree(tree)
    finished(recorder)
    return account(open_trace(folder / "x.trace"), folder / "counter")


def hot_cpu(folder: Path, rng: random.Random) -> Account:
    """One CPU makes all events, as fast as it can, and the recorder has no other."""
    work = ["taskset", "--cpu-list", "0", *command(folder / "counter", 2_000_003)]
    arguments = ["taskset", "--cpu-list", "0", sys.executable, "-m", "tracekit", "record", "--buffer", "1M"]
    finished(
        subprocess.Popen(
            [*arguments, "-o", str(folder / "x.trace"), "--", *work], stderr=subprocess.PIPE, text=True
        )
    )
    return account(open_trace(folder / "x.trace"), folder / "counter")


def vm_resized(folder: Path, rng: random.Random) -> Account:
    """A guest gets a memslot more while it runs, and touches all of both."""
    pages, added = rng.randrange(2000, 9000), rng.randrange(500, 3000)
    guest = ["lab", "guest", "--pages", str(pages), "--hot-add", str(added), "--order", "random"]
    work = [sys.executable, "-m", "tracekit", *guest]
    finished(start_recorder(folder / "x.trace", "--", *work, stdout=subprocess.DEVNULL))
    trace = open_trace(folder / "x.trace")
    slots = trace.memslots.filter(pl.col("gpa") >= 2 << 20).sort("gpa")
    first, last = (slots["gpa"] // 4096).to_list()
    wanted = pl.col("gfn").is_between(first, first + pages, closed="left")
    wanted |= pl.col("gfn").is_between(last, last + added, closed="left")
    return _touches(folder / "x.trace", pages + added, wanted)


def short_vms(folder: Path, rng: random.Random) -> Account:
    """A thousand VMs, eight at a time, each gone after 31 touches."""
    vms, pages = 1000, 31
    told = folder / "told"
    told.touch()
    work = [sys.executable, "-c", MANY_VMS, str(told), str(vms), str(pages), "8"]
    finished(start_recorder(folder / "x.trace", "--", *work))
    counts = np.fromfile(told, np.uint64)
    assert counts.size == vms
    touched = pl.col("gfn").is_between(512, 512 + pages, closed="left")
    return _touches(folder / "x.trace", int(counts.sum()), touched)


def _touches(path: Path, emitted: int, wanted: pl.Expr) -> Account:
    """Account for pages that guests touched first, each of them once."""
    trace = open_trace(path)
    touched = trace.events.filter((pl.col("kind") == "ept_violation") & wanted).select("vm", "gfn").unique()
    # What the ring had no room for is counted by kind.
    lost = trace.losses.filter(pl.col("reason").str.contains("ept_violation|not written"))["lost"]
    return Account(emitted, touched.collect().height, int(lost.sum()), trace.lost is None, in_order=True)


HOST_FAULTS: dict[str, tuple[str, int, Callable[[Path, random.Random], Account]]] = {
    "clock_jumps": ("CLOCK_REALTIME jumps by up to a day at each look", 5, clock_jumps),
    "no_tracepoint": ("no page fault tracepoints in tracefs", 5, no_tracepoint),
    "headers_gone": ("the header tree is removed midway", 5, headers_gone),
    "hot_cpu": ("all events on one CPU, the recorder on the same, ring of 1 MiB", 5, hot_cpu),
    "vm_resized": ("a memslot is added to a running VM", 5, vm_resized),
    "short_vms": ("1,000 VMs of 31 touches, eight at a time", 1, short_vms),
}
