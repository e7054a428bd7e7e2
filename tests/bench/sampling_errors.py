"""How wrong a sampled recording is: saved faults, stall and resident memory against the whole trace.

    python tests/bench/sampling_errors.py [SEEDS]

prints the tables of docs/fleet.md: samples of 2 MiB blocks (`tracekit compact --sample`) and duty cycles
(record D seconds every T seconds), for the bundled real traces and synthetic ones of about 0.3 M events. An
error is the root mean square over seeds (of the hash, or of when the first cycle begins) of what is said to
be saved minus what the whole trace says, in % of the whole trace's *baseline*.
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from tracekit.datasets.catalog import DATA
from tracekit.datasets.synthetic import GENERATORS
from tracekit.datasets.synthetic.make import make_trace
from tracekit.errors import TracekitError
from tracekit.replay import run
from tracekit.replay.sampled import Sample
from tracekit.trace import Meta, Trace, TraceWriter, compact, open_trace

SCENARIOS = ("zeroing", "hugepages,size=2m", "cold_hint,policy=oracle")
METRICS = ("faults", "stall", "resident_mean")
RATES = (0.5, 0.2, 0.05)
CYCLES = 5
REAL = ("small-guest-zero-then-use", "linux-boot", "linux-balloon-reporting", "limit-zram")
MADE = {
    "boot-linux": {"events": 300_000},
    "boot-windows": {"events": 300_000},
    "swap-thrash": {"events": 115_000, "pages": 80_000, "limit": 40_000},
    "balloon-storm": {"events": 300_000},
}

Saved = dict[tuple[str, str], tuple[float, float]]


def saved(trace: Trace) -> tuple[Saved, float]:
    """Return (baseline, saved) by scenario and metric, and the spread that a sample states (else 0)."""
    result = run(trace, SCENARIOS)
    rows = {(r["scenario"], r["metric"]): (r["baseline"], r["saved"]) for r in result.records()}
    spread = result.about.get("sampling", {}).get("spread", 0.0)
    return {key: value for key, value in rows.items() if key[1] in METRICS}, spread


def window(trace: Trace, path: Path, begin: int, end: int) -> Trace | None:
    """Write what a recording of a running VM from `begin` to `end` holds; None if that is nothing."""
    meta = Meta(
        source=trace.meta.source, vms=trace.meta.vms, host=trace.meta.host,
        filters={"pids": [1]}, start_ns=begin, stop_ns=end,
    )  # fmt: skip
    rows = 0
    with TraceWriter(path, meta, force=True) as writer:
        for slot in trace.memslots.iter_rows(named=True):
            writer.add_memslot(**{key: value for key, value in slot.items() if key != "to_ns"})
        for batch in trace.batches():
            ts = batch.column("ts_ns")
            inside = batch.filter(pc.and_(pc.greater_equal(ts, begin), pc.less(ts, end)))
            rows += inside.num_rows
            writer.append(inside)
    return open_trace(path) if rows else None


def cycles(trace: Trace, folder: Path, share: float, phase: float) -> Saved:
    """Record a `share` of each of CYCLES periods, `phase` (0..1) into each, and add up what is saved."""
    start = int(trace.meta.start_ns or 0)
    period = trace.span_ns / CYCLES
    sums: dict[tuple[str, str], list[float]] = {}
    for k in range(CYCLES):
        begin = start + (k + phase * (1 - share)) * period
        part = window(trace, folder / "window.trace", int(begin), int(begin + share * period))
        if part is None:
            continue
        for key, (base, spared) in saved(part)[0].items():
            weight = 1 / CYCLES if key[1] == "resident_mean" else 1 / share
            total = sums.setdefault(key, [0.0, 0.0])
            total[0] += base * weight
            total[1] += spared * weight
    return {key: (one[0], one[1]) for key, one in sums.items()}


def traces(folder: Path) -> Iterator[tuple[str, Trace]]:
    for name in REAL:
        yield name, open_trace(DATA / f"{name}.trace")
    for name, parameters in MADE.items():
        make_trace(GENERATORS[name](**parameters), folder / f"{name}.trace")
        yield f"{name} (synthetic)", open_trace(folder / f"{name}.trace")


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
            inside = float(np.mean(np.abs(off) <= np.array(bound) + 1e-9))
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
                    compact(trace.path, folder / "sample.trace", force=True, sample=rate, seed=seed)
                    return saved(open_trace(folder / "sample.trace"))

                show(f"{name}, blocks {rate:g}", whole, sampled, seeds)
            for rate in RATES[1:]:

                def cycled(seed: int, trace: Trace = trace, rate: float = rate) -> tuple[Saved, float]:
                    return cycles(trace, folder, rate, (seed + 0.5) / seeds), 0.0

                show(f"{name}, time {rate:g}", whole, cycled, min(seeds, 6))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
