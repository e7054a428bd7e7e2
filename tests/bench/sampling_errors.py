"""How wrong a sampled recording is: saved faults, stall and resident memory against the whole trace.

    python tests/bench/sampling_errors.py [SEEDS]

prints the tables of docs/fleet.md: samples of 2 MiB blocks (`tracekit compact --sample`) and duty cycles
(record D seconds every T seconds), for the bundled real traces and synthetic ones of about 0.1 M events. An
error is the root mean square over seeds (of the hash, or of when the first cycle begins) of what is said to
be saved minus what the whole trace says, in % of the whole trace's *baseline*.
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from tracekit.datasets.catalog import DATA
from tracekit.datasets.synthetic import GENERATORS
from tracekit.datasets.synthetic.make import make_trace
from tracekit.errors import TracekitError
from tracekit.replay import run
from tracekit.replay.sampled import Sample
from tracekit.trace import MemslotMap, Meta, Trace, open_trace
from tracekit.trace.sampling import Sampler

SCENARIOS = ("hugepages,size=2m", "prealloc,via=pre_fault", "cold_hint,policy=oracle")
METRICS = ("faults", "stall", "resident_mean")
RATES = (0.5, 0.2, 0.05)
CYCLES = 4
PHASES = 3
TRACES: dict[str, dict[str, int]] = {
    "small-guest-zero-then-use": {},
    "balloon-storm": {"events": 100_000},
    "linux-balloon-reporting": {},
    "boot-windows": {"events": 100_000},
    "limit-zram": {},
    "swap-thrash": {"events": 40_000, "pages": 30_000, "limit": 15_000},
    "linux-boot": {},
}
"""Bundled traces, and generators with their parameters."""

Saved = dict[tuple[str, str], tuple[float, float]]


def saved(trace: Trace | Part) -> tuple[Saved, float]:
    """Return (baseline, saved) by scenario and metric, and the spread that a sample states (else 0)."""
    result = run(trace, SCENARIOS)
    rows = {(r["scenario"], r["metric"]): (r["baseline"], r["saved"]) for r in result.records()}
    spread = result.about.get("sampling", {}).get("spread", 0.0)
    return {key: value for key, value in rows.items() if key[1] in METRICS}, spread


@dataclass(frozen=True)
class Part:
    """A part of a trace in memory, as replays read it."""

    meta: Meta
    memslots: pl.DataFrame
    losses: pl.DataFrame
    held: list[pa.RecordBatch]
    lost: int | None = 0

    def batches(
        self, columns: list[str] | None = None, batch_rows: int = 1 << 20
    ) -> Iterator[pa.RecordBatch]:
        yield from (batch.select(columns) if columns else batch for batch in self.held)


def sample(trace: Trace, rate: float, seed: int) -> Part:
    """Return what `tracekit compact --sample` keeps."""
    sampler = Sampler(rate, seed, MemslotMap(trace.memslots))
    held = [sampler.thin(batch) for batch in trace.batches()]
    return Part(replace(trace.meta, sampling=sampler.facts()), trace.memslots, trace.losses, held)


def window(trace: Trace, begin: int, end: int) -> Part:
    """Return what a recording of a running VM from `begin` to `end` holds."""
    held = []
    for batch in trace.batches():
        ts = batch.column("ts_ns")
        held.append(batch.filter(pc.and_(pc.greater_equal(ts, begin), pc.less(ts, end))))
    meta = replace(trace.meta, filters={"pids": [1]}, start_ns=begin, stop_ns=end)
    return Part(meta, trace.memslots, trace.losses, held)


def cycles(trace: Trace, share: float, phase: float) -> Saved:
    """Record a `share` of each of CYCLES periods, `phase` (0..1) into each, and add up what is saved."""
    start = int(trace.meta.start_ns or 0)
    period = trace.span_ns / CYCLES
    sums: dict[tuple[str, str], list[float]] = {}
    for k in range(CYCLES):
        begin = start + (k + phase * (1 - share)) * period
        part = window(trace, int(begin), int(begin + share * period))
        if not any(batch.num_rows for batch in part.held):
            continue
        for key, (base, spared) in saved(part)[0].items():
            weight = 1 / CYCLES if key[1] == "resident_mean" else 1 / share
            total = sums.setdefault(key, [0.0, 0.0])
            total[0] += base * weight
            total[1] += spared * weight
    return {key: (one[0], one[1]) for key, one in sums.items()}


def traces(folder: Path) -> Iterator[tuple[str, Trace]]:
    for name, parameters in TRACES.items():
        if parameters:
            make_trace(GENERATORS[name](**parameters), folder / f"{name}.trace")
            yield f"{name} (synthetic)", open_trace(folder / f"{name}.trace")
        else:
            yield name, open_trace(DATA / f"{name}.trace")


def errors(
    whole: Saved, estimates: list[Saved], spreads: list[float] | None
) -> list[tuple[str, float, float, float, float]]:
    """Return scenario and metric, saved share, bias, RMS error, share of seeds within two stated errors."""
    lines = []
    for key, (base, truth) in whole.items():
        if not base or not truth:
            continue
        off = np.array([one.get(key, (0.0, 0.0))[1] - truth for one in estimates]) / base
        inside = math.nan
        if spreads is not None:
            part = [one.get(key, (0.0, 0.0)) for one in estimates]
            bound = [
                2 * stated(key[1], b, s, spread) / base for (b, s), spread in zip(part, spreads, strict=True)
            ]
            inside = float(np.mean(np.abs(off) <= np.array(bound) + 0.005))
        rms = float(np.sqrt(np.mean(off**2)))
        lines.append((f"{key[0]}: {key[1]}", truth / base, float(off.mean()), rms, inside))
    return lines


def stated(metric: str, base: float, spared: float, spread: float) -> float:
    return Sample(0.5, 1, 1, 1, 1, spread).standard_error(metric, base, spared)


def show(title: str, whole: Saved, make: Callable[[int], tuple[Saved, float]], seeds: int) -> None:
    found = []
    for seed in range(seeds):
        try:
            found.append(make(seed))
        except TracekitError as error:
            print(f"{title}: seed {seed}: {error.message}", flush=True)
    if not found:
        return
    spreads = [one[1] for one in found]
    for name, share, bias, rms, inside in errors(whole, [one[0] for one in found], spreads):
        print(
            f"| {title} | {name} | {share:.1%} | {bias:+.1%} | {rms:.1%} | {inside:.0%}"
            f" | {np.mean(spreads):.3f} |",
            flush=True,
        )


def main(seeds: int) -> None:
    print("| trace, sample | saved | of baseline | bias | RMS error | within 2 stated s.e. | spread |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name, trace in traces(folder):
            whole, _ = saved(trace)
            for rate in RATES:

                def sampled(seed: int, trace: Trace = trace, rate: float = rate) -> tuple[Saved, float]:
                    return saved(sample(trace, rate, seed))

                show(f"{name}, blocks {rate:g}", whole, sampled, seeds)
            for rate in RATES[1:]:

                def cycled(seed: int, trace: Trace = trace, rate: float = rate) -> tuple[Saved, float]:
                    return cycles(trace, rate, (seed + 0.5) / PHASES), 0.0

                show(f"{name}, time {rate:g}", whole, cycled, PHASES)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 8)
