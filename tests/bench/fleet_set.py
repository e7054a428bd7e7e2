"""Makes the trace set of the fleet benchmarks: `python tests/bench/fleet_set.py FOLDER FIRST TRACES`.

Trace i has seed i, so no two hold the same rows, and about 10 M events (10.0 to 11.0 M). The classes of VMs
take turns, so that 5, 10 or 100 traces have the same mix. A trace that is there already is kept.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tracekit.datasets.synthetic import GENERATORS
from tracekit.datasets.synthetic.make import make_trace
from tracekit.trace.folder import is_trace

CLASSES: dict[str, dict[str, int]] = {
    "boot-linux": {"events": 10_000_000},
    "working-set": {"events": 10_000_000, "pages": 1_000_000},
    "swap-thrash": {"events": 3_850_000, "pages": 1_000_000, "limit": 500_000},
    "balloon-storm": {"events": 10_000_000},
    "boot-windows": {"events": 10_000_000},
}
"""Generators and their parameters; `events` of swap-thrash are faults, each with a swap-in and a swap-out."""


def make_set(folder: Path, first: int, traces: int, *, share: float = 1.0) -> list[Path]:
    """Make traces `first` to `first + traces - 1`; `share` makes each (and its VM) smaller."""
    made = []
    for seed in range(first, first + traces):
        name = list(CLASSES)[seed % len(CLASSES)]
        path = folder / name / f"{seed:03d}.trace"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not is_trace(path):
            scaled = {key: round(value * share) for key, value in CLASSES[name].items()}
            make_trace(GENERATORS[name](seed=seed, **scaled), path)
        made.append(path)
    return made


if __name__ == "__main__":
    for trace in make_set(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])):
        print(trace)
