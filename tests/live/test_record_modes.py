"""The other ways to record: from inside a guest, a QEMU without KVM, in series, only the last seconds."""

from __future__ import annotations

import errno
import json
import mmap
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.live.recording import TRACEKIT, of_kind, record_command, wait_for
from tracekit.probes.loader import LoadedProbes, ProgramStats
from tracekit.probes.plan import RecordPlan, RecordReport, Status
from tracekit.probes.recorder import Recorder
from tracekit.probes.ring import RingReader
from tracekit.probes.run import record
from tracekit.trace import Trace, open_trace, recover
from tracekit.trace.schema import FLAG_ZEROED, PAGE_BYTES

pytestmark = pytest.mark.live("bpf", "root")

PAGES = 5003  # a prime
TOUCH = f"""
import ctypes, json, mmap, os, sys, threading
m = mmap.mmap(-1, {PAGES} * 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
m.madvise(mmap.MADV_NOHUGEPAGE)
at = ctypes.addressof(ctypes.c_char.from_buffer(m))
for i in range({PAGES}): m[i * 4096] = 1
m.madvise(mmap.MADV_DONTNEED)
json.dump([at, threading.get_native_id()], open(sys.argv[1], "w"))
"""


def test_from_inside_a_guest_every_page_handed_out_and_taken_back_is_seen(tmp_path: Path) -> None:
    path, account = tmp_path / "guest.trace", tmp_path / "account.json"
    trace, _ = record_command(path, sys.executable, "-c", TOUCH, str(account), guest=True)
    at, tid = json.loads(account.read_text())
    faults = of_kind(trace, "guest_fault").filter(
        pl.col("gva").is_between(at, at + PAGES * PAGE_BYTES, closed="left"), pl.col("tid") == tid
    )
    assert faults.height == faults["gva"].n_unique() == PAGES
    assert faults["latency_ns"].null_count() == 0
    # Each of these faults was given a zeroed page, between its start and its end, in the same thread.
    allocated = of_kind(trace, "page_alloc").filter(pl.col("tid") == tid)
    given = allocated.filter(pl.col("flags") & FLAG_ZEROED != 0, pl.col("pages") == 1).sort("ts_ns")
    windows = faults.select(start=pl.col("ts_ns") - pl.col("latency_ns"), end="ts_ns").sort("start")
    served = windows.join_asof(given.select(at="ts_ns", gfn="gfn"), left_on="end", right_on="at")
    assert (served["at"] >= served["start"]).all()
    assert served["gfn"].n_unique() == PAGES
    # They were taken back, but for those that a CPU's batch of newly used pages (31 at most) still holds.
    freed = of_kind(trace, "page_free").filter(pl.col("gfn").is_in(served["gfn"].to_list()))
    assert PAGES - 31 * (os.cpu_count() or 1) <= freed["gfn"].n_unique() <= PAGES
    assert trace.meta.extra["side"] == "guest"
    assert trace.meta.vms[0]["vcpus"] == os.cpu_count()
    # The recorder left itself out.
    assert trace.events.select("vcpu").unique().collect()["vcpu"].max() < os.cpu_count()


def test_what_the_recorder_starts_while_it_records_is_left_out_too(tmp_path: Path) -> None:
    """As the process that compiles its inner loops is, where there are none yet."""
    accounts = [tmp_path / name for name in ("of-the-recorder", "of-its-child", "of-the-command")]
    ours, child, command = ([sys.executable, "-c", TOUCH, str(account)] for account in accounts)
    started = []

    def start(_status: Status) -> None:
        if not started:
            started.append(subprocess.Popen(["sh", "-c", f'"$@"; {shlex.join(child)}', "sh", *ours]))

    path = tmp_path / "own.trace"
    waits = f"{shlex.join(command)}; while ! test -s {accounts[1]}; do sleep 0.1; done"
    report = record(RecordPlan(out=path, command=("sh", "-c", waits), guest=True), watch=start)
    assert started[0].wait() == report.exit_code == 0
    trace = open_trace(path)
    tids = [json.loads(account.read_text())[1] for account in accounts]
    for kind in ("page_alloc", "page_free", "guest_fault"):
        by_tid = dict(of_kind(trace, kind).group_by("tid").len().iter_rows())
        seen = [by_tid.get(tid, 0) for tid in tids]
        assert seen[:2] == [0, 0]
        assert seen[2] >= PAGES // 2


def test_a_guest_s_run_queue_is_sampled(tmp_path: Path) -> None:
    busy = "for n in 1 2 3 4 5 6 7; do timeout 2.5 sh -c 'while :; do :; done' & done; wait"
    trace, _ = record_command(tmp_path / "busy.trace", "sh", "-c", busy, guest=True)
    samples = dict(trace.samples.group_by("metric").agg(pl.col("value").max()).iter_rows())
    assert samples["runnable_threads"] >= 7
    assert samples["cpus"] == os.cpu_count()


@pytest.mark.live("bpf", "root", "qemu-system-x86_64")
def test_a_qemu_without_kvm_has_gfns_and_a_balloon_counted_to_the_page(tmp_path: Path) -> None:
    path = tmp_path / "qemu.trace"
    guest = [*TRACEKIT, "lab", "linux", "--accel", "tcg", "--memory", "256M", "--settle", "0"]
    trace, _ = record_command(path, *guest, "--balloon", "192M")
    pages = (64 << 20) // PAGE_BYTES
    for kind in ("balloon_inflate", "balloon_deflate"):
        rows = of_kind(trace, kind)
        assert rows.height == rows["gfn"].n_unique() == pages
        assert rows["gfn"].max() < (256 << 20) // PAGE_BYTES
    assert trace.memslots["known_by"].to_list() == ["assumed"]
    assert trace.memslots["size_bytes"].to_list() == [256 << 20]
    assert trace.meta.host["mmu_mode"] == "tcg"
    # First touches of the guest's memory: not more than it has, and about what became resident.
    vm = trace.memslots["vm"][0]
    touched = of_kind(trace, "host_fault").filter(pl.col("gfn").is_not_null(), pl.col("vm") == vm)
    assert touched["gfn"].n_unique() >= 1
    resident = trace.samples.filter(pl.col("vm") == vm, pl.col("metric") == "rss_bytes")["value"].max()
    assert isinstance(resident, float)
    assert 0.3 * resident < touched["pages"].sum() * PAGE_BYTES < 1.5 * resident


@pytest.mark.live("bpf", "root", "qemu-system-x86_64")
def test_the_monitor_of_a_running_qemu_tells_its_memory(tmp_path: Path) -> None:
    socket, path = tmp_path / "qmp", tmp_path / "monitor.trace"
    machine = ["qemu-system-x86_64", "-m", "3G", "-M", "q35", "-display", "none", "-nodefaults", "-S"]
    with subprocess.Popen([*machine, "-qmp", f"unix:{socket},server,nowait"]) as qemu:
        try:
            wait_for(socket.exists)
            record(RecordPlan(out=path, pids=(qemu.pid,), seconds=0.5, monitor=socket))
            maps = Path(f"/proc/{qemu.pid}/maps").read_text()
        finally:
            qemu.terminate()
    slots = open_trace(path).memslots
    assert set(slots["known_by"]) == {"monitor"}
    assert slots.filter(pl.col("gpa") == 1 << 32)["size_bytes"].to_list() == [1 << 30]
    low = slots.filter(pl.col("gpa") < 1 << 32)
    assert low.filter(pl.col("gpa") >= 1 << 20)["size_bytes"].sum() == (2 << 30) - (1 << 20)
    # All of it lies in one mapping of 3 GiB, at the offset that its place in RAM says.
    spans = [[int(x, 16) for x in line.split()[0].split("-")] for line in maps.splitlines()]
    (ram,) = [start for start, end in spans if end - start == 3 << 30]
    assert set(low["hva"] - low["gpa"]) == {ram}
    assert slots.filter(pl.col("gpa") == 1 << 32)["hva"].to_list() == [ram + (2 << 30)]


BEAT = """
import ctypes, mmap, os, time
m = mmap.mmap(-1, 1 << 20)
beat = 0
while True:
    m.madvise(mmap.MADV_DONTNEED, 4096 * (beat % 256), 4096)
    beat += 1
    time.sleep(0.01)
"""


def beats(trace: Trace) -> pl.DataFrame:
    return of_kind(trace, "madvise").filter(pl.col("arg") == mmap.MADV_DONTNEED)


def test_a_series_of_traces_has_every_event_once_and_keeps_the_last(tmp_path: Path) -> None:
    path = tmp_path / "series.trace"
    series = RecordPlan(
        out=path, command=(sys.executable, "-c", BEAT), seconds=3.2, rotate_seconds=0.7, rotate_keep=3
    )
    assert record(series).lost == 0
    assert not path.exists()
    traces = [open_trace(part) for part in sorted(tmp_path.glob("series-*.trace"))]
    assert len(traces) == 3
    assert all(trace.meta.finalised and trace.lost == 0 for trace in traces)
    addresses = [hva for trace in traces for hva in beats(trace)["hva"]]
    assert len(addresses) > 20
    steps = {(b - a) % (1 << 20) for a, b in pairwise(addresses)}
    assert steps == {4096}  # the beats go on over the seams, none missing and none twice
    # Each begins where the one before ends, and has what was in between.
    metas = [trace.meta for trace in traces]
    assert all(a.stop_ns == b.start_ns for a, b in pairwise(metas))
    for trace in traces:
        first, last = span(trace)
        assert trace.meta.start_ns <= first <= last <= trace.meta.stop_ns  # type: ignore[operator]


def test_what_programs_missed_is_in_the_ledger_of_the_trace_of_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel's counter grows after two thirds of the time, by a prime number."""
    path, began = tmp_path / "series.trace", time.monotonic()
    stats = LoadedProbes.program_stats

    def missing(probes: LoadedProbes) -> list[ProgramStats]:
        first, *others = stats(probes)
        missed = 101 if (tmp_path / "series-0003.trace").exists() else 0
        return [replace(first, missed=missed), *others]

    monkeypatch.setattr(LoadedProbes, "program_stats", missing)
    report = record(RecordPlan(out=path, command=("sleep", "60"), seconds=3, rotate_seconds=0.7))
    assert time.monotonic() - began < 60
    assert report.losses == {"nested BPF programs (at most 101)": None}
    traces = [open_trace(part) for part in sorted(tmp_path.glob("series-*.trace"))]
    assert [trace.lost for trace in traces] == [0, 0, None, *[0 for _ in traces[3:]]]
    (loss,) = traces[2].losses.to_dicts()
    assert traces[1].meta.start_ns <= loss["t0_ns"] < loss["t1_ns"]  # type: ignore[operator]


@pytest.mark.parametrize("turns", [3, 10**9])
def test_what_lies_behind_a_record_that_is_being_written_is_waited_for_or_entered_as_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, turns: int
) -> None:
    """The ring's first record is being written all the time, and at the end so many turns longer."""
    read, finish, left = RingReader.read, Recorder.finish, [10**9]

    def held_back(ring: RingReader) -> np.ndarray:
        left[0] -= 1
        return read(ring)[:0] if left[0] > 0 else read(ring)

    def held_back_free(ring: RingReader) -> None:
        if left[0] <= 0:
            free(ring)

    def at_the_end(recorder: Recorder) -> RecordReport:
        left[0] = turns
        return finish(recorder)

    free = RingReader.free
    monkeypatch.setattr(RingReader, "read", held_back)
    monkeypatch.setattr(RingReader, "free", held_back_free)
    monkeypatch.setattr(Recorder, "finish", at_the_end)
    path, account = tmp_path / "x.trace", tmp_path / "account.json"
    report = record(RecordPlan(out=path, command=(sys.executable, "-c", TOUCH, str(account))))
    at, _ = json.loads(account.read_text())
    faults = of_kind(open_trace(path), "host_fault")
    mine = faults.filter(pl.col("hva").is_between(at, at + PAGES * PAGE_BYTES, closed="left"))
    assert (mine.height, report.lost) == ((PAGES, 0) if turns == 3 else (0, None))
    assert open_trace(path).lost == report.lost


def test_a_flight_recorder_writes_the_last_seconds_when_triggered(tmp_path: Path) -> None:
    path = tmp_path / "flight.trace"
    command = [*TRACEKIT, "record", "-o", str(path), "--keep-last", "1", "--", sys.executable, "-c", BEAT]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as recorder:
        try:
            wait_for(lambda: is_beating(recorder.pid))
            time.sleep(2)
            assert not path.exists()
            recorder.send_signal(signal.SIGUSR1)
            triggered = time.monotonic_ns()
            wait_for((tmp_path / "flight-0001.trace" / "losses.arrow").exists)
            time.sleep(1)
            recorder.send_signal(signal.SIGINT)
            assert recorder.wait(timeout=30) == 0
        finally:
            if recorder.poll() is None:
                recorder.kill()
    dump, last = open_trace(tmp_path / "flight-0001.trace"), open_trace(path)
    for trace in (dump, last):
        assert trace.meta.finalised
        start, end = span(trace)
        assert 500_000_000 < end - start < 1_300_000_000
        addresses = beats(trace)["hva"].to_list()
        assert {(b - a) % (1 << 20) for a, b in pairwise(addresses)} == {4096}
    assert abs(span(dump)[1] - triggered) < 1_000_000_000
    assert span(last)[0] > span(dump)[0]


def test_a_killed_recorder_leaves_the_vms_it_had_met(tmp_path: Path) -> None:
    path = tmp_path / "killed.trace"
    command = ["sh", "-c", f"sleep 0.5; {sys.executable} -c 'import time; time.sleep(20)'; true"]
    with subprocess.Popen([*TRACEKIT, "record", "-o", str(path), "--", *command]) as recorder:
        try:
            wait_for(lambda: "time.sleep(20)" in str(json.loads((path / "meta.json").read_text())["vms"][1:]))
        finally:
            recorder.kill()
    assert not json.loads((path / "meta.json").read_text())["finalised"]
    recover(path)
    shell, *others = open_trace(path).meta.vms
    assert {vm["parent_pid"] for vm in others} == {shell["pid"]}  # type: ignore[typeddict-item]
    assert any("time.sleep(20)" in " ".join(vm["argv"]) for vm in others)


def span(trace: Trace) -> tuple[int, int]:
    times = trace.events.select("ts_ns").collect()["ts_ns"]
    return int(times.min()), int(times.max())  # type: ignore[arg-type]


def is_beating(recorder: int) -> bool:
    """Whether the recorder's child has become its command."""
    children = Path(f"/proc/{recorder}/task/{recorder}/children").read_text().split()
    lines = [Path(f"/proc/{child}/cmdline").read_text() for child in children]
    return any("madvise" in line and "execv(" not in line for line in lines)


ENDLESS = """
import mmap
while True:
    m = mmap.mmap(-1, 1 << 24)
    for i in range(0, 1 << 24, 4096): m[i] = 1
    m.close()
"""


def test_the_largest_size_ends_the_recording(tmp_path: Path) -> None:
    path = tmp_path / "small.trace"
    trace, report = record_command(path, sys.executable, "-c", ENDLESS, max_bytes=300 << 10)
    assert report.stopped_by == "size"
    assert report.bytes_written >= 300 << 10
    assert trace.meta.finalised


def test_a_moment_that_the_command_named_ends_a_phase(tmp_path: Path) -> None:
    path = tmp_path / "marked.trace"
    script = f"{sys.executable} -m tracekit mark ready && sleep 0.2"
    before = time.monotonic_ns()
    trace, _ = record_command(path, "sh", "-c", script)
    (mark,) = trace.meta.marks
    assert mark["name"] == "ready"
    assert before < mark["ts_ns"] < trace.meta.stop_ns - 150_000_000
    assert not Path(f"{path}.marks").exists()


def test_where_no_pipe_can_be_made_only_the_marks_are_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))  # what FAT answers

    monkeypatch.setattr(os, "mkfifo", refused)
    marking = f"{sys.executable} -m tracekit mark ready; test $? = 2"
    trace, report = record_command(tmp_path / "x.trace", "sh", "-c", marking)
    assert trace.meta.marks == []
    # The trace may also say what others did on this machine meanwhile.
    (why,) = report.notes
    assert why in trace.meta.notes
    assert why.startswith("marks are off: no pipe can be made")
    assert why in report.lines()[-1]
    assert trace.rows > 0
