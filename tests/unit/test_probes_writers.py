"""What a flight recorder and a rotating one say of time and of memslots."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tracekit.errors import FailedError
from tracekit.probes.writers import FlightWriter, RotatingWriter
from tracekit.trace import Meta, TraceWriter, events_batch, open_trace, recover

SECOND = 1_000_000_000


def flight_of(path: Path, meta: Meta, seconds: float) -> FlightWriter:
    return FlightWriter(
        path,
        meta,
        lambda path: TraceWriter(path, Meta(), live=True),
        seconds=seconds,
        triggered=lambda: 0,
        say=lambda text: None,
    )


def memslot(slot: int, from_ns: int, size_bytes: int = 4096) -> dict[str, Any]:
    where = {"gpa": slot << 12, "hva": slot << 12, "flags": 0, "known_by": "ioctl"}
    return {"vm": 0, "slot": slot, "size_bytes": size_bytes, "from_ns": from_ns, **where}


def test_nothing_is_said_of_the_time_before_a_recording_began(tmp_path: Path) -> None:
    end = time.monotonic_ns()
    flight = flight_of(tmp_path / "f.trace", Meta(start_ns=end - 2 * SECOND), 60)
    flight.append(events_batch(ts_ns=[end - SECOND], kind="madvise"))
    flight.meta.stop_ns = end
    flight.close()
    assert open_trace(tmp_path / "f.trace").meta.start_ns == end - 2 * SECOND


def test_a_memslot_that_went_within_the_seconds_that_are_kept_was_there(tmp_path: Path) -> None:
    end = time.monotonic_ns()
    flight = flight_of(tmp_path / "f.trace", Meta(start_ns=end - 90 * SECOND), 60)
    for slot in (memslot(1, end - 80 * SECOND), memslot(2, end - 80 * SECOND)):
        flight.add_memslot(**slot)
    # The first went long ago, the others a moment ago.
    flight.add_memslot(**memslot(1, end - 70 * SECOND, 0))
    flight.add_memslot(**memslot(3, end - 50 * SECOND))
    flight.add_memslot(**memslot(2, end - 5 * SECOND, 0))
    flight.add_memslot(**memslot(3, end - 4 * SECOND, 0))
    flight.append(events_batch(ts_ns=[end - SECOND], kind="madvise"))
    flight.meta.stop_ns = end
    flight.close()
    slots = open_trace(tmp_path / "f.trace").memslots.sort("slot")
    assert slots["slot"].to_list() == [2, 3]
    assert slots["to_ns"].to_list() == [end - 5 * SECOND, end - 4 * SECOND]


def test_a_part_that_is_killed_is_no_older_than_it_is(tmp_path: Path) -> None:
    meta = Meta(start_ns=(start := time.monotonic_ns() - 100 * SECOND))

    def open_part(path: Path) -> TraceWriter:
        return TraceWriter(path, replace(meta), live=True)

    writer = RotatingWriter(tmp_path / "r.trace", meta, open_part, seconds=0, keep=0)
    first, second, third = (start + at * SECOND for at in (90, 95, 99))
    writer.append(events_batch(ts_ns=[first], kind="madvise"))
    # Its rows are those until all are there, and not until somebody came to write them.
    writer.complete_until(second)
    writer.flush()
    writer.append(events_batch(ts_ns=[third], kind="madvise"))
    copy = tmp_path / "killed.trace"
    shutil.copytree(tmp_path / "r-0002.trace", copy)
    recover(copy)
    assert open_trace(copy).meta.start_ns == second
    writer.meta.stop_ns = third + 1
    writer.close()
    spans = [open_trace(tmp_path / f"r-000{number}.trace").meta for number in (1, 2)]
    assert [(one.start_ns, one.stop_ns) for one in spans] == [(start, second), (second, third + 1)]


def test_a_dump_waits_for_what_was_before_it_was_asked_for_and_ends_with_it(tmp_path: Path) -> None:
    now = time.monotonic_ns()
    asked = [now]
    flight = FlightWriter(
        tmp_path / "f.trace",
        Meta(start_ns=now - SECOND),
        lambda path: TraceWriter(path, Meta(), live=True),
        seconds=60,
        triggered=lambda: asked.pop() if asked else 0,
        say=lambda text: None,
    )
    flight.append(events_batch(ts_ns=[now - SECOND // 2], kind="madvise"))
    flight.complete_until(now - 2)
    flight.flush()
    assert not (tmp_path / "f-0001.trace").exists()
    flight.append(events_batch(ts_ns=[now - 1, now + 3], kind="madvise"))
    flight.complete_until(now + 5)
    flight.flush()
    dump = open_trace(tmp_path / "f-0001.trace")
    assert dump.events.collect().height == 3
    assert (dump.meta.start_ns, dump.meta.stop_ns) == (now - SECOND, now + 5)
    flight.flush()
    assert not (tmp_path / "f-0002.trace").exists()


def test_last_seconds_that_could_not_be_written_are_no_older_than_they_are(tmp_path: Path) -> None:
    class Full(TraceWriter):
        def append(self, batch: pa.RecordBatch) -> None:
            if self._held.rows:
                raise FailedError("the disk is full")
            super().append(batch)

    path, end = tmp_path / "f.trace", time.monotonic_ns()
    meta = Meta(start_ns=end - 90 * SECOND)
    flight = flight_of(path, meta, 2)
    flight._open = lambda path: Full(path, replace(meta), live=True)
    for before in (SECOND, SECOND // 2):
        flight.append(events_batch(ts_ns=[end - before], kind="madvise"))
    meta.stop_ns = end
    with pytest.raises(FailedError):
        flight.close()
    recover(path)
    found = open_trace(path)
    assert found.meta.rows == 1
    assert found.meta.start_ns == end - 2 * SECOND
    assert found.lost is None


def test_the_last_seconds_are_those_before_the_end_and_not_before_the_writing(tmp_path: Path) -> None:
    path, meta = tmp_path / "f.trace", Meta()
    flight = flight_of(path, meta, 0.2)
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
