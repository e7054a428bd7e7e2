"""What recording costs: the traced task against `perf record`, the user side per event, losses at full rate.

Run with `make bench`. Workloads are interleaved and medians compared, because hosts are noisy; absolute
times are those of the host, ratios are what to look at.
"""

from __future__ import annotations

import json
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tracekit.probes import decode
from tracekit.probes.plan import RecordPlan
from tracekit.probes.ring import MOST_RECORDS
from tracekit.probes.run import record
from tracekit.probes.wire import RECORD, RECORD_BYTES, VALID
from tracekit.trace import Meta, TraceWriter, open_trace
from tracekit.trace.schema import KIND_CODE

PAGES = 50_021  # a prime
ROUNDS = 2

# A VMM thread that touches its memory again and again: each fault is one event, and the loop times itself.
FAULTS = f"""
import json, mmap, sys, time
m = mmap.mmap(-1, {PAGES} * 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
m.madvise(mmap.MADV_NOHUGEPAGE)
def touch():
    start = time.thread_time_ns()  # CPU time: what else runs on the host does not count
    for i in range(0, {PAGES} * 4096, 4096): m[i] = 1
    return time.thread_time_ns() - start
touch()  # the host below backs the memory once
times = []
for _ in range(5):
    m.madvise(mmap.MADV_DONTNEED)
    times.append(touch())
json.dump(times, open(sys.argv[1], "w"))
"""


def ns_per_fault(out: Path) -> float:
    return float(statistics.median(json.loads(out.read_text()))) / PAGES


def plain(folder: Path) -> float:
    out = folder / "plain.json"
    subprocess.run([sys.executable, "-c", FAULTS, str(out)], check=True)
    return ns_per_fault(out)


def recorded(folder: Path) -> float:
    out = folder / "recorded.json"
    command = (sys.executable, "-c", FAULTS, str(out))
    assert record(RecordPlan(out=folder / "x.trace", command=command, force=True)).lost == 0
    return ns_per_fault(out)


def perf_recorded(folder: Path) -> float:
    """The same two points in time (start and end of each fault) with the same fields."""
    out = folder / "perf.json"
    events = ["-e", "exceptions:page_fault_user", "-e", "minor-faults", "-c", "1", "-d"]
    command = ["perf", "record", "-q", "-m", "8M", *events, "-o", str(folder / "perf.data")]
    command += [sys.executable, "-c", FAULTS, str(out)]
    subprocess.run(command, check=True, capture_output=True)
    return ns_per_fault(out)


@pytest.mark.skipif(shutil.which("perf") is None, reason="perf is not installed")
def test_added_cost_per_event_against_perf_record(benchmark, tmp_path: Path) -> None:
    def rounds() -> dict[str, list[float]]:
        found: dict[str, list[float]] = {"plain": [], "tracekit": [], "perf": []}
        for _ in range(ROUNDS):
            found["plain"].append(plain(tmp_path))
            found["tracekit"].append(recorded(tmp_path))
            found["perf"].append(perf_recorded(tmp_path))
        return found

    found = benchmark.pedantic(rounds, rounds=1)
    plain_ns, own_ns, perf_ns = (statistics.median(found[name]) for name in ("plain", "tracekit", "perf"))
    benchmark.extra_info.update(
        plain_ns_per_fault=plain_ns,
        tracekit_added_ns=own_ns - plain_ns,
        perf_added_ns=perf_ns - plain_ns,
        ratio=(own_ns - plain_ns) / (perf_ns - plain_ns),
    )


def made_up_records(rows: int) -> np.ndarray:
    """Records as a guest's sequential first touches leave them in the ring (made up)."""
    rng = np.random.default_rng(1)
    out = np.zeros(rows, RECORD)
    out["length"] = RECORD_BYTES
    out["latency_ns"] = rng.lognormal(8.0, 0.4, rows)
    out["ts_ns"] = np.cumsum(out["latency_ns"] + 200) + np.uint64(10**12)
    out["gfn"] = 512 + np.arange(rows)
    out["gva"] = out["gfn"] * 4096
    out["tid"], out["vcpu"], out["level"], out["pages"], out["arg"] = 4711, 0, 1, 1, 6
    out["kind"] = KIND_CODE["ept_violation"]
    out["valid"] = sum(VALID[name] for name in ("gfn", "gva", "vcpu", "level", "latency_ns", "arg"))
    return out


def test_user_side_per_event(benchmark, tmp_path: Path) -> None:
    rows, batch = 1_000_000, MOST_RECORDS
    records = made_up_records(rows).view(np.uint8)
    decode_s = 0.0

    def carry() -> None:
        nonlocal decode_s
        decode_s = 0.0
        with TraceWriter(tmp_path / "user.trace", Meta(), force=True) as writer:
            for first in range(0, rows, batch):
                start = time.process_time()
                taken = records[first * RECORD.itemsize : (first + batch) * RECORD.itemsize].copy()
                made = decode.to_batch(decode.columns(taken.view(RECORD), "shadow"))
                decode_s += time.process_time() - start
                writer.append(made)

    before = resource.getrusage(resource.RUSAGE_SELF)
    benchmark.pedantic(carry, rounds=3, warmup_rounds=1)
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / 4
    size = sum(part.stat().st_size for part in (tmp_path / "user.trace" / "events").iterdir())
    benchmark.extra_info.update(
        cpu_ns_per_event=cpu_s * 1e9 / rows,
        decode_ns_per_event=decode_s * 1e9 / rows,
        bytes_per_event=size / rows,
    )


# Cheap system calls from two threads: as many events a second as the host can make.
CALLS = """
import ctypes, mmap, threading, time, sys
libc = ctypes.CDLL(None)
m = mmap.mmap(-1, 1 << 20)
at = ctypes.addressof(ctypes.c_char.from_buffer(m))
COUNT, PACE = int(sys.argv[1]), float(sys.argv[2])
def run():
    begin = time.perf_counter()
    for done in range(COUNT):
        libc.madvise(ctypes.c_void_p(at), 4096, 3)
run()
"""


def test_full_rate_without_a_loss(benchmark, tmp_path: Path) -> None:
    """As many events a second as one thread's madvise calls can make, for some seconds, with defaults."""
    calls = 1_000_003
    path = tmp_path / "rate.trace"

    def run() -> None:
        command = (sys.executable, "-c", CALLS, str(calls), "0")
        report = record(RecordPlan(out=path, command=command, force=True))
        assert report.lost == 0
        assert report.kinds["madvise"] >= calls

    benchmark.pedantic(run, rounds=1)
    trace = open_trace(path)
    times = trace.events.filter(pl.col("kind") == "madvise").select("ts_ns").collect()["ts_ns"]
    span_s = (times.max() - times.min()) / 1e9  # type: ignore[operator]
    size = sum(part.stat().st_size for part in (path / "events").iterdir())
    benchmark.extra_info.update(
        events_per_second=calls / span_s,
        lost=trace.lost,
        bytes_per_event=size / calls,
        recorder_cpu_s=trace.meta.extra["cost"]["recorder_cpu_s"],
        peak_rss_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    )
