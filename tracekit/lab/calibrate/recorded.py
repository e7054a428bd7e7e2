"""Costs as a recorder sees them: what a trace's latencies hold of a fault, and what they leave out.

Replay sets prices beside recorded latencies, so these are taken from a recording, less the recorder's own
time as there: small guests touch fresh memory and memory populated ahead, twice each, and the trace says how
long their faults took.
"""

from __future__ import annotations

import json
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl

from tracekit.errors import FailedError
from tracekit.lab.calibrate.measure import Sample, Samples
from tracekit.lab.guest_plan import GuestPlan
from tracekit.lab.small_guest import SmallGuest
from tracekit.lab.validate.compared import TIMES
from tracekit.probes.plan import RecordPlan
from tracekit.probes.run import record
from tracekit.replay.own_time import own_time
from tracekit.trace import open_trace

__all__ = ["RECORDED", "measure_recorded"]

RECORDED: Final[dict[str, str]] = {
    "exit": "recorded small guest: time per fresh page, less the same touch when warm, less the latency",
    "ept_backed_4k": "recorded small guest, populated ahead: mean latency of the faults that are left",
    "prefault_4k": "the same guest's MADV_POPULATE_WRITE of 64 MiB (where none can be recorded: of 16 MiB)",
    "worker_wake": "small guest that hints 64 pages ahead: from a hint until its VMM's thread begins on it",
    "cold_touch_4k": "the same guest: time per first touch, less faults with their exits, less a warm touch",
}
"""How each of these costs is measured."""

PAGES: Final = 16381
"""Pages of a guest: 64 MiB, more than the caches hold."""
_ATTEMPTS: Final = 3
_HINT_PAGES: Final = 64
_THINK: Final = 6000


def measure_recorded(rounds: int) -> Samples:
    """Return `rounds` samples of every cost in `RECORDED`.

    Raises `CapabilityError` where this host can't record, `FailedError` where the guests fail; `SystemExit`
    after a signal.
    """
    with tempfile.TemporaryDirectory(prefix="tracekit-calibrate-") as folder:
        said, path = Path(folder) / "rounds.json", Path(folder) / "rounds.trace"
        command = (sys.executable, "-m", __name__, str(rounds), str(said))
        for _ in range(_ATTEMPTS):
            report = record(RecordPlan(out=path, command=command, force=True))
            if report.stopped_by.startswith("SIG"):  # the recording took it, but it was meant for all of us
                raise SystemExit(128 + signal.Signals[report.stopped_by])
            if report.exit_code == 0 and report.lost == 0:
                break
        else:
            raise FailedError(f"the recording of small guests was not whole: {'; '.join(report.where)}")
        trace = open_trace(path)
        own_ns = own_time(trace.meta).get("ept_violation", 0)
        faults = (
            trace.events.filter(pl.col("kind") == "ept_violation")
            .select("ts_ns", (pl.col("latency_ns").cast(pl.Int64) - own_ns).clip(0))
            .collect()
        )
        samples = Samples()
        for one in json.loads(said.read_text()):
            samples.add(_round(one, faults))
    return samples


def _round(phases: Mapping[str, Mapping[str, Any]], faults: pl.DataFrame) -> Iterator[Sample]:
    """Take a round apart: fresh and populated memory, each touched cold (`touch`) and warm (`touch2`)."""
    for wait in phases["hinting"]["waits_ns"]:
        yield "worker_wake", float(wait)
    yield "prefault_4k", phases["populated"]["prealloc_ns"] / phases["populated"]["pages"]
    count, latency, beside = {}, {}, {}
    for kind in ("fresh", "populated"):
        cold, warm = phases[f"{kind}.touch"], phases[f"{kind}.touch2"]
        here = faults.filter(
            pl.col("ts_ns").is_between(cold["start_ns"], cold["start_ns"] + cold["elapsed_ns"])
        )
        took = here["latency_ns"].to_numpy().astype(float)
        # A fault that took ten times as long waited for a CPU: the thread's CPU time does not hold that.
        usual = float(np.median(took))
        count[kind], latency[kind] = len(took), float(np.where(took > TIMES * usual, usual, took).sum())
        beside[kind] = cold["cpu_ns"] - warm["cpu_ns"] - latency[kind]
    leaving = max(0.0, beside["fresh"] / count["fresh"])
    yield "exit", leaving
    yield "ept_backed_4k", latency["populated"] / count["populated"]
    yield "cold_touch_4k", max(0.0, (beside["populated"] - count["populated"] * leaving) / PAGES)


def _guests(rounds: int) -> list[dict[str, Any]]:
    """Run the guests: each round in both orders of touches; the first round only warms memory up."""
    found = []
    for turn in range(-1, rounds):
        phases: dict[str, Any] = {}
        for kind in ("fresh", "populated"):
            plan = GuestPlan(
                pages=PAGES,
                passes=2,
                order="random" if turn % 2 else "seq",
                seed=turn + 1,
                prealloc=kind == "populated",
                warm_up=True,
            )
            with SmallGuest(plan) as guest:
                run = guest.run()
            phases |= {f"{kind}.{name}": vars(phase) for name, phase in run.vcpus[0].phases.items()}
            phases[kind] = {"prealloc_ns": run.prealloc_ns, "pages": plan.memory_bytes >> 12}
        hinting = GuestPlan(
            pages=PAGES,
            think=_THINK,
            enlightened="port",
            hint="hot",
            hint_batch=_HINT_PAGES,
            hint_lead=1,
            warm_up=True,
        )
        with SmallGuest(hinting) as guest:
            phases["hinting"] = {"waits_ns": guest.run().hint_waits_ns}
        if turn >= 0:
            found.append(phases)
    return found


def _run(words: list[str]) -> None:
    """Run the guests and write what they say, in the process that is recorded."""
    try:
        Path(words[1]).write_text(json.dumps(_guests(int(words[0]))))
    except KeyboardInterrupt:  # Ctrl-C reaches this process as well; whoever records it says so
        raise SystemExit(128 + signal.SIGINT) from None


if __name__ == "__main__":
    _run(sys.argv[1:])
