"""The recorder beside other tracers of the same events: neither takes anything from the other."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.live.recording import GUEST, TRACEKIT, of_kind, record_command, wait_for
from tracekit.trace import open_trace

pytestmark = [
    pytest.mark.live("kvm", "bpf", "root"),
    pytest.mark.skipif(shutil.which("perf") is None, reason="perf is not installed"),
]

PAGES = 1009  # a prime


def perf_samples(folder: Path, event: str, *command: str) -> int:
    """How many samples of one event perf takes of a command, on whichever CPUs it runs."""
    data = str(folder / "perf.data")
    arguments = ["perf", "record", "-q", "-e", event, "-c", "1", "-m", "1M", "-o", data, "--", *command]
    subprocess.run(arguments, check=True, capture_output=True, timeout=60)
    said = subprocess.run(
        ["perf", "script", "-i", data, "-F", "event"], check=True, capture_output=True, text=True
    )
    return len(re.findall(event, said.stdout))


FAULTS = f"""
import mmap
m = mmap.mmap(-1, {PAGES} * 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
m.madvise(mmap.MADV_NOHUGEPAGE)
for i in range({PAGES}): m[i * 4096] = 1
"""
CALLS = f"""
import mmap
m = mmap.mmap(-1, 4096)
for i in range({PAGES}): m.madvise(mmap.MADV_WILLNEED)
"""


@pytest.mark.parametrize(
    ("event", "command"),
    [
        ("exceptions:page_fault_user", (sys.executable, "-c", FAULTS)),  # raw
        ("kvmmmu:kvm_mmu_set_spte", (*GUEST, "--pages", str(PAGES))),  # raw
        ("syscalls:sys_enter_madvise", (sys.executable, "-c", CALLS)),  # ordinary
        ("sched:sched_process_exit", ("true",)),  # ordinary
    ],
)
def test_perf_sees_every_event_while_a_recording_runs(
    tmp_path: Path, event: str, command: tuple[str, ...]
) -> None:
    least = 1 if event.startswith("sched:") else PAGES
    path = tmp_path / "beside.trace"
    recorder = subprocess.Popen([*TRACEKIT, "record", "--quiet", "-o", str(path), "--", "sleep", "60"])
    try:
        wait_for((path / "meta.json").exists)
        assert perf_samples(tmp_path, event, *command) >= least
    finally:
        recorder.terminate()
        recorder.wait(timeout=30)
    assert open_trace(path).meta.finalised


def test_a_recording_sees_every_event_while_perf_records_it(tmp_path: Path) -> None:
    data = str(tmp_path / "perf.data")
    events = ["-e", "kvmmmu:kvm_mmu_set_spte", "-e", "exceptions:page_fault_user"]
    perf = ["perf", "record", "-q", *events, "-c", "1", "-m", "1M", "-o", data, "--"]
    trace, _ = record_command(tmp_path / "x.trace", *perf, *GUEST, "--pages", str(PAGES))
    assert of_kind(trace, "ept_violation")["gfn"].n_unique() >= PAGES
