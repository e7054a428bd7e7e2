"""`make faults`: what happens to a recording, and to its account, when the host misbehaves.

`python -m tests.endurance.faults [NAME…]` runs the named ones, else all, and prints a row of the table in
docs/reliability.md for each. The workload (see `workload`) makes a known number of events: in the end every
one must be stored or counted in the ledger; where a fault makes that impossible the ledger says "unknown".
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.endurance.hosts import HOST_FAULTS
from tests.endurance.workload import Account, account, children_of, command, emitted, finished, start_recorder
from tracekit.trace import Meta, TraceWriter, events_batch, open_trace, recover

SEED = 20_261_123


@dataclass
class Row:
    """One line of the table."""

    fault: str
    tried: int
    exact: int
    honest: int
    emitted: int
    stored: int
    ledgered: int

    def __str__(self) -> str:
        return (
            f"| {self.fault} | {self.tried} | {self.emitted:,} | {self.stored:,} | {self.ledgered:,} "
            f"| {self.exact} | {self.honest} |"
        )


def summed(fault: str, accounts: list[Account]) -> Row:
    return Row(
        fault,
        len(accounts),
        sum(a.exact for a in accounts),
        sum(a.exact or a.honest for a in accounts),
        sum(a.emitted for a in accounts),
        sum(a.stored for a in accounts),
        sum(a.ledgered for a in accounts),
    )


def whole(folder: Path, name: str) -> Account:
    """Recover where needed; recovering again must change nothing."""
    path = folder / name
    recover(path)
    assert not recover(path).changed
    return account(open_trace(path), folder / "counter")


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    place = folder / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def disk_full(folder: Path, rng: random.Random) -> Account:
    with small_disk(folder, f"{rng.randrange(300, 1500)}k") as place:
        # More calls than fit; the command goes on to its end when the recorder gives up.
        recorder = start_recorder(place / "x.trace", "--", *command(folder / "counter", 500_000))
        said = finished(recorder, 1)
        assert "the disk is full" in said, said
        subprocess.run(["mount", "-o", "remount,size=64m", str(place)], check=True)
        shutil.copytree(place / "x.trace", folder / "x.trace")
    return whole(folder, "x.trace")


SHIM = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <stdio.h>
static int bad(int fd) {
    static int left = -1;
    char link[64], path[4096];
    if (left < 0) left = atoi(getenv("FAIL_AFTER"));
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n <= 0) return 0;
    path[n] = 0;
    if (!strstr(path, ".arrow.part")) return 0;
    return left-- <= 0;
}
ssize_t write(int fd, const void *data, size_t n) {
    static ssize_t (*real)(int, const void *, size_t);
    if (!real) real = dlsym(RTLD_NEXT, "write");
    if (bad(fd)) { errno = EIO; return -1; }
    return real(fd, data, n);
}
int fdatasync(int fd) {
    static int (*real)(int);
    if (!real) real = dlsym(RTLD_NEXT, "fdatasync");
    if (bad(fd)) { errno = EIO; return -1; }
    return real(fd);
}
"""


def disk_error(folder: Path, rng: random.Random) -> Account:
    """Every write and sync of a part fails from some moment on, as on a disk that dies."""
    (folder / "shim.c").write_text(SHIM)
    shim = folder / "shim.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(shim), str(folder / "shim.c"), "-ldl"], check=True)
    environment = {**os.environ, "LD_PRELOAD": str(shim), "FAIL_AFTER": str(rng.randrange(1, 12))}
    work = command(folder / "counter", 500_000)
    recorder = start_recorder(folder / "x.trace", "--", *work, env=environment)
    said = finished(recorder, 1)
    assert "Input/output error" in said, said
    return whole(folder, "x.trace")


def recorder_killed(folder: Path, rng: random.Random) -> Account:
    recorder = start_recorder(folder / "x.trace", "--", *command(folder / "counter", 3_000_000, 100_000))
    try:
        while not emitted(folder / "counter")[1]:
            time.sleep(0.01)
        time.sleep(rng.random() * 1.5)
        recorder.kill()
        recorder.wait()  # not its stderr: the command has that too, and goes on
    finally:
        # The command goes on without its recorder: end it by its own pid.
        for child in children_of(folder):
            os.kill(child, signal.SIGKILL)
    return whole(folder, "x.trace")


@contextlib.contextmanager
def without_memory() -> Iterator[Path]:
    """A memory cgroup in which next to nothing more can be had, and nothing swapped."""
    first = Path("/sys/fs/cgroup/memory")
    group = (first if first.exists() else first.parent) / "tracekit-fault"
    group.mkdir()
    try:
        for limit in ("memory.limit_in_bytes", "memory.max"):
            if (group / limit).exists():
                (group / limit).write_text(str(64 << 10))
        for name, value in (("memory.swappiness", "0"), ("memory.swap.max", "0")):
            if (group / name).exists():
                (group / name).write_text(value)
        yield group
    finally:
        while group.exists():
            with contextlib.suppress(OSError):  # busy until the last of what was killed is gone
                group.rmdir()
            time.sleep(0.1)


def out_of_memory(folder: Path, rng: random.Random) -> Account:
    """From some moment on the recorder gets no more memory: the kernel kills it."""
    with without_memory() as group:
        work = command(folder / "counter", 3_000_000, 100_000)
        recorder = start_recorder(folder / "x.trace", "--", *work)
        try:
            while not emitted(folder / "counter")[1]:
                time.sleep(0.01)
            time.sleep(rng.random() * 1.5)
            (group / "cgroup.procs").write_text(str(recorder.pid))
            assert recorder.wait(20) == -signal.SIGKILL
        finally:
            for child in children_of(folder):
                os.kill(child, signal.SIGKILL)
    return whole(folder, "x.trace")


def reader_stopped(folder: Path, rng: random.Random) -> Account:
    """The recorder stands still for ten seconds while ten times what the ring holds comes in."""
    buffer = ("--buffer", "1M")
    work = command(folder / "counter", 400_009)
    recorder = start_recorder(folder / "x.trace", *buffer, "--", *work)
    while emitted(folder / "counter")[1] < 1000:
        time.sleep(0.005)
    recorder.send_signal(signal.SIGSTOP)
    time.sleep(10)
    recorder.send_signal(signal.SIGCONT)
    finished(recorder)
    return account(open_trace(folder / "x.trace"), folder / "counter")


def signalled_twice(folder: Path, rng: random.Random) -> Account:
    """A second signal while the reader stands still: it aborts with a full ring and losses untold."""
    work = command(folder / "counter", 100_003, 20_000)
    recorder = start_recorder(folder / "x.trace", "--buffer", rng.choice(("64K", "32M")), "--", *work)
    while emitted(folder / "counter")[1] < 1 + rng.randrange(40_000):
        time.sleep(0.005)
    recorder.send_signal(signal.SIGSTOP)
    time.sleep(1)
    recorder.send_signal(signal.SIGINT)
    recorder.send_signal(signal.SIGTERM)
    recorder.send_signal(signal.SIGCONT)
    finished(recorder, 130)
    return whole(folder, "x.trace")


def busy_cpus(folder: Path, rng: random.Random) -> Account:
    """Two endless loops for each CPU, with a better priority than the recorder's."""
    spin = [sys.executable, "-c", "import os\nos.nice(-5)\nwhile True: pass"]
    hogs = [subprocess.Popen(spin) for _ in range(2 * (os.cpu_count() or 1))]
    try:
        recorder = start_recorder(
            folder / "x.trace", "--buffer", "4M", "--", *command(folder / "counter", 100_003)
        )
        finished(recorder)
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()
    return account(open_trace(folder / "x.trace"), folder / "counter")


def vm_killed(folder: Path, rng: random.Random) -> Account:
    """The traced process gets SIGKILL in the middle of a call, or between a call and its being counted."""
    recorder = start_recorder(folder / "x.trace", "--", *command(folder / "counter", 5_000_000))
    while not emitted(folder / "counter")[1]:
        time.sleep(0.005)
    time.sleep(rng.random())
    (worker,) = children_of(folder)
    os.kill(worker, signal.SIGKILL)
    finished(recorder, 137)
    found = account(open_trace(folder / "x.trace"), folder / "counter")
    if found.stored + found.ledgered == found.emitted + 1:
        return Account(found.emitted + 1, found.stored, found.ledgered, found.unknown, found.in_order)
    return found


def two_recorders(folder: Path, rng: random.Random) -> Account:
    """A second recorder attaches to what the first one started; both have all of what both were there for."""
    first = start_recorder(folder / "x.trace", "--", *command(folder / "counter", 800_011, 20_000))
    while not emitted(folder / "counter")[1]:
        time.sleep(0.005)
    (worker,) = children_of(folder)
    second = start_recorder(folder / "y.trace", "-p", str(worker))
    finished(first)
    finished(second)
    one, two = (account(open_trace(folder / name), folder / "counter") for name in ("x.trace", "y.trace"))
    assert 0 < two.stored < one.stored
    rows = [open_trace(folder / name).events.collect() for name in ("x.trace", "y.trace")]
    address, _ = emitted(folder / "counter")
    later = [r.filter((r["kind"] == "madvise") & (r["arg"] == 4) & (r["hva"] >= address)) for r in rows]
    # From the second one's first call on, call by call the same, at times some microseconds apart.
    tail = later[0].tail(later[1].height)
    assert tail["hva"].to_list() == later[1]["hva"].to_list()
    return one


def writer_killed(folder: Path, rng: random.Random) -> Account:
    """SIGKILL at a random moment of writing; what recover brings back is a prefix of what was appended."""
    path, told = folder / "x.trace", folder / "told"
    told.write_bytes(bytes(8))
    pid = os.fork()
    if not pid:
        _write_for_ever(path, told)
    time.sleep(0.02 + rng.random() * 0.4)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    appended = int.from_bytes(told.read_bytes(), "little")
    if not (path / "meta.json").exists():
        return Account(0, 0, 0, unknown=True, in_order=True)  # killed before there was a trace
    recover(path)
    assert not recover(path).changed
    trace = open_trace(path)
    rows = np.concatenate(
        [b.column("gfn").to_numpy() for b in trace.batches(["gfn"])] or [np.zeros(0, np.uint64)]
    )
    prefix = bool((rows == np.arange(len(rows))).all())
    durable = len(rows) >= appended
    return Account(max(appended, len(rows)), len(rows), 0, trace.lost is None, prefix and durable)


def _write_for_ever(path: Path, told: Path) -> None:
    """Append numbered rows; tell which are promised to be safe after each flush."""
    fd = os.open(told, os.O_WRONLY)
    with contextlib.suppress(BaseException):
        writer = TraceWriter(path, Meta(), max_part_bytes=200_000)
        at = 0
        while True:
            rows = random.randrange(1, 30_000)
            gfn = np.arange(at, at + rows, dtype=np.uint64)
            writer.append(events_batch(ts_ns=gfn * 1000, kind="page_alloc", gfn=gfn))
            at += rows
            os.pwrite(fd, writer.flush(everything=bool(rows % 2)).to_bytes(8, "little"), 0)
    os._exit(1)


FAULTS: dict[str, tuple[str, int, Callable[[Path, random.Random], Account]]] = {
    "disk_full": ("ENOSPC: tmpfs of 0.3-1.5 MB", 5, disk_full),
    "disk_error": ("EIO: every write and sync fails from some moment on", 5, disk_error),
    "writer_killed": ("SIGKILL of a writer at a random moment", 200, writer_killed),
    "recorder_killed": ("SIGKILL of the recorder at a random moment", 100, recorder_killed),
    "out_of_memory": ("the recorder gets no more memory and is killed by the kernel", 20, out_of_memory),
    "reader_stopped": ("SIGSTOP of the recorder for 10 s, ring of 1 MiB", 5, reader_stopped),
    "signalled_twice": ("two signals to a recorder that stands still for 1 s", 10, signalled_twice),
    "busy_cpus": ("two busy loops a CPU, of better priority", 5, busy_cpus),
    "vm_killed": ("the traced process gets SIGKILL", 5, vm_killed),
    "two_recorders": ("two recorders of one process", 5, two_recorders),
    **HOST_FAULTS,
}


def main() -> None:
    """Run faults and print the table's rows; exit code 1 where a trace was not honest."""
    names = sys.argv[1:] or list(FAULTS)
    print("| fault | tried | emitted | stored | ledgered | exact | exact or honest |")
    bad = 0
    for name in names:
        about, times, fault = FAULTS[name]
        accounts = []
        for number in range(times):
            folder = Path(tempfile.mkdtemp(prefix="tracekit-fault-"))
            try:
                accounts.append(fault(folder, random.Random(SEED + number)))
                if not (accounts[-1].exact or accounts[-1].honest):
                    print(f"{name} {number}: {accounts[-1]}", file=sys.stderr)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
        row = summed(about, accounts)
        bad += row.tried - row.honest
        print(row, flush=True)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
