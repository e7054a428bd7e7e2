"""A compacted trace is the same trace: rows, order, side tables; damage is found; nothing is half written."""

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from tracekit.errors import DamagedError, UsageError
from tracekit.trace import Meta, TraceWriter, compact, events_batch, open_trace, recover
from tracekit.trace.schema import EVENTS, KINDS
from tracekit.trace.summary import summarise


def make(path, n=50_021, seed=0):
    random = np.random.default_rng(seed)
    vcpu = random.integers(0, 4, n)
    ts = np.sort(random.integers(0, n // 2, n))  # many ties
    batch = events_batch(
        ts_ns=ts,
        kind=random.integers(0, len(KINDS), n),
        vm=random.integers(0, 2, n),
        vcpu=vcpu,
        tid=vcpu + 100,
        gfn=(vcpu.astype(np.int64) << 30) + np.arange(n),
        latency_ns=random.integers(0, 2**63, n),
        rip=np.arange(n),
        valid={"gfn": random.random(n) < 0.8, "vcpu": random.random(n) < 0.9, "rip": random.random(n) < 0.5},
    )
    with TraceWriter(path, Meta(source="synthetic", notes=["made here"])) as writer:
        writer.append(batch)
        writer.add_loss(0, 1, 2, 5, "ring full")
        writer.add_sample(1, 0, "rss_bytes", 3.0)
        writer.add_memslot(vm=0, slot=0, gpa=0, size_bytes=4096, hva=1, from_ns=0, known_by="synthetic")
    return batch


def table(trace, **options):
    return pa.Table.from_batches(list(trace.batches(**options))).combine_chunks()


@pytest.fixture
def pair(tmp_path, monkeypatch):
    monkeypatch.setattr("tracekit.trace.compaction.GROUP_ROWS", 4096)
    batch = make(tmp_path / "x.trace")
    report = compact(tmp_path / "x.trace", tmp_path / "y.trace")
    return open_trace(tmp_path / "x.trace"), open_trace(tmp_path / "y.trace"), batch, report


def test_the_same_rows_in_the_same_order_over_groups_and_parts(pair):
    before, after, batch, report = pair
    assert len(after.parts) == 13
    assert after.compacted
    assert table(after).equals(pa.Table.from_batches([batch]))
    assert table(after, columns=["gfn", "kind"]).equals(table(before, columns=["gfn", "kind"]))
    assert (report.rows, report.bytes_before, report.bytes_after) == (
        batch.num_rows,
        before.bytes,
        after.bytes,
    )


def test_polars_sees_the_same_frame_lazily(pair):
    before, after, _, _ = pair
    assert after.events.collect().equals(before.events.collect())
    for frame in (before.events, after.events):
        assert frame.collect_schema() == before.events.collect_schema()
    faults = pl.col("kind") == "ept_violation"
    query = [
        trace.events.filter(faults).group_by("vcpu").agg(pl.col("latency_ns").max()).sort("vcpu")
        for trace in (before, after)
    ]
    assert query[0].collect().equals(query[1].collect())
    assert after.events.head(7).collect().equals(before.events.head(7).collect())
    assert after.events.select("gfn").tail(7).collect().equals(before.events.select("gfn").tail(7).collect())


def test_every_other_tool_can_read_the_parts(pair, tmp_path):
    after = pair[1]
    frame = pl.scan_parquet(f"{tmp_path}/y.trace/events/*.parquet").sort("ts_ns", "tie").drop("tie").collect()
    assert frame.equals(after.events.collect())


def test_side_tables_losses_and_meta_come_along(pair):
    before, after, _, _ = pair
    for name in ("memslots", "samples", "losses"):
        assert getattr(before, name).equals(getattr(after, name))
    assert after.lost == 5
    assert (after.meta.source, after.meta.rows, after.meta.parts) == ("synthetic", before.meta.rows, 13)
    assert after.meta.notes[0] == "made here"
    assert "compacted from x.trace" in after.meta.notes[1]
    first, second = summarise(before).to_dict(), summarise(after).to_dict()
    same = set(first) - {"path", "bytes", "bytes_per_event", "parts", "notes"}
    assert {k: first[k] for k in same} == {k: second[k] for k in same}


def test_realistic_events_shrink(tmp_path):
    random = np.random.default_rng(1)
    n = 400_000
    vcpu = random.integers(0, 4, n)
    runs = np.cumsum(random.random(n) < 0.1)
    gfn = (vcpu.astype(np.int64) << 20) + np.arange(n) // 4 + random.permutation(n)[runs % n] // 64 * 64
    latency = random.lognormal(8, 0.4, n).astype(np.int64)
    batch = events_batch(
        ts_ns=np.cumsum(random.integers(500, 4000, n)),
        kind="ept_violation",
        vcpu=vcpu,
        tid=vcpu + 9,
        gfn=gfn,
        level=1,
        access=2,
        latency_ns=latency,
    )
    with TraceWriter(tmp_path / "x.trace", Meta()) as writer:
        writer.append(batch)
    report = compact(tmp_path / "x.trace", tmp_path / "y.trace")
    assert report.bytes_after < 0.8 * report.bytes_before


def test_an_empty_trace(tmp_path):
    TraceWriter(tmp_path / "x.trace", Meta()).close()
    compact(tmp_path / "x.trace", tmp_path / "y.trace")
    trace = open_trace(tmp_path / "y.trace")
    assert list(trace.batches()) == []
    assert trace.events.collect().shape == (0, len(EVENTS))


def test_every_flipped_byte_is_found(pair):
    _, after, _, _ = pair
    path = after.path / "events" / "00001.parquet"
    content = path.read_bytes()
    for at in [*range(0, len(content), 997), len(content) - 1, len(content) - 6, len(content) - 300]:
        flipped = bytearray(content)
        flipped[at] ^= 16
        path.write_bytes(flipped)
        with pytest.raises(DamagedError, match=r"00001\.parquet"):
            table(open_trace(after.path))
        with pytest.raises(DamagedError, match=r"00001\.parquet"):
            open_trace(after.path).events.collect()
    path.write_bytes(content[:-10])
    with pytest.raises(DamagedError, match="bytes instead of"):
        open_trace(after.path)


def test_it_replaces_nothing_but_traces_and_leaves_nothing_half_done(tmp_path):
    make(tmp_path / "x.trace")
    with pytest.raises(UsageError, match="itself"):
        compact(tmp_path / "x.trace", tmp_path / "x.trace", force=True)
    make(tmp_path / "y.trace", n=11)
    with pytest.raises(UsageError, match="exists"):
        compact(tmp_path / "x.trace", tmp_path / "y.trace")
    compact(tmp_path / "x.trace", tmp_path / "y.trace", force=True)
    assert open_trace(tmp_path / "y.trace").compacted
    (tmp_path / "text").write_text("mine")
    with pytest.raises(UsageError):
        compact(tmp_path / "x.trace", tmp_path / "text", force=True)
    content = bytearray((tmp_path / "x.trace/events/00000.arrow").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "x.trace/events/00000.arrow").write_bytes(content)
    with pytest.raises(DamagedError):
        compact(tmp_path / "x.trace", tmp_path / "z.trace")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["text", "x.trace", "y.trace"]


def test_a_compacted_trace_can_be_compacted_again(pair, tmp_path):
    compact(pair[1].path, tmp_path / "z.trace")
    assert table(open_trace(tmp_path / "z.trace")).equals(table(pair[0]))


def test_recover_leaves_a_whole_one_alone_and_counts_exactly_what_a_ruined_file_held(pair):
    _, after, batch, _ = pair
    report = recover(after.path)
    assert (report.changed, report.whole, report.rows) == (False, True, batch.num_rows)
    part = after.path / "events" / "00003.parquet"
    part.write_bytes(part.read_bytes()[:-100] + bytes(100))
    report = recover(after.path)
    assert (report.rows, report.lost) == (batch.num_rows - 4096, 5 + 4096)
    trace = open_trace(after.path)
    whole = pa.Table.from_batches([batch])
    assert table(trace).equals(
        pa.concat_tables([whole.slice(0, 3 * 4096), whole.slice(4 * 4096)]).combine_chunks()
    )
    assert trace.events.collect().height == report.rows
    line = after.parts[3]
    assert trace.losses.rows()[1] == (
        None,
        line.first_ts_ns,
        line.last_ts_ns,
        4096,
        "damaged part 00003: its checksum does not match",
    )
    assert part.with_name("00003.parquet.damaged").exists()
    assert recover(after.path).changed is False


def test_recover_of_one_that_lost_its_manifest(pair):
    _, after, batch, _ = pair
    (after.path / "manifest.jsonl").unlink()
    (after.path / "events" / "00012.parquet").unlink()
    report = recover(after.path)
    assert report.rows == 12 * 4096
    assert report.lost == 5 + batch.num_rows - 12 * 4096
    assert table(open_trace(after.path)).equals(pa.Table.from_batches([batch.slice(0, 12 * 4096)]))
