"""Synthetic traces for the replay benchmarks: 16 vCPUs, one guest of 64 GiB; made once, kept in the temp dir.

All are SYNTHETIC: their rates say how fast the engine is, their savings say nothing about any guest.

- `mix`: each vCPU works through runs of 25 pages on average, a half of them in a hot eighth of memory; the
  vCPUs interleave event by event. By run: 80 % faults, the rest discards, allocations, frees, access samples.
- `rand`: the same kinds, every page equally likely: the worst case for every cache.
- `thp`: `mix`, in which one run of eight names a whole block of 2 MiB: a fault of level 2M or a discard.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tracekit.trace import Meta, Trace, TraceWriter, events_batch, open_trace
from tracekit.trace.schema import FLAG_MAJOR, FLAG_ZEROED, KIND_CODE, PAGE_BYTES

__all__ = ["SHAPES", "bench_trace"]

SHAPES: Final = ("mix", "rand", "thp")
PAGES: Final = 1 << 24
VCPUS: Final = 16
GAP_NS: Final = 5_344.0  # mean time between events: 32 M of them in 171 s
BATCH: Final = 1 << 20
BLOCK: Final = 512
RUN: Final = 25
START_NS: Final = 1_000_000_000
FAULT, DISCARD, ALLOC, FREE, ACCESS = (
    KIND_CODE[name] for name in ("ept_violation", "madvise", "page_alloc", "page_free", "access")
)
KINDS: Final = np.array([FAULT, DISCARD, ALLOC, FREE, ACCESS], np.uint8)
SHARES: Final = (0.80, 0.06, 0.05, 0.05, 0.04)


def bench_trace(shape: str, events: int, seed: int = 1) -> Trace:
    """Return the trace of that shape and length (events); it is written on first use."""
    path = Path(tempfile.gettempdir()) / "tracekit-bench" / f"{shape}-{events}-{seed}.trace"
    if not (path / "meta.json").exists() or not open_trace(path).meta.finalised:
        path.parent.mkdir(exist_ok=True)
        _write(path, shape, events, seed)
    return open_trace(path)


def _write(path: Path, shape: str, events: int, seed: int) -> None:
    meta = Meta(
        source="synthetic",
        start_ns=START_NS,
        vms=[{"vcpus": VCPUS, "page_bytes": PAGE_BYTES}],
        clock={"name": "synthetic"},
        notes=[f"synthetic: for benchmarks, {shape}"],
    )
    with TraceWriter(path, meta, force=True) as writer:
        writer.add_memslot(
            vm=0, slot=0, gpa=0, size_bytes=PAGES * PAGE_BYTES, hva=1 << 40, from_ns=0, known_by="synthetic"
        )
        for batch in _batches(shape, events, seed):
            writer.append(batch)


def _batches(shape: str, events: int, seed: int) -> Iterator[Any]:
    rng = np.random.default_rng([seed, SHAPES.index(shape)])
    now = START_NS
    for begin in range(0, events, BATCH):
        n = min(BATCH, events - begin)
        ts = now + np.cumsum(rng.exponential(GAP_NS, n)).astype(np.int64)
        now = int(ts[-1])
        vcpu = rng.integers(0, VCPUS, n).astype(np.int16)
        gfn, kind = np.empty(n, np.int64), np.empty(n, np.uint8)
        for lane in range(VCPUS):
            mine = np.flatnonzero(vcpu == lane)
            gfn[mine], kind[mine] = _uniform(rng, len(mine)) if shape == "rand" else _runs(rng, len(mine))
        level = np.ones(n, np.uint8)
        if shape == "thp":
            # One event for the block that the run lies in; a run is 25 events, so one event of about 200.
            whole = (rng.random(n) < 1 / 200) & np.isin(kind, (FAULT, DISCARD))
            gfn[whole] -= gfn[whole] % BLOCK
            level[whole] = 2
        is_fault = kind == FAULT
        major = is_fault & (rng.random(n) < 0.02)
        slow = rng.random(n) < 0.074
        latency = np.exp(rng.normal(np.where(slow | major, np.log(99_000), np.log(1_900)), 0.4, n))
        yield events_batch(
            ts_ns=ts,
            kind=kind,
            vcpu=vcpu,
            tid=1000 + vcpu.astype(np.uint32),
            gfn=gfn,
            pages=np.where(level == 2, BLOCK, 1),
            level=level,
            access=np.where(is_fault, np.where(rng.random(n) < 0.8, 2, 1), 0),
            flags=np.where(major, FLAG_MAJOR, np.where(kind == ALLOC, FLAG_ZEROED, 0)),
            latency_ns=latency.astype(np.int64),
            arg=np.where(kind == DISCARD, 4, 1),  # MADV_DONTNEED; accesses seen
            valid={"latency_ns": is_fault, "level": is_fault},
        )


def _uniform(rng: np.random.Generator, n: int) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    return rng.integers(0, PAGES, n), rng.choice(KINDS, n, p=SHARES)


def _runs(rng: np.random.Generator, n: int) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Return pages and kinds of one vCPU: run after run."""
    runs = n // RUN * 2 + 64
    length = rng.geometric(1 / RUN, runs)
    hot = rng.random(runs) < 0.5
    first = np.where(
        hot, (rng.beta(1, 4, runs) * PAGES / 8).astype(np.int64), rng.integers(0, PAGES - 1024, runs)
    )
    kind = rng.choice(KINDS, runs, p=SHARES)
    step = np.arange(int(length.sum())) - np.repeat(np.cumsum(length) - length, length)
    return (np.repeat(first, length) + step)[:n], np.repeat(kind, length)[:n]
