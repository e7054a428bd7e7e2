"""The replay engine: events per second of the whole model, on one core.

`pytest tests/bench/bench_replay.py --benchmark-only -o python_files='bench_*.py' -o norecursedirs=''
--benchmark-timer=time.thread_time`. TRACEKIT_BENCH_EVENTS sets the length of the traces (default 32 Mi; they
are made once and kept in the temp dir). `extra_info` holds Mev_per_s, of the best round.

Every figure is of a whole replay: the state of a 64 GiB guest is made, all batches are driven, what is due at
the end is done. `test_end_to_end` adds reading, checking and decoding the files, and the survey.
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter, process_time, thread_time
from typing import Any

import numpy as np
import pytest

from tests.bench.replay_traces import SHAPES, bench_trace
from tracekit.replay import running, timeline
from tracekit.replay.abreast import Walk
from tracekit.replay.blocks import IN_ORDER, block_order, replay_blocks
from tracekit.replay.running import Room
from tracekit.replay.scenarios import parse_scenario
from tracekit.replay.state import Replay, Setting

EVENTS = int(os.environ.get("TRACEKIT_BENCH_EVENTS", str(1 << 25)))
SCENARIOS = (
    "baseline",
    "prealloc",
    "zeroing",
    "hot_hint,policy=stride",
    "cold_hint",
    "cold_hint,policy=idle",
    "free_page_reporting",
    "hugepages",
    "swap,limit_mib=20000",
    "epf,runnable=2",
    "zeroing+hot_hint+cold_hint",
)
BY_BLOCK = ("baseline", "prealloc", "zeroing", "cold_hint", "cold_hint,policy=idle", "hugepages")


@pytest.fixture(scope="module", params=SHAPES)
def room(request: pytest.FixtureRequest) -> Room:
    """A trace, surveyed, its columns in memory (43 bytes an event)."""
    return in_memory(request.param)


@pytest.fixture(scope="module")
def mixed() -> Room:
    return in_memory("mix")


def in_memory(shape: str) -> Room:
    events = EVENTS // 4 if shape == "thp" else EVENTS
    with pytest.MonkeyPatch.context() as patch:
        keep = timeline.Timeline.__init__.__kwdefaults__ | {"keep_rows": 1 << 40}
        patch.setattr(timeline.Timeline.__init__, "__kwdefaults__", keep)
        return Room.of(bench_trace(shape, events))


def replay(room: Room, settings: list[Setting], by_block: bool | None = None) -> None:
    for _ in Replay.run_all(room.timeline, room.chain, settings, plain=False, by_block=by_block):
        pass


def setting(room: Room, text: str, *, closed: bool = True) -> Setting:
    scenario = parse_scenario(text)
    contexts = {m.name: room.context(scenario, m) for m in scenario.mechanisms}
    return Setting(contexts, room.prices.kernel("point"), closed)


def rate(benchmark: Any, events: float) -> None:
    benchmark.extra_info["Mev_per_s"] = round(events / benchmark.stats.stats.min / 1e6, 1)


def rows(room: Room) -> int:
    return int(room.timeline.seen.sum())


@pytest.mark.parametrize("text", SCENARIOS)
def test_time_order(benchmark: Any, room: Room, text: str) -> None:
    """One scenario, closed loop."""
    one = setting(room, text)
    benchmark.pedantic(replay, args=(room, [one]), rounds=3, warmup_rounds=1)
    rate(benchmark, rows(room))


@pytest.mark.parametrize("text", BY_BLOCK)
def test_by_block(benchmark: Any, room: Room, text: str) -> None:
    """One scenario, open loop, block by block, of batches that are sorted already (at `sorted_M_per_s`)."""
    one = setting(room, text, closed=False)
    began = thread_time()
    batches = [(batch, block_order(batch, room.timeline.index.blocks)) for batch in room.timeline]
    benchmark.extra_info["sorted_M_per_s"] = round(rows(room) / (thread_time() - began) / 1e6, 1)
    walk, mask = Walk((0,), room.chain), one.mask(room.chain)
    drive = room.chain.kernel(mask, special=True, by_block=True)

    def walk_blocks() -> None:
        state = Replay._new(room.timeline, room.chain, one)
        for batch, blocks in batches:
            if blocks is None:  # thp: a fault over several blocks
                room.chain.kernel(mask, special=True)(batch, state.world, mask, state.own, *IN_ORDER)
            else:
                replay_blocks(drive, batch, blocks, state.world, mask, state.own)
        walk.ends([one], state.world, state.own)

    benchmark.pedantic(walk_blocks, rounds=3, warmup_rounds=1)
    rate(benchmark, rows(room))


@pytest.mark.parametrize(
    ("text", "closed", "settings"),
    [
        ("cold_hint,policy=idle,idle_s={}", False, 8),
        ("cold_hint,policy=idle,idle_s={}", False, 33),
        ("cold_hint,policy=idle,idle_s={}", True, 8),
        ("cold_hint,order=9,delay_ms={}e3", False, 8),
        ("cold_hint,order=0,delay_ms={}e3", False, 8),
        ("free_page_reporting,delay_s={}", False, 8),
        ("zeroing,until_ms={}e3", False, 8),
    ],
    ids=["idle", "idle-33", "idle-closed", "on_free-9", "on_free-0", "reports", "not-abreast"],
)
def test_sweep(benchmark: Any, room: Room, text: str, closed: bool, settings: int) -> None:
    """Delays of 1 to 120 s (33: the grid of a break-even): events x scenarios a second."""
    delays = np.geomspace(1, 120, settings)
    asked = [setting(room, text.format(delay), closed=closed) for delay in delays]
    benchmark.pedantic(replay, args=(room, asked), rounds=2, warmup_rounds=1)
    rate(benchmark, rows(room) * settings)


def test_two_cores(benchmark: Any, mixed: Room) -> None:
    """Two replays at once against one after another (run with the default timer, on an idle machine)."""
    one = setting(mixed, "zeroing")

    replay(mixed, [one])
    began = perf_counter()
    replay(mixed, [one])
    replay(mixed, [one])
    alone = perf_counter() - began
    with ThreadPoolExecutor(2) as pool:
        benchmark.pedantic(lambda: list(pool.map(replay, [mixed, mixed], [[one], [one]])), rounds=3)
    benchmark.extra_info["speed_up"] = round(alone / benchmark.stats.stats.min, 2)
    rate(benchmark, 2 * rows(mixed))


@pytest.mark.parametrize("shape", ["mix", "rand"])
def test_end_to_end(benchmark: Any, shape: str) -> None:
    """From the files on disk to the rows of a scenario: survey and every hypothesis, columns not kept.

    By the clock on the wall (the default timer): other threads read.
    """
    trace = bench_trace(shape, EVENTS)
    benchmark.pedantic(lambda: running.run(trace, ["zeroing"]), rounds=2)
    rate(benchmark, EVENTS)


@pytest.mark.parametrize("events", [1 << 20, 1 << 23, EVENTS, 6 * EVENTS])
def test_length(benchmark: Any, events: int) -> None:
    """Time order, columns read again from the files: flat over the length, memory bounded."""
    code = f"from tests.bench.bench_replay import read_again; print(*read_again({events}))"

    def other_process() -> list[str]:
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        return done.stdout.split()

    found = benchmark.pedantic(other_process, rounds=1)
    benchmark.extra_info["Mev_per_s"] = round(events / float(found[0]) / 1e6, 1)
    benchmark.extra_info["peak_rss_MB"] = int(found[1]) // 1024


def read_again(events: int) -> tuple[float, int]:
    """Return the CPU time of a replay that reads its files, all compiled, and the peak RSS in KiB."""
    for length in (1 << 20, events):  # the first one compiles
        with pytest.MonkeyPatch.context() as patch:
            keep = timeline.Timeline.__init__.__kwdefaults__ | {"keep_rows": 0}
            patch.setattr(timeline.Timeline.__init__, "__kwdefaults__", keep)
            room = Room.of(bench_trace("mix", length))
        began = process_time()  # of all threads that read
        replay(room, [setting(room, "zeroing")])
    took = process_time() - began
    # Not ru_maxrss: exec keeps that of the process that started this one.
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
    return took, int(peak.split()[1])
