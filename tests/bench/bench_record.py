"""What recording costs: the traced task against `perf record`, the user side per event, losses at full rate.

Run with `make bench`. Workloads are interleaved and medians compared, because hosts are noisy; absolute
times are those of the host, ratios are what to look at.
"""

from __future__ import annotations

import contextlib
import json
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
import polars as pl
import pytest

from tracekit.probes import decode
from tracekit.probes.plan import RecordPlan
from tracekit.probes.ring import MOST_RECORDS
from tracekit.probes.run import record
from tracekit.probes.wire import RECORD, RECORD_BYTES, VALID
from tracekit.trace import Meta, TraceWriter, open_trace
from tracekit.trace.loops import plain as by_numpy
from tracekit.trace.loops import quicken
from tracekit.trace.schema import KIND_CODE

PAGES = 50_021  # a prime
ROUNDS = 3

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
for _ in range(9):
    m.madvise(mmap.MADV_DONTNEED)
    times.append(touch())
json.dump(times, sys.stdout)
"""


GUEST = [sys.executable, "-m", "tracekit", "lab", "guest", "--json", "--pages", str(PAGES)]


def ns_per_fault(out: Path) -> float:
    """The least disturbed pass: a neighbour's load on caches and memory only ever adds."""
    told = json.loads(out.read_text())
    if isinstance(told, list):
        return float(min(told)) / PAGES
    phase = told["vcpus"][0]["phases"]["touch"]
    return float(phase["cpu_ns"]) / phase["touches"]


def plain(folder: Path, command: list[str]) -> float:
    out = folder / "account.json"
    subprocess.run(["sh", "-c", f'exec "$@" > {out}', "sh", *command], check=True)
    return ns_per_fault(out)


def recorded(folder: Path, command: list[str]) -> float:
    out = folder / "account.json"
    traced = ("sh", "-c", f'exec "$@" > {out}', "sh", *command)
    report = record(RecordPlan(out=folder / "x.trace", command=traced, force=True))
    assert report.lost == 0
    assert max(report.kinds.values()) >= PAGES
    return ns_per_fault(out)


def perf_recorded(folder: Path, command: list[str], events: tuple[str, ...]) -> float:
    out = folder / "account.json"
    perf = ["perf", "record", "-q", "-m", "8M", "-c", "1", "-d", "-o", str(folder / "perf.data")]
    for event in events:
        perf += ["-e", event]
    done = subprocess.run(
        [*perf, "--", "sh", "-c", f'exec "$@" > {out}', "sh", *command],
        check=True,
        capture_output=True,
        text=True,
    )
    assert "lost" not in done.stderr.lower(), done.stderr
    return ns_per_fault(out)


# What perf must record to know the same: the start and the end of a fault, its address, what was mapped.
WORKLOADS = {
    "host_fault": (
        [sys.executable, "-c", FAULTS],
        ("exceptions:page_fault_user", "minor-faults"),
    ),
    "ept_violation": (
        GUEST,
        ("kvmmmu:kvm_mmu_pagetable_walk", "kvmmmu:kvm_mmu_spte_requested", "kvmmmu:kvm_mmu_set_spte"),
    ),
}


@pytest.mark.skipif(shutil.which("perf") is None, reason="perf is not installed")
@pytest.mark.parametrize("kind", WORKLOADS)
def test_added_cost_per_event_against_perf_record(benchmark, tmp_path: Path, kind: str) -> None:
    command, events = WORKLOADS[kind]

    def rounds() -> dict[str, list[float]]:
        found: dict[str, list[float]] = {"plain": [], "tracekit": [], "perf": []}
        for _ in range(ROUNDS):
            found["plain"].append(plain(tmp_path, command))
            found["tracekit"].append(recorded(tmp_path, command))
            found["perf"].append(perf_recorded(tmp_path, command, events))
        return found

    found = benchmark.pedantic(rounds, rounds=1)
    plain_ns, own_ns, perf_ns = (statistics.median(found[name]) for name in ("plain", "tracekit", "perf"))
    benchmark.extra_info.update(
        **{f"{name}_ns": [round(value) for value in values] for name, values in found.items()},
        plain_ns_per_fault=plain_ns,
        tracekit_added_ns=own_ns - plain_ns,
        perf_added_ns=perf_ns - plain_ns,
        ratio=(own_ns - plain_ns) / (perf_ns - plain_ns),
    )


def first_touches(rows: int) -> np.ndarray:
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


def four_vcpus(rows: int) -> np.ndarray:
    """Records of four vCPUs at once, each in memory of its own; 15 % are host faults, 5 % unmaps.

    Their order in the ring is that of time, but for one of a hundred, which another CPU's has overtaken.
    """
    rng = np.random.default_rng(2)
    out = first_touches(rows)
    cpu = rng.integers(0, 4, rows)
    for vcpu in range(4):
        mine = np.flatnonzero(cpu == vcpu)
        out["gfn"][mine] = (vcpu << 20) + 512 + np.arange(len(mine))
    out["gva"] = out["gfn"] * 4096
    out["tid"], out["vcpu"] = 4711 + cpu, cpu
    out["ts_ns"] = np.cumsum(rng.lognormal(6.6, 0.5, rows).astype(np.uint64)) + np.uint64(10**12)
    what = rng.random(rows)
    for kind, mine, named in (
        ("host_fault", what < 0.15, ("hva", "vcpu", "latency_ns", "rip", "arg")),
        ("unmap", what > 0.95, ("hva",)),
    ):
        out["kind"][mine] = KIND_CODE[kind]
        out["valid"][mine] = sum(VALID[name] for name in named)
        out["hva"][mine] = 0x7F0000000000 + out["gfn"][mine] * 4096
        out["rip"][mine] = 0x55D0C0DE1234 if "rip" in named else 0
        for name in {"gfn", "gva", "level", "vcpu", "latency_ns", "arg"} - {*named}:
            out[name][mine] = 0
    overtaken = np.flatnonzero(rng.random(rows - 1) < 0.01)
    overtaken = overtaken[np.diff(overtaken, prepend=-2) > 1]
    out[overtaken], out[overtaken + 1] = out[overtaken + 1], out[overtaken]
    return out


Mix: TypeAlias = Callable[[int], np.ndarray]


@pytest.mark.parametrize("form", ["machine code", "numpy"])
@pytest.mark.parametrize("mix", [first_touches, four_vcpus])
def test_user_side_per_event(benchmark, tmp_path: Path, mix: Mix, form: str) -> None:
    """From records as they lie in the ring to a synced trace; a recording begins with numpy."""
    rows, batch = 1_000_000, MOST_RECORDS
    records = mix(rows).view(np.uint8)
    decode_s = 0.0
    assert quicken(build_first=True)

    def carry() -> None:
        nonlocal decode_s
        decode_s = 0.0
        with TraceWriter(tmp_path / "user.trace", Meta(), force=True) as writer:
            for first in range(0, rows, batch):
                start = time.process_time()
                taken = records[first * RECORD.itemsize : (first + batch) * RECORD.itemsize]  # as in the ring
                made = decode.to_batch(decode.columns(taken.view(RECORD), "shadow"))
                decode_s += time.process_time() - start
                writer.append(made)

    with by_numpy() if form == "numpy" else contextlib.nullcontext():
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


# One process that makes RATE events a second for SECONDS: each call advises on 64 ranges of its own memory.
STORM = """
import ctypes, mmap, os, sys, time
libc = ctypes.CDLL(None)
calls, rate = int(sys.argv[1]), float(sys.argv[2])
m = mmap.mmap(-1, 64 * 8192)
at = ctypes.addressof(ctypes.c_char.from_buffer(m))
ranges = (ctypes.c_uint64 * 128)(*[word for i in range(64) for word in (at + 8192 * i, 4096)])
me = os.pidfd_open(os.getpid())
begin = time.monotonic()
for call in range(calls):
    if not call % 16:
        while time.monotonic() < begin + call * 64 / rate: time.sleep(0.0005)
    done = libc.syscall(440, me, ranges, 64, 20, 0)
    assert done == 64 * 4096, done
spent = time.monotonic() - begin
time.sleep(1)  # the recorder resolves the pidfd while it is there
print(calls * 64, spent)
"""
RATE, SECONDS = 400_000, 30


def test_full_rate_for_long_without_a_loss(benchmark, tmp_path: Path) -> None:
    """400,000 events a second for 30 s with default buffers, and the recorder's memory while it lasts."""
    path, said = tmp_path / "rate.trace", tmp_path / "said"
    calls = RATE * SECONDS // 64
    storm = [sys.executable, "-c", STORM, str(calls), str(RATE)]
    command = [sys.executable, "-m", "tracekit", "record", "--quiet", "-o", str(path), "--"]
    peaks: dict[float, float] = {}

    def run() -> None:
        recorder = subprocess.Popen([*command, "sh", "-c", f'exec "$@" > {said}', "sh", *storm])
        start = time.monotonic()
        while recorder.poll() is None:
            with contextlib.suppress(OSError, StopIteration):
                status = Path(f"/proc/{recorder.pid}/status").read_text().splitlines()
                peak = next(line for line in status if line.startswith("VmHWM"))
                peaks[time.monotonic() - start] = int(peak.split()[1]) / 1024
            time.sleep(0.2)
        assert recorder.returncode == 0

    benchmark.pedantic(run, rounds=1)
    trace = open_trace(path)
    emitted, spent = said.read_text().split()
    rows = trace.events.filter(pl.col("kind") == "process_madvise").select(pl.len()).collect().item()
    size = sum(part.stat().st_size for part in (path / "events").iterdir())
    cost = trace.meta.extra["cost"]
    benchmark.extra_info.update(
        emitted=int(emitted),
        recorded=rows,
        lost=trace.lost,
        events_per_second=int(emitted) / float(spent),
        bytes_per_event=size / rows,
        recorder_cpu_s=cost["recorder_cpu_s"],
        program_ns_per_row=cost["probes"]["reclaim"]["ns_per_row"],
        peak_rss_mb_at_5_s=next(mb for at, mb in peaks.items() if at >= 5),
        peak_rss_mb=max(peaks.values()),
    )
    assert rows + (trace.lost or 0) == int(emitted)
