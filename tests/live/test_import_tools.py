"""Recordings made here and now by perf and by ftrace through trace-cmd: every page of the guest is there."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from tracekit.datasets.importers import import_trace
from tracekit.errors import UsageError
from tracekit.trace import open_trace

PAGES = 499  # prime
EVENTS = ("kvm_mmu_pagetable_walk", "kvm_mmu_spte_requested", "kvm_mmu_set_spte")
GUEST = [sys.executable, "-m", "tracekit", "lab", "guest", "--pages", str(PAGES), "--order", "random"]
TRACEFS = Path("/sys/kernel/tracing")


def assert_all_pages_are_there(trace_path: Path) -> None:
    trace = open_trace(trace_path)
    assert trace.lost == 0
    mode = trace.meta.host.get("mmu_mode")
    if mode != "shadow":
        pytest.skip(f"these events tell shadow faults, and KVM here uses {mode}")
    faults = trace.events.filter(pl.col("kind") == "ept_violation", pl.col("gfn") >= 512).collect()
    assert sorted(faults["gfn"]) == list(range(512, 512 + PAGES))
    assert faults["latency_ns"].null_count() == 0


@pytest.mark.live("kvm", "root", "perf")
def test_what_perf_recorded_of_a_guest(tmp_path: Path) -> None:
    data = tmp_path / "perf.data"
    wanted = [word for event in EVENTS for word in ("-e", f"kvmmmu:{event}")]
    record = ["perf", "record", "-q", "-k", "CLOCK_MONOTONIC", "-m", "1024", "-o", str(data), *wanted, "--"]
    for _ in range(5):
        subprocess.run([*record, *GUEST], check=True, capture_output=True, timeout=60)
        # The kernel gives perf no sample of a tracepoint while any BPF program on it returns 0 (perf_trace_
        # run_bpf_submit): another recording on this host, at this moment, leaves an empty file.
        with contextlib.suppress(UsageError):
            report = import_trace(data, tmp_path / "x.trace")
            break
        time.sleep(2)
    assert report.format == "perf-data"
    assert report.bad_lines == 0
    assert_all_pages_are_there(tmp_path / "x.trace")


@contextlib.contextmanager
def ring_of_our_own(name: str) -> Iterator[Path]:
    instance = TRACEFS / "instances" / name
    instance.mkdir()
    try:
        (instance / "trace_clock").write_text("mono")
        (instance / "buffer_size_kb").write_text("4096")
        for event in EVENTS:
            (instance / "events" / "kvmmmu" / event / "enable").write_text("1")
        yield instance
    finally:
        if instance.exists():
            instance.rmdir()


@pytest.mark.live("kvm", "root", "trace-cmd")
def test_what_ftrace_recorded_of_a_guest_as_text_and_as_trace_dat(tmp_path: Path) -> None:
    name = f"tracekit-test-{os.getpid()}"
    with ring_of_our_own(name) as instance:
        (instance / "options" / "event-fork").write_text("1")
        start = f'echo $$ >{instance}/set_event_pid; exec "$@"'
        subprocess.run(["sh", "-c", start, "sh", *GUEST], check=True, capture_output=True, timeout=60)
        (instance / "tracing_on").write_text("0")
        (tmp_path / "ftrace.txt").write_bytes((instance / "trace").read_bytes())
        extract = ["trace-cmd", "extract", "-B", name, "-o", str(tmp_path / "trace.dat")]
        subprocess.run(extract, check=True, capture_output=True, timeout=60, cwd=tmp_path)
    for file, kind in (("ftrace.txt", "ftrace"), ("trace.dat", "trace-dat")):
        report = import_trace(tmp_path / file, tmp_path / f"{kind}.trace")
        assert report.format == kind
        assert_all_pages_are_there(tmp_path / f"{kind}.trace")
