"""What a fleet costs: per event at any size of the set, per task, and with a second worker.

Large sets are measured by hand, for they take many minutes (`SETS` is a folder that `fleet_set.py` filled):

    python tests/bench/bench_fleet.py SETS TRACES JOBS [RESULTS]

replays the first TRACES traces of it with `SCENARIOS` and prints events, seconds, CPU time of all processes,
and the largest sum of their resident memory (looked at every 2 s, for looking takes CPU time too; pages that
they share count for each).
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from fleet_set import make_set

from tracekit.replay import load_profile, read_scenarios
from tracekit.replay.fleet.cluster import connected, replay_fleet
from tracekit.replay.fleet.places import find_traces
from tracekit.replay.fleet.task import Question, replay_trace
from tracekit.trace import open_trace
from tracekit.trace.fingerprint import fingerprint

SCENARIOS = ("zeroing", "prealloc,via=pre_fault")


def measured(traces: list[Path], jobs: int, results: Path | None = None) -> dict[str, Any]:
    """Replay the traces with the command, in a process tree of its own, and return what it cost.

    What is in `results` from an earlier run is kept, and not counted as replayed.
    """
    with tempfile.TemporaryDirectory(dir=traces[0].parents[2]) as scratch:
        asked = [part for one in SCENARIOS for part in ("-s", one)]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        started = time.perf_counter()
        run = subprocess.Popen(
            [sys.executable, "-m", "tracekit", "fleet", *map(str, traces), *asked, "--jobs", str(jobs),
             "-o", str(results or f"{scratch}/results"), "--json"],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        peak = 0
        while run.poll() is None:
            peak = max(peak, resident(run.pid))
            time.sleep(2)
        seconds = time.perf_counter() - started
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert run.stdout is not None
        did = json.loads(run.stdout.read())
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert not did["failed"], did["failed"]
    events = did["events"] * did["replayed"] / len(SCENARIOS) / did["traces"]
    return {
        "traces": did["traces"],
        "events": did["events"],
        "replayed": did["replayed"] / len(SCENARIOS),
        "jobs": jobs,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "cpu_ns_per_event": round(cpu * 1e9 / events, 1),
        "million_events_per_s": round(events / seconds / 1e6, 2),
        "peak_gb": round(peak / 1e9, 2),
        "load": os.getloadavg()[0],
    }


def resident(pid: int) -> int:
    """Return the resident bytes of a process and all below it."""
    total = 0
    try:
        root = psutil.Process(pid)
        for one in [root, *root.children(recursive=True)]:
            total += one.memory_info().rss
    except psutil.NoSuchProcess:
        pass  # it ended while we looked
    return total


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Five traces of about 1 M events, one of each class."""
    return make_set(tmp_path_factory.mktemp("set"), 0, 5, share=0.1)


@pytest.fixture(scope="module")
def question() -> Question:
    return Question(tuple(read_scenarios(SCENARIOS)), load_profile())


def test_replay_a_million_events(
    benchmark: Any, small: list[Path], question: Question, tmp_path: Path
) -> None:
    """A task without Dask: what the overhead is measured against."""
    places = find_traces([str(small[0])])
    rounds = iter(range(100))
    benchmark.pedantic(
        lambda: replay_trace(places[0], question, f"{tmp_path}/{next(rounds)}"), rounds=5, warmup_rounds=1
    )


def test_what_a_task_adds(benchmark: Any, small: list[Path], question: Question, tmp_path: Path) -> None:
    """Finding, fingerprint, store and Dask, for 100 traces that are done already: nothing is replayed."""
    places = find_traces([str(small[0])])
    many = [type(places[0])(places[0].url, f"copy{i}", "default") for i in range(100)]
    with connected(jobs=2) as client:
        list(replay_fleet(many, question, str(tmp_path), client))
        benchmark.pedantic(lambda: list(replay_fleet(many, question, str(tmp_path), client)), rounds=5)


def test_fingerprint(benchmark: Any, small: list[Path]) -> None:
    benchmark.pedantic(lambda: fingerprint(small[0]), rounds=20)


def test_opening(benchmark: Any, small: list[Path]) -> None:
    benchmark.pedantic(lambda: open_trace(small[0]).rows, rounds=20)


if __name__ == "__main__":
    sets, count, workers = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    chosen = sorted(sets.glob("*/*.trace"), key=lambda path: path.name)[:count]
    kept = Path(sys.argv[4]) if len(sys.argv) > 4 else None
    print(json.dumps(measured(chosen, workers, kept)), flush=True)
