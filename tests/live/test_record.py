"""tracekit record on real guests: counts that must be exact, against the guest's own and the kernel's."""

from __future__ import annotations

import json
import mmap
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.endurance.workload import account, command, emitted, finished, start_recorder
from tests.live.recording import (
    GUEST,
    TRACEKIT,
    ended,
    of_kind,
    record_command,
    wait_for,
    waiting_guest,
    writing_to,
)
from tracekit.lab.small_guest import GuestPlan
from tracekit.probes.plan import RecordPlan
from tracekit.probes.run import record
from tracekit.trace import Trace, open_trace, recover
from tracekit.trace.schema import ACCESS_WRITE, FLAG_MAJOR

pytestmark = pytest.mark.live("kvm", "bpf", "root")


def run_record(*arguments: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*TRACEKIT, "record", *arguments], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == expect, done.stderr
    return done


def record_guest(folder: Path, *options: str) -> tuple[Trace, dict[str, Any]]:
    """Record a small guest; returns its trace and its own account."""
    account = folder / "guest.json"
    trace, _ = record_command(folder / "guest.trace", *writing_to(account, *GUEST, *options))
    return trace, json.loads(account.read_text())


def faults(trace: Trace) -> pl.DataFrame:
    return of_kind(trace, "ept_violation")


def touched(trace: Trace, first_gfn: int) -> pl.DataFrame:
    """The first touches of the guest's range; its page tables and code lie below `first_gfn`."""
    return faults(trace).filter(pl.col("gfn") >= first_gfn)


@pytest.mark.parametrize(("vcpus", "order"), [(1, "seq"), (2, "random")])
def test_every_first_touch_of_a_prime_number_of_pages_is_recorded(
    tmp_path: Path, vcpus: int, order: str
) -> None:
    pages = 65_537
    options = ("--pages", str(pages), "--vcpus", str(vcpus), "--order", order)
    trace, guest = record_guest(tmp_path, *options)
    rows = touched(trace, guest["first_gfn"])
    assert sorted(rows["gfn"]) == list(range(guest["first_gfn"], guest["first_gfn"] + pages))
    assert rows["latency_ns"].null_count() == 0
    assert rows["latency_ns"].min() > 0
    assert rows["level"].unique().to_list() == [1]
    assert rows["pages"].unique().to_list() == [1]
    assert trace.lost == 0
    assert trace.meta.finalised
    # What is below the range is the guest's own page tables and code, and nothing else.
    assert set(faults(trace).filter(pl.col("gfn") < guest["first_gfn"])["gfn"]) <= set(guest["low_gfns"])
    # Independent counts: the kernel's resident pages of the range, and KVM's mapped leaf entries.
    assert guest["resident_pages"] == pages
    assert guest["kvm_counters"]["pages_4k"] == faults(trace)["gfn"].n_unique()
    plan = GuestPlan(pages=pages, vcpus=vcpus, order=order)  # type: ignore[arg-type]
    for vcpu in guest["vcpus"]:
        # Each vCPU touched its own share in its own thread and in the planned order.
        mine = rows.filter(pl.col("vcpu") == vcpu["vcpu"])
        assert mine["tid"].unique().to_list() == [vcpu["tid"]]
        assert mine["gfn"].to_list() == plan.gfns(vcpu["vcpu"]).tolist()
        # All of it happened while the VMM was inside KVM_RUN, by the VMM's own clock readings.
        phase = vcpu["phases"]["touch"]
        assert (mine["ts_ns"] - mine["latency_ns"]).min() >= phase["start_ns"]
        assert mine["ts_ns"].max() <= phase["start_ns"] + phase["elapsed_ns"]
        assert mine["latency_ns"].sum() < phase["elapsed_ns"]
    # The memslots are those the VMM made, seen as it made them; the VM is the VMM's process.
    assert trace.memslots.select("slot", "gpa", "size_bytes", "hva").to_dicts() == guest["memslots"]
    assert trace.memslots["known_by"].unique().to_list() == ["ioctl"]
    (vm,) = trace.meta.vms
    assert (vm["pid"], vm["vcpus"]) == (guest["pid"], vcpus)
    assert "guest" in vm["argv"]
    assert trace.meta.host["mmu_mode"] in ("ept", "npt", "shadow")
    assert trace.events.select("vm").unique().collect()["vm"].to_list() == [0]


def test_huge_pages_are_one_fault_each(tmp_path: Path) -> None:
    pages = 101
    trace, guest = record_guest(tmp_path, "--pages", str(pages), "--page-size", "2m")
    rows = touched(trace, guest["first_gfn"])
    assert sorted(rows["gfn"]) == [guest["first_gfn"] + 512 * i for i in range(pages)]
    assert rows["level"].unique().to_list() == [2]
    assert rows["pages"].unique().to_list() == [512]
    assert rows["latency_ns"].null_count() == 0
    assert guest["kvm_counters"]["pages_2m"] == pages
    assert trace.lost == 0


FAULTS, CALLS = 10_007, 257  # primes
SCRIPT = f"""
import mmap, resource, json, ctypes, sys, os
def mapping(size):
    m = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    m.madvise(mmap.MADV_NOHUGEPAGE)
    return m, ctypes.addressof(ctypes.c_char.from_buffer(m))
touched, touched_at = mapping({FAULTS} * 4096)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for i in range({FAULTS}): touched[i * 4096] = 1
minor = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
advised, advised_at = mapping(1 << 22)
for i in range({CALLS}): advised.madvise(mmap.MADV_DONTNEED, 4096 * i, 8192)
try: advised.madvise(12345)
except OSError: pass
with open(sys.argv[1], "w") as out: json.dump([touched_at, minor, advised_at], out)
"""


def test_a_vmm_process_is_recorded_fault_by_fault_and_call_by_call(tmp_path: Path) -> None:
    path, account = tmp_path / "script.trace", tmp_path / "script.json"
    script = (sys.executable, "-c", SCRIPT, str(account))
    done = run_record("-o", str(path), "--", "sh", "-c", '"$@"; exit 7', "sh", *script, expect=7)
    assert "0 lost" in done.stderr
    assert f"next: tracekit info {path}" in done.stderr
    trace = open_trace(path)
    touched_at, minor, advised_at = json.loads(account.read_text())

    # The shell and its child are traced, each as its own process.
    shell, python = trace.meta.vms
    assert python["parent_pid"] == shell["pid"]
    assert set(trace.events.select("vm").unique().collect()["vm"]) == {0, 1}

    rows = trace.events.filter(pl.col("kind") == "host_fault", pl.col("vm") == 1).collect()
    mine = rows.filter(pl.col("hva").is_between(touched_at, touched_at + FAULTS * 4096, closed="left"))
    assert mine.height == mine["hva"].n_unique() == FAULTS
    assert FAULTS <= minor <= FAULTS + 50  # a few of the kernel's count are the interpreter's own
    assert mine["latency_ns"].null_count() == 0
    assert mine["access"].unique().to_list() == [ACCESS_WRITE]
    assert (mine["flags"] & FLAG_MAJOR).sum() == 0

    advice = trace.events.filter(pl.col("kind") == "madvise", pl.col("arg") == mmap.MADV_DONTNEED).collect()
    mine = advice.filter(pl.col("hva").is_between(advised_at, advised_at + (1 << 22), closed="left"))
    assert mine["hva"].to_list() == [advised_at + 4096 * i for i in range(CALLS)]
    assert mine["pages"].unique().to_list() == [2]
    # The call that failed did nothing, so it is no event.
    assert trace.events.filter(pl.col("arg") == 12345).collect().height == 0


def recorded_while_running(path: Path, *options: str) -> tuple[Trace, dict[str, Any]]:
    """Attach to a small guest that is ready, and let it run; returns the trace and the guest's account."""
    with waiting_guest(*options) as guest:
        command = [*TRACEKIT, "record", "-p", str(guest.pid), "-o", str(path)]
        with ended(subprocess.Popen(command, text=True)) as recorder:
            wait_for((path / "meta.json").exists)
            time.sleep(0.5)
            account, _ = guest.communicate("\n", timeout=30)
            assert recorder.wait(timeout=30) == 0
    return open_trace(path), json.loads(account)


def test_attaching_to_a_running_vm_finds_its_vcpus(tmp_path: Path) -> None:
    trace, account = recorded_while_running(tmp_path / "attached.trace", "--vcpus", "2")
    rows = touched(trace, account["first_gfn"])
    assert rows["gfn"].n_unique() == 4099
    assert rows.group_by("vcpu").len().sort("vcpu").rows() == [(0, 2050), (1, 2049)]


def test_attaching_to_a_running_vm_finds_its_memslots(tmp_path: Path) -> None:
    hints = ("--enlightened", "port", "--hint", "discard", "--hint-batch", "64", "--hint-lead", "-1")
    trace, account = recorded_while_running(tmp_path / "attached.trace", *hints)
    first = account["first_gfn"]
    assert trace.memslots["known_by"].unique().to_list() == ["btf"]
    # What the guest hints its VMM discards, 64 pages a call, by an address: only memslots make that a gfn.
    taken = trace.events.filter(pl.col("kind") == "free_page_report").collect()
    assert taken["gfn"].to_list() == [first + 64 * batch for batch in range(4099 // 64)]
    assert taken["pages"].unique().to_list() == [64]


def test_a_signal_finalises_and_the_command_does_not_outlive_it(tmp_path: Path) -> None:
    path, pid_file = tmp_path / "stopped.trace", tmp_path / "pid"
    recorder = subprocess.Popen(
        [*TRACEKIT, "record", "-o", str(path), "--", "sh", "-c", f"echo $$ > {pid_file}; exec sleep 60"]
    )
    with ended(recorder):
        wait_for(lambda: pid_file.read_text().strip() != "")
        recorder.send_signal(signal.SIGTERM)
        assert recorder.wait(timeout=30) == 0
    trace = open_trace(path)
    assert trace.meta.finalised
    assert trace.meta.command[:2] == ["sh", "-c"]
    assert not Path(f"/proc/{pid_file.read_text().strip()}").exists()


def test_the_duration_ends_the_command_and_is_no_failure(tmp_path: Path) -> None:
    _, report = record_command(tmp_path / "timed.trace", "sleep", "60", seconds=0.7)
    assert report.stopped_by == "time"
    assert 0.7 <= report.seconds < 10


def test_recorded_and_lost_are_exactly_what_happened(tmp_path: Path) -> None:
    """A ring of one page, and a reader that stands still while the guest runs."""
    pages, path = 65_537, tmp_path / "lossy.trace"
    guest = [*GUEST, "--pages", str(pages), "--wait"]
    command = ["sh", "-c", f'exec "$@" < {tmp_path}/go > {tmp_path}/account 2> {tmp_path}/said', "sh", *guest]
    os.mkfifo(tmp_path / "go")
    recorder = subprocess.Popen(
        [*TRACEKIT, "record", "--buffer", "4096", "--fail-on-loss", "-o", str(path), "--", *command],
        stderr=subprocess.PIPE,
        text=True,
    )
    with ended(recorder):
        with (tmp_path / "go").open("w") as go:  # opens when the guest does
            wait_for(lambda: "ready" in (tmp_path / "said").read_text())
            recorder.send_signal(signal.SIGSTOP)
            go.write("\n")
            go.flush()
            wait_for(lambda: (tmp_path / "account").read_text().endswith("}\n"))
        recorder.send_signal(signal.SIGCONT)
        _, said = recorder.communicate(timeout=60)
    account = json.loads((tmp_path / "account").read_text())
    trace = open_trace(path)
    rows = faults(trace)
    losses = trace.losses.filter(pl.col("reason") == "ring_full: ept_violation")
    lost = losses["lost"].sum()
    assert lost > pages // 2
    # What happened is KVM's own count of the entries it mapped.
    assert rows.height + lost == account["kvm_counters"]["pages_4k"] == pages + 1
    assert recorder.returncode == 3
    assert "ring_full: ept_violation" in said
    assert trace.lost is not None
    assert trace.lost >= lost
    phase = account["vcpus"][0]["phases"]["touch"]
    assert losses["t0_ns"].min() <= phase["start_ns"] + phase["elapsed_ns"]
    assert losses["t1_ns"].max() >= phase["start_ns"]
    assert trace.meta.finalised


def test_a_second_signal_makes_no_loss_silent(tmp_path: Path) -> None:
    """What nobody had read yet when the second signal came: full ring and counters of what found no room."""
    path, counter = tmp_path / "twice.trace", tmp_path / "counter"
    recorder = start_recorder(path, "--buffer", "64K", "--", *command(counter, 10_007))
    with ended(recorder):
        wait_for(lambda: emitted(counter)[1] > 0)
        recorder.send_signal(signal.SIGSTOP)
        wait_for(lambda: emitted(counter)[1] == 10_007)
        recorder.send_signal(signal.SIGINT)
        recorder.send_signal(signal.SIGTERM)
        recorder.send_signal(signal.SIGCONT)
        assert f"stopped at once: tracekit recover {path}" in finished(recorder, 130)
    report = recover(path)
    found = account(open_trace(path), counter)
    assert found.stored < found.emitted == 10_007
    assert found.honest
    assert report.lost is None
    assert not report.whole


def test_a_killed_command_gives_the_shells_exit_code(tmp_path: Path) -> None:
    plan = RecordPlan(out=tmp_path / "killed.trace", command=("sh", "-c", "kill -KILL $$"))
    assert record(plan).exit_code == 137


def test_a_user_without_capabilities_is_told_what_to_do_and_nothing_is_started(tmp_path: Path) -> None:
    path, started = tmp_path / "no.trace", tmp_path / "started"
    powerless = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    command = [*TRACEKIT, "record", "-o", str(path), "--", "touch", str(started)]
    done = subprocess.run([*powerless, *command], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 5
    assert "sudo" in done.stderr
    assert not path.exists()
    assert not started.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--", "no-such-program"), "no-such-program"),
        (("-p", "4194304"), "4194304"),
        (("-p", "1", "--monitor", "/nowhere/qmp"), "no monitor socket /nowhere/qmp"),
    ],
)
def test_bad_input_is_a_usage_error_and_leaves_no_trace(
    tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    done = run_record("-o", str(tmp_path / "no.trace"), *arguments, expect=2)
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_trace_is_replaced_only_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "kept.trace"
    path.mkdir()
    (path / "meta.json").write_text("precious")
    done = run_record("-o", str(path), "--", "true", expect=2)
    assert "-f" in done.stderr
    assert (path / "meta.json").read_text() == "precious"
