"""Miss-ratio curves: references per second, beside libCacheSim's Python package where that is installed.

`pytest tests/bench/bench_missratio.py --benchmark-only -o python_files='bench_*.py' -o norecursedirs=''`.
TRACEKIT_BENCH_REFERENCES sets the length (default 16 Mi). libcachesim is no dependency of tracekit.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.unit.missratio_naive import mixed
from tracekit.replay.missratio import Belady, Clock, Fifo, IdleGaps, Lru, Shards, StackDistances

PAGES = 16_777_216  # a guest of 64 GiB
LIMIT = 6_000_000
REFERENCES = int(os.environ.get("TRACEKIT_BENCH_REFERENCES", "16777216"))
BATCH = 1 << 20


@pytest.fixture(scope="module", params=["mix", "rand"])
def uses(request: pytest.FixtureRequest) -> NDArray[np.int64]:
    """Runs that are partly skewed, or every page equally likely (the worst for any cache)."""
    if request.param == "mix":
        return mixed(REFERENCES, PAGES, seed=1)
    return np.random.default_rng(1).integers(0, PAGES, REFERENCES)


METHODS: dict[str, Callable[[], Any]] = {
    "exact": lambda: StackDistances(PAGES),
    "shards-0.01": lambda: Shards(rate=0.01, pages=PAGES),
    "shards-0.001": lambda: Shards(rate=0.001, pages=PAGES),
    "lru": lambda: Lru(LIMIT, PAGES),
    "fifo": lambda: Fifo(LIMIT, PAGES),
    "clock": lambda: Clock(LIMIT, PAGES),
    "belady": lambda: Belady(LIMIT, PAGES),
}


def run(make: Callable[[], Any], uses: NDArray[np.int64]) -> Any:
    state = make()
    for begin in range(0, len(uses), BATCH):
        state.feed(uses[begin : begin + BATCH])
    return state


def rate(benchmark: Any, references: int) -> None:
    benchmark.extra_info["Mref_per_s"] = round(references / benchmark.stats.stats.min / 1e6, 1)


@pytest.mark.parametrize("name", METHODS)
def test_references_per_second(benchmark: Any, uses: NDArray[np.int64], name: str) -> None:
    run(METHODS[name], uses[:1])
    benchmark.pedantic(run, args=(METHODS[name], uses), rounds=3)
    rate(benchmark, len(uses))


def test_gaps_and_a_thousand_delays(benchmark: Any, uses: NDArray[np.int64]) -> None:
    times = np.arange(len(uses)) * 5_000
    delays = np.geomspace(1e6, 1e11, 1_000).astype(np.int64)
    IdleGaps().feed([1], [0])

    def answer() -> None:
        IdleGaps(PAGES).feed(uses, times).close(int(times[-1])).after(delays)

    benchmark.pedantic(answer, rounds=3)
    rate(benchmark, len(uses))


@pytest.mark.parametrize("name", ["LRU", "FIFO", "Clock"])
def test_beside_libcachesim(benchmark: Any, tmp_path: Any, uses: NDArray[np.int64], name: str) -> None:
    """The same references, from a binary file (its quickest way in): the same misses, and faster."""
    theirs = pytest.importorskip("libcachesim")
    some = uses[: 1 << 22]
    record = np.dtype([("time", "<u4"), ("page", "<u8"), ("size", "<u4"), ("next", "<i8")])  # oracleGeneral
    rows = np.zeros(len(some), record)
    rows["time"], rows["page"], rows["size"], rows["next"] = np.arange(len(some)), some, 1, -1
    path = tmp_path / "uses.oracleGeneral"
    rows.tofile(path)
    limit = 700_000
    ours = {"LRU": Lru, "FIFO": Fifo, "Clock": Clock}[name]
    misses = run(lambda: ours(limit, PAGES), some).misses

    def replay() -> float:
        cache = getattr(theirs, name)(cache_size=limit)
        reader = theirs.TraceReader(str(path), theirs.TraceType.ORACLE_GENERAL_TRACE)
        return float(cache.process_trace(reader)[0])

    ratio = benchmark.pedantic(replay, rounds=3)
    assert round(ratio * len(some)) == misses
    rate(benchmark, len(some))
    mine = min(_seconds(lambda: run(lambda: ours(limit, PAGES), some)) for _ in range(3))
    benchmark.extra_info["tracekit_Mref_per_s"] = round(len(some) / mine / 1e6, 1)
    assert mine < benchmark.stats.stats.min


def _seconds(call: Callable[[], object]) -> float:
    from time import perf_counter

    began = perf_counter()
    call()
    return perf_counter() - began
