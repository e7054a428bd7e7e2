"""A host's and a guest's trace on one clock: every event once, in order, on the right side."""

import json
import subprocess
import sys

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from tracekit.errors import FailedError, UsageError
from tracekit.trace import Meta, TraceWriter, events_batch, open_trace
from tracekit.trace.merge import find_offset, given_offset, merge
from tracekit.trace.offset import ContradictedError
from tracekit.trace.schema import FLAG_PRESENT, FLAG_ZEROED

SECOND = 1_000_000_000
OFFSET = 77 * SECOND + 123_456
PAGES = 3_001


@pytest.fixture(scope="module")
def sides(tmp_path_factory):
    """A host and a guest trace of a boot in which page g is allocated at g ms and touched at once.

    Even pages are zeroed by the allocation (order 1 for every tenth), odd ones are written 4 us after it.
    """
    folder = tmp_path_factory.mktemp("merge")
    gfn = np.arange(PAGES)
    alloc = 100 * SECOND + gfn * 1_000_000  # host time
    zeroed = gfn % 2 == 0
    latency = 3000 + gfn % 700
    start = np.where(zeroed, alloc - latency - 800, alloc + 4000)
    with TraceWriter(
        folder / "host.trace", Meta(vms=[{"pid": 1}, {"pid": 2}], marks=[{"name": "h", "ts_ns": 5}])
    ) as writer:
        faults = {"ts_ns": start + latency, "kind": "ept_violation", "vm": 1, "gfn": gfn, "level": 1}
        writer.append(events_batch(**faults, latency_ns=latency, vcpu=0))
        other = {**faults, "vm": 0, "ts_ns": start + latency + 7}
        writer.append(events_batch(**other, latency_ns=latency))
        writer.append(
            events_batch(**{**faults, "ts_ns": start + 9 * SECOND}, latency_ns=9, flags=FLAG_PRESENT)
        )
        reported = alloc[:50] + 70_000_000
        writer.append(events_batch(ts_ns=reported, kind="free_page_report", vm=1, gfn=gfn[:50], pages=1))
        writer.add_loss(0, 1, 2, 11, "ring full")
        writer.add_sample(100 * SECOND, 1, "rss_bytes", 5)
        writer.add_memslot(vm=1, slot=0, gpa=0, size_bytes=1 << 30, hva=1 << 40, from_ns=0, known_by="ioctl")
    with TraceWriter(folder / "guest.trace", Meta(notes=["inside"])) as writer:
        seen = alloc - OFFSET
        writer.append(
            events_batch(
                ts_ns=seen, kind="page_alloc", gfn=gfn, flags=np.where(zeroed, FLAG_ZEROED, 0), vcpu=gfn % 3
            )
        )
        freed = seen[:50] + 50_000_000
        writer.append(events_batch(ts_ns=freed, kind="page_free", gfn=gfn[:50]))
        index = writer.mark("init", int(seen[7]))
        writer.append(events_batch(ts_ns=[seen[7]], kind="mark", pages=0, arg=index))
        writer.add_sample(int(seen[0]), 0, "free_bytes", 7)
        writer.add_loss(1, int(seen[1]), int(seen[2]), 4, "ring full")
    return folder


def test_the_offset_is_found_from_the_pages(sides):
    found = find_offset(open_trace(sides / "host.trace"), open_trace(sides / "guest.trace"), 1)
    assert found.low_ns <= OFFSET <= found.high_ns
    assert found.high_ns - found.low_ns <= 4800  # 4000 ns from alloc to touch, 800 ns from fault to zeroed
    assert found.contradicting == 0
    assert found.pairs >= PAGES


def test_every_event_once_in_order_with_its_side(sides, tmp_path):
    trace, offset = merge(sides / "host.trace", sides / "guest.trace", tmp_path / "both.trace", vm=1)
    host, guest = open_trace(sides / "host.trace"), open_trace(sides / "guest.trace")
    assert trace.rows == host.rows + guest.rows
    rows = pa.Table.from_batches(trace.batches()).to_pylist()
    assert [row["ts_ns"] for row in rows] == sorted(row["ts_ns"] for row in rows)
    inside = {"page_alloc", "page_free", "mark"}
    host_rows = pa.Table.from_batches(host.batches()).to_pylist()
    assert [row for row in rows if row["kind"] not in inside] == host_rows
    expected = pa.Table.from_batches(guest.batches()).to_pylist()
    for row in expected:
        row.update(ts_ns=row["ts_ns"] + offset.offset_ns, vm=1)
        if row["kind"] == "mark":
            row["arg"] = 1
    assert [row for row in rows if row["kind"] in inside] == expected
    assert [mark["name"] for mark in trace.meta.marks] == ["h", "init"]
    # Cause before effect: every page that the guest did not zero is touched after its allocation.
    at = {
        (row["kind"], row["gfn"]): row["ts_ns"]
        for row in rows
        if row["vm"] == 1 and not row["flags"] & FLAG_PRESENT
    }
    assert all(at["page_alloc", gfn] < at["ept_violation", gfn] for gfn in range(1, PAGES, 2))


def test_side_tables_are_joined_and_the_offset_is_stated(sides, tmp_path):
    # Of the two VMs only one has memory: that is the guest.
    trace, offset = merge(sides / "host.trace", sides / "guest.trace", tmp_path / "both.trace")
    assert set(trace.events.filter(pl.col("kind") == "page_alloc").collect()["vm"]) == {1}
    assert trace.lost == 15
    assert trace.losses["reason"].to_list() == ["ring full", "guest: ring full"]
    assert set(trace.samples["metric"]) == {"rss_bytes", "guest_free_bytes"}
    assert trace.memslots.height == 1
    told = json.loads((tmp_path / "both.trace" / "meta.json").read_text())["merge"]
    assert told["offset"] == offset.to_dict()
    assert told["guest_meta"]["notes"] == ["inside"]
    assert "pairs of events" in trace.meta.notes[-1]
    assert trace.meta.source == "recorded"


def test_a_given_offset_is_taken_as_given(sides, tmp_path):
    trace, offset = merge(
        sides / "host.trace", sides / "guest.trace", tmp_path / "b.trace", vm=1, offset=given_offset(5, 3)
    )
    assert (offset.offset_ns, offset.low_ns, offset.high_ns, offset.given) == (5, 2, 8, True)
    guest = open_trace(sides / "guest.trace")
    assert trace.events.collect()["ts_ns"].min() == guest.parts[0].first_ts_ns + 5
    with pytest.raises(UsageError, match="give both"):
        given_offset(None, 3)


def test_what_is_not_a_pair_is_refused(sides, tmp_path):
    host, guest, out = sides / "host.trace", sides / "guest.trace", tmp_path / "x.trace"
    with TraceWriter(tmp_path / "two.trace", Meta(vms=[{"pid": 1}, {"pid": 2}])) as writer:
        writer.append(events_batch(ts_ns=[5], kind="ept_violation", gfn=3))
    with pytest.raises(UsageError, match="2 VMs"):
        merge(tmp_path / "two.trace", guest, out)
    with pytest.raises(UsageError, match="no VM 7"):
        merge(host, guest, out, vm=7)
    with pytest.raises(UsageError, match="no host events"):
        merge(guest, guest, out, offset=given_offset(0))
    with pytest.raises(UsageError, match="no guest events"):
        merge(host, host, out, vm=0, offset=given_offset(0))
    with pytest.raises(FailedError, match="offset") as refused:
        merge(host, host, out, vm=0)
    assert "--offset-ns" in refused.value.hint
    with pytest.raises(UsageError, match="exists"):
        merge(host, guest, guest, vm=1)
    assert not out.exists()


def test_a_guest_that_zeroes_all_pages_is_bounded_by_what_each_thread_did_before(tmp_path, monkeypatch):
    """Thread 5 allocates every 100 us, and each page is touched 8 to 2 us before it is told of."""
    gfn = np.arange(3_000)
    alloc = 50 * SECOND + gfn * 100_000
    with TraceWriter(tmp_path / "host.trace", Meta()) as writer:
        writer.append(events_batch(ts_ns=alloc - 2000, kind="ept_violation", gfn=gfn, latency_ns=6000))

    def guest(name, tid, meta):
        with TraceWriter(tmp_path / name, meta) as writer:
            for part in np.array_split(gfn, 3):
                told = {"ts_ns": alloc[part] - 9 * SECOND, "kind": "page_alloc", "gfn": part}
                writer.append(events_batch(**told, flags=FLAG_ZEROED, tid=tid))
        return open_trace(tmp_path / name)

    host = open_trace(tmp_path / "host.trace")
    found = find_offset(host, guest("one.trace", 5, Meta()))
    assert 9 * SECOND - 2000 <= found.low_ns <= 9 * SECOND <= found.high_ns <= 9 * SECOND + 92_000
    # Two threads in turn, or one without a number, know less of when each began.
    in_turn = find_offset(host, guest("two.trace", 5 + gfn[:1000] % 2, Meta()))
    assert found.high_ns < in_turn.high_ns <= 9 * SECOND + 192_000
    with pytest.raises(FailedError, match="both sides"):
        find_offset(host, guest("none.trace", 0, Meta()))
    # Such a trace may say itself how far its times are from the host's.
    known = guest("known.trace", 0, Meta(clock={"name": "CLOCK_MONOTONIC", "uncertainty_ns": 700}))
    assert merge(host.path, known.path, tmp_path / "m.trace")[1] == given_offset(0, 700)

    # Where the pages tell, and against each other, a clock that both share is no excuse.
    def contradicted(*_: object) -> None:
        raise ContradictedError("they contradict the others")

    monkeypatch.setattr("tracekit.trace.merge.find_offset", contradicted)
    with pytest.raises(FailedError, match="contradict"):
        merge(host.path, known.path, tmp_path / "wrong.trace")


def test_compound_pages_count_for_each_of_their_pages(tmp_path):
    gfn = np.arange(0, 2000, 4)
    alloc = 50 * SECOND + gfn * 1_000_000
    with TraceWriter(tmp_path / "host.trace", Meta()) as writer:
        writer.append(events_batch(ts_ns=alloc + 5000, kind="ept_violation", gfn=gfn + 3, latency_ns=3000))
    with TraceWriter(tmp_path / "guest.trace", Meta()) as writer:
        writer.append(events_batch(ts_ns=alloc - 9 * SECOND, kind="page_alloc", gfn=gfn, pages=4))
        writer.append(events_batch(ts_ns=alloc - 9 * SECOND + 2_000_000, kind="page_free", gfn=gfn, pages=4))
    found = find_offset(open_trace(tmp_path / "host.trace"), open_trace(tmp_path / "guest.trace"))
    assert found.low_ns <= 9 * SECOND <= found.high_ns <= 9 * SECOND + 2000


def test_the_command(sides, tmp_path):
    command = [
        sys.executable,
        "-m",
        "tracekit",
        "merge",
        sides / "host.trace",
        sides / "guest.trace",
        "--vm",
        "1",
    ]
    ran = subprocess.run(
        [*map(str, command), "-o", str(tmp_path / "b.trace"), "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    told = json.loads(ran.stdout)
    assert told["events"] == open_trace(tmp_path / "b.trace").rows
    assert told["offset"]["low_ns"] <= OFFSET <= told["offset"]["high_ns"]
    assert "next: tracekit info" in ran.stderr
