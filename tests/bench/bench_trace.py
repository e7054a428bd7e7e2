"""What the trace on disk costs: CPU per event to write and read, bytes per event (`make bench`).

Times are CPU time of the process (a shared machine's wall time tells little); `ns_per_event` and
`bytes_per_event` are in the benchmark's extra info. The events are like recorded ones: four vCPUs that
walk through memory in runs, log-normal service times, VMM faults with an hva in between.
"""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest

from tracekit.trace import Meta, TraceWriter, compact, events_batch, open_trace, recover
from tracekit.trace.summary import summarise

EVENTS = 1 << 20
POLL = 8192
ROUNDS = 5

pytestmark = pytest.mark.benchmark(timer=time.process_time)


@pytest.fixture(scope="module")
def polls():
    """Batches as a recorder delivers them: some thousand events each, a little out of order."""
    random = np.random.default_rng(1)
    vcpu = random.integers(0, 4, EVENTS)
    jumps = np.where(random.random(EVENTS) < 1 / 11, random.integers(0, 1 << 18, EVENTS), 0)
    place = np.arange(EVENTS) // 4 + np.maximum.accumulate(np.where(jumps > 0, np.arange(EVENTS), 0)) % 65_521
    gfn = (vcpu << 18) + place % (1 << 18)
    kind = np.where(random.random(EVENTS) < 0.05, 1, 0)
    latency = random.lognormal(np.log(3200), 0.4, EVENTS).astype(np.int64)
    start = np.cumsum(random.lognormal(np.log(1500), 0.6, EVENTS).astype(np.int64))
    ts = 10**12 + start + latency
    faults = kind == 0
    columns = {
        "ts_ns": ts,
        "kind": kind,
        "tid": vcpu + 4321,
        "vcpu": vcpu,
        "gfn": gfn,
        "hva": gfn * 4096 + 0x7F0000000000,
        "gva": gfn * 4096,
        "level": np.ones(EVENTS, np.int64),
        "latency_ns": latency,
    }
    valid = {"gfn": faults, "gva": faults, "hva": ~faults, "level": faults}
    return [
        events_batch(
            **{name: column[at : at + POLL] for name, column in columns.items()},
            access=2,
            valid={name: mask[at : at + POLL] for name, mask in valid.items()},
        )
        for at in range(0, EVENTS, POLL)
    ]


def write(path, batches):
    with TraceWriter(path, Meta(source="synthetic")) as writer:
        for batch in batches:
            writer.append(batch)


@pytest.fixture(scope="module")
def trace(polls, tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "x.trace"
    write(path, polls)
    return open_trace(path)


def note(benchmark, trace=None, events=EVENTS):
    benchmark.extra_info["ns_per_event"] = round(benchmark.stats.stats.median / events * 1e9, 1)
    if trace is not None:
        benchmark.extra_info["bytes_per_event"] = round(trace.bytes / trace.rows, 2)


@pytest.mark.parametrize("order", ["as delivered", "in time order"])
def test_append_encode_and_sync(benchmark, polls, tmp_path, order):
    if order == "in time order":
        source = tmp_path / "source.trace"
        write(source, polls)
        polls = list(open_trace(source).batches(batch_rows=POLL))
    paths = (tmp_path / f"{at}.trace" for at in itertools.count())
    written = []

    def run():
        written.append(next(paths))
        write(written[-1], polls)

    benchmark.pedantic(run, rounds=ROUNDS)
    note(benchmark, open_trace(written[-1]))


def test_read_all_columns_verified(benchmark, trace):
    benchmark.pedantic(lambda: sum(batch.num_rows for batch in trace.batches()), rounds=ROUNDS)
    note(benchmark)


def test_read_three_columns_verified(benchmark, trace):
    columns = ["ts_ns", "gfn", "latency_ns"]
    benchmark.pedantic(lambda: sum(batch.num_rows for batch in trace.batches(columns)), rounds=ROUNDS)
    note(benchmark)


def test_info(benchmark, trace):
    benchmark.pedantic(lambda: summarise(trace), rounds=ROUNDS)
    note(benchmark)


def test_open(benchmark, trace):
    benchmark.pedantic(lambda: open_trace(trace.path), rounds=50, warmup_rounds=1)


def test_compact(benchmark, trace, tmp_path):
    out = tmp_path / "small.trace"
    benchmark.pedantic(lambda: compact(trace.path, out, force=out.exists()), rounds=ROUNDS)
    note(benchmark, open_trace(out))


def test_read_compacted(benchmark, trace, tmp_path):
    compact(trace.path, tmp_path / "small.trace")
    small = open_trace(tmp_path / "small.trace")
    benchmark.pedantic(lambda: sum(batch.num_rows for batch in small.batches()), rounds=ROUNDS)
    note(benchmark)


def test_recover_an_unclosed_part(benchmark, polls, tmp_path):
    paths = iter([tmp_path / f"{at}.trace" for at in range(ROUNDS)])
    for at in range(ROUNDS):
        writer = TraceWriter(tmp_path / f"{at}.trace", Meta(source="synthetic"))
        for batch in polls:
            writer.append(batch)
        writer.abort()
    benchmark.pedantic(lambda: recover(next(paths)), rounds=ROUNDS)
    note(benchmark)
