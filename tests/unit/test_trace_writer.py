"""What a trace folder holds after writing: rows, order, rights, and what it refuses to overwrite."""

import json
import os
import stat
import zlib
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from tracekit.errors import FailedError, UsageError
from tracekit.trace import Meta, TraceWriter, events_batch, open_trace, recover
from tracekit.trace.schema import EVENTS, KINDS

MS = 1_000_000


def rows(ts, gfn=None, **more):
    return events_batch(
        ts_ns=ts, kind="ept_violation", gfn=np.arange(len(ts)) if gfn is None else gfn, **more
    )


def written(path, batches, **options):
    with TraceWriter(path, Meta(source="synthetic"), **options) as writer:
        for batch in batches:
            writer.append(batch)
    return open_trace(path)


def in_order(trace, **options):
    batches = list(trace.batches(**options))
    return pa.Table.from_batches(batches) if batches else EVENTS.empty_table()


def test_rows_come_back_as_they_were_and_polars_reads_the_parts(tmp_path):
    random = np.random.default_rng(1)
    n = 200_003
    ts = np.sort(random.integers(0, 2**40, n))
    batch = events_batch(
        ts_ns=ts,
        kind=random.integers(0, len(KINDS), n),
        gfn=random.integers(0, 2**52, n),
        tid=random.integers(0, 9, n),
        vcpu=random.integers(-3, 9, n),
        latency_ns=random.integers(0, 2**33, n),
        level=random.integers(1, 4, n),
        valid={"gfn": random.random(n) < 0.9, "level": random.random(n) < 0.5},
    )
    trace = written(tmp_path / "x.trace", [batch])
    assert in_order(trace).combine_chunks().equals(pa.Table.from_batches([batch]))
    assert [b.num_rows for b in trace.batches(batch_rows=70_000)] == [70_000, 70_000, 60_003]
    as_written = list(trace.batches(batch_rows=0))
    assert pa.Table.from_batches(as_written).combine_chunks().equals(pa.Table.from_batches([batch]))
    assert min(b.num_rows for b in as_written[:-1]) >= 1 << 14
    frame = pl.scan_ipc(f"{tmp_path}/x.trace/events/*.arrow").collect()
    assert frame.equals(trace.events.collect())
    assert frame["gfn"].to_list() == batch.column("gfn").to_pylist()
    assert isinstance(frame.schema["kind"], pl.Enum)
    assert list(frame.schema["kind"].categories) == list(KINDS)


def test_columns_come_in_the_order_asked_for(tmp_path):
    trace = written(tmp_path / "x.trace", [rows([5, 6])])
    assert [b.schema.names for b in trace.batches(["latency_ns", "gfn"])] == [["latency_ns", "gfn"]]
    with pytest.raises(UsageError, match="gfm"):
        list(trace.batches(["gfm"]))


def test_a_trace_without_events_opens(tmp_path):
    trace = written(tmp_path / "x.trace", [])
    assert trace.events.collect().height == 0
    assert trace.events.collect_schema().names() == EVENTS.names
    assert list(trace.batches()) == []
    assert trace.rows == 0
    assert trace.span_ns == 0
    assert trace.lost == 0
    assert pl.scan_ipc(f"{tmp_path}/x.trace/events/*.arrow").collect().height == 0


def test_disorder_inside_the_window_is_sorted_into_one_part(tmp_path):
    random = np.random.default_rng(2)
    ts = np.arange(300_000) * 1000
    jittered = ts[np.argsort(ts + random.integers(0, 40 * MS, len(ts)), kind="stable")]
    batches = [rows(piece, gfn=piece) for piece in np.array_split(jittered, 100)]
    trace = written(tmp_path / "x.trace", batches)
    assert len(trace.parts) == 1
    assert trace.meta.late_rows == 0
    table = in_order(trace)
    assert np.array_equal(table["ts_ns"].to_numpy(), ts)
    assert np.array_equal(table["gfn"].to_numpy(), ts)


def test_late_rows_get_their_own_part_and_are_merged_when_reading(tmp_path):
    path = tmp_path / "x.trace"
    with TraceWriter(path, Meta(source="synthetic")) as writer:
        for start in (0, 1000, 2000):
            writer.append(rows(np.arange(start, start + 1000) * MS))
            writer.append(rows(np.arange(start, start + 1000) * MS + 1))
            writer.flush(everything=True)
            writer.append(rows(np.arange(start + 100, start + 200) * MS + 2, gfn=np.full(100, 77)))
            writer.flush(everything=True)
    trace = open_trace(path)
    assert trace.meta.late_rows == 300
    assert len(trace.parts) == 2
    for part in sorted((path / "events").glob("*.arrow")):
        ts = pa.ipc.open_file(str(part)).read_all()["ts_ns"].to_numpy()
        assert (np.diff(ts.astype(np.int64)) >= 0).all()
    expected = np.sort(
        np.concatenate(
            [np.arange(3000) * MS, np.arange(3000) * MS + 1]
            + [np.arange(start + 100, start + 200) * MS + 2 for start in (0, 1000, 2000)]
        )
    )
    assert np.array_equal(in_order(trace)["ts_ns"].to_numpy(), expected)
    assert np.array_equal(trace.events.collect()["ts_ns"].to_numpy(), expected)
    assert in_order(trace)["gfn"].to_pylist().count(77) >= 300


def test_parts_rotate_by_size_and_the_manifest_tells_them(tmp_path):
    random = np.random.default_rng(3)
    batches = [
        rows(np.arange(at, at + 65_536), gfn=random.integers(0, 2**40, 65_536))
        for at in range(0, 655_360, 65_536)
    ]
    trace = written(tmp_path / "x.trace", batches, max_part_bytes=1 << 20)
    assert len(trace.parts) > 3
    assert trace.rows == 655_360
    for part in trace.parts:
        content = (tmp_path / "x.trace" / "events" / part.part).read_bytes()
        assert (len(content), f"{zlib.crc32(content):08x}") == (part.bytes, part.crc32)
        file = pa.ipc.open_file(content)
        assert (file.num_record_batches, file.read_all().num_rows) == (part.batches, part.rows)
        metadata = file.get_batch_with_custom_metadata(0)[1]
        assert metadata["seq"] == b"0"
        assert metadata["lost_so_far"] == b"0"
    assert np.array_equal(in_order(trace)["ts_ns"].to_numpy(), np.arange(655_360))


def test_side_tables_marks_and_meta(tmp_path):
    path = tmp_path / "x.trace"
    meta = Meta(
        source="recorded",
        host={"mmu_mode": "npt"},
        vms=[{"pid": 7, "argv": ["qemu"]}],
        extra={"colour": "red"},
    )
    with TraceWriter(path, meta) as writer:
        slot = {"vm": 0, "gpa": 0, "hva": 0x7000, "known_by": "ioctl"}
        writer.add_memslot(slot=0, size_bytes=4096, from_ns=10, **slot)
        writer.add_memslot(slot=1, size_bytes=4096, from_ns=11, **slot)
        writer.add_memslot(slot=0, size_bytes=0, from_ns=20, **slot)
        writer.add_memslot(slot=0, size_bytes=8192, from_ns=30, **slot)
        writer.add_sample(10, 0, "rss_bytes", 4096)
        writer.add_loss(1, 10, 20, 5, "ring full")
        assert writer.mark("boot", 15) == 0
        writer.append(rows([100, 200]))
    trace = open_trace(path)
    assert trace.memslots.select("slot", "size_bytes", "from_ns", "to_ns").rows() == [
        (0, 4096, 10, 20),
        (1, 4096, 11, None),
        (0, 8192, 30, None),
    ]
    assert trace.samples.rows() == [(10, 0, "rss_bytes", 4096.0)]
    assert trace.losses.rows() == [(1, 10, 20, 5, "ring full")]
    assert trace.lost == 5
    assert trace.meta.marks == [{"name": "boot", "ts_ns": 15}]
    assert (trace.meta.start_ns, trace.meta.stop_ns, trace.span_ns) == (100, 200, 100)
    assert trace.meta.extra == {"colour": "red"}
    assert trace.meta.host == {"mmu_mode": "npt"}
    assert json.loads((path / "meta.json").read_text())["colour"] == "red"
    assert sorted(p.name for p in path.iterdir()) == [
        "events",
        "losses.arrow",
        "manifest.jsonl",
        "memslots.arrow",
        "meta.json",
        "samples.arrow",
    ]


def test_a_loss_of_unknown_size_makes_the_sum_unknown(tmp_path):
    with TraceWriter(tmp_path / "x.trace", Meta()) as writer:
        writer.add_loss(None, 0, 1, 5, "ring full")
        writer.add_loss(None, 1, 2, None, "stopped")
        writer.append(rows([1]))
    trace = open_trace(tmp_path / "x.trace")
    assert trace.lost is None
    assert trace.losses["lost"].to_list() == [5, None]
    part = pa.ipc.open_file(str(tmp_path / "x.trace/events/00000.arrow"))
    assert part.get_batch_with_custom_metadata(0)[1]["lost_so_far"] == b"unknown"


def test_only_the_owner_may_read(tmp_path):
    os.umask(0)
    try:
        written(tmp_path / "x.trace", [rows([1])])
    finally:
        os.umask(0o022)
    for item in [tmp_path / "x.trace", *(tmp_path / "x.trace").rglob("*")]:
        assert stat.S_IMODE(item.stat().st_mode) == (0o700 if item.is_dir() else 0o600), item


@pytest.mark.skipif(os.getuid() != 0, reason="only root can hand files to another user")
def test_files_are_handed_to_the_invoking_user(tmp_path):
    written(tmp_path / "x.trace", [rows([1])], owner=(1234, 1235))
    for item in [tmp_path / "x.trace", *(tmp_path / "x.trace").rglob("*")]:
        assert (item.stat().st_uid, item.stat().st_gid) == (1234, 1235), item


def test_an_existing_trace_is_only_replaced_by_force(tmp_path):
    path = tmp_path / "x.trace"
    written(path, [rows([1])])
    with pytest.raises(UsageError, match="exists") as refused:
        TraceWriter(path, Meta())
    assert "-f" in refused.value.hint
    assert written(path, [rows([2, 3])], force=True).rows == 2
    assert [item.name for item in tmp_path.iterdir()] == ["x.trace"]


@pytest.mark.parametrize("what", ["file", "folder", "link", "trace with a stranger in it", "being written"])
def test_force_never_replaces_anything_else(tmp_path, what):
    path = tmp_path / "x.trace"
    other = None
    if what == "file":
        path.write_text("my thesis")
    elif what == "folder":
        path.mkdir()
        (path / "thesis.txt").write_text("my thesis")
    elif what == "link":
        written(tmp_path / "real.trace", [rows([1])])
        path.symlink_to(tmp_path / "real.trace")
    elif what == "being written":
        other = TraceWriter(path, Meta())
    else:
        written(path, [rows([1])])
        (path / "thesis.txt").write_text("my thesis")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError):
        TraceWriter(path, Meta(), force=True)
    assert sorted(tmp_path.rglob("*")) == before
    if other is not None:
        other.append(rows([1]))
        other.close()
        assert open_trace(path).rows == 1


def test_no_folder_to_put_it_in(tmp_path):
    with pytest.raises(UsageError, match="no folder"):
        TraceWriter(tmp_path / "a" / "x.trace", Meta())


def test_nothing_can_be_written_after_closing(tmp_path):
    writer = TraceWriter(tmp_path / "x.trace", Meta())
    assert writer.close() is writer.close()
    with pytest.raises(FailedError, match="closed"):
        writer.append(rows([1]))


def test_what_meta_learned_and_saved_outlives_a_crash(tmp_path):
    writer = TraceWriter(tmp_path / "x.trace", Meta(source="synthetic"))
    writer.append(rows([10, 20]))
    writer.meta.vms.append({"pid": 7, "vcpus": 2})
    writer.save_meta()
    assert not json.loads((tmp_path / "x.trace" / "meta.json").read_text())["finalised"]
    writer.meta.vms.append({"pid": 8, "vcpus": 1})  # too late
    writer.abort()
    assert recover(tmp_path / "x.trace").rows == 2
    assert [vm["pid"] for vm in open_trace(tmp_path / "x.trace").meta.vms] == [7]
    with pytest.raises(FailedError, match="aborted"):
        writer.save_meta()


def test_flush_tells_how_many_rows_are_safe(tmp_path):
    with TraceWriter(tmp_path / "x.trace", Meta()) as writer:
        writer.append(rows([0, 100 * MS]))
        assert writer.flush() == 1  # the younger one could still be overtaken
        assert writer.flush() == 2  # nothing came since: it won't be
        writer.append(rows([300 * MS, 310 * MS]))
        assert writer.flush(everything=True) == 4


def test_a_burst_inside_one_window_does_not_stay_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("tracekit.trace.writer._MOST_HELD_ROWS", 100_000)
    with TraceWriter(tmp_path / "x.trace", Meta()) as writer:
        for _ in range(10):
            writer.append(rows(np.arange(65_536)))
        assert writer.rows_durable >= 500_000
    trace = open_trace(tmp_path / "x.trace")
    assert np.array_equal(in_order(trace)["ts_ns"].to_numpy(), np.sort(np.tile(np.arange(65_536), 10)))


def test_symlinks_inside_a_trace_are_not_followed(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("{}")
    written(tmp_path / "x.trace", [rows([1])])
    meta = tmp_path / "x.trace" / "meta.json"
    meta.rename(tmp_path / "moved.json")
    meta.symlink_to(tmp_path / "moved.json")
    with pytest.raises(Exception, match=r"meta\.json cannot be read"):
        open_trace(tmp_path / "x.trace")
    assert Path(secret).read_text() == "{}"


def test_a_link_to_a_trace_can_be_read(tmp_path):
    written(tmp_path / "x.trace", [rows([1, 2])])
    (tmp_path / "latest.trace").symlink_to("x.trace")
    trace = open_trace(tmp_path / "latest.trace")
    assert trace.events.collect()["ts_ns"].to_list() == [1, 2]
    assert trace.lost == 0
    (tmp_path / "broken.trace").symlink_to("gone.trace")
    with pytest.raises(UsageError, match="no trace"):
        open_trace(tmp_path / "broken.trace")
