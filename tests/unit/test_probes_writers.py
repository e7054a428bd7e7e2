"""What a flight recorder keeps: the seconds before its end, however long the ending takes."""

from __future__ import annotations

import time
from pathlib import Path

from tracekit.probes.writers import FlightWriter
from tracekit.trace import Meta, TraceWriter, events_batch, open_trace

SECOND = 1_000_000_000


def test_the_last_seconds_are_those_before_the_end_and_not_before_the_writing(tmp_path: Path) -> None:
    path, meta = tmp_path / "f.trace", Meta()
    flight = FlightWriter(
        path,
        meta,
        lambda path: TraceWriter(path, Meta(), live=True),
        seconds=0.2,
        triggered=lambda: False,
        say=lambda text: None,
    )
    end = time.monotonic_ns()
    flight.append(events_batch(ts_ns=[end - SECOND], kind="madvise"))
    flight.append(events_batch(ts_ns=[end - SECOND // 4, end - SECOND // 10, end - 1], kind="madvise"))
    for before in (SECOND, SECOND // 10):
        flight.add_sample(end - before, 0, "rss_bytes", 1.0)
        flight.add_loss(0, end - before, end - before, 7, "ring_full: madvise")
        flight.mark(f"mark-{before}", end - before)
    meta.stop_ns = end
    time.sleep(0.3)
    flight.append(events_batch(ts_ns=[end], kind="madvise"))
    flight.flush()
    flight.close()
    trace = open_trace(path)
    assert trace.events.collect()["ts_ns"].to_list() == [end - SECOND // 10, end - 1, end]
    assert (trace.meta.start_ns, trace.meta.stop_ns) == (end - SECOND // 5, end)
    assert trace.samples["ts_ns"].to_list() == [end - SECOND // 10]
    assert trace.lost == 7
    assert [mark["ts_ns"] for mark in trace.meta.marks] == [end - SECOND // 10]
