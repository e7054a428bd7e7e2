"""Exports, read back with other people's readers: the same events, in time order."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracekit.datasets.exporters import EXPORT_FORMATS, export_trace, format_of
from tracekit.datasets.exporters.shapes import Shape, joined
from tracekit.datasets.synthetic import GENERATORS
from tracekit.datasets.synthetic.make import make_trace
from tracekit.errors import CapabilityError, FailedError, UsageError
from tracekit.trace import Meta, Trace, TraceWriter, events_batch, open_trace

ROWS = 1_009


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    path = tmp_path_factory.mktemp("export") / "fleet.trace"
    make_trace(GENERATORS["fleet"](events=ROWS, size=5, seed=3), path)
    return open_trace(path)


@pytest.fixture(scope="module")
def events(trace: Trace) -> pl.DataFrame:
    return trace.events.cast({"kind": pl.String}).collect()


def same(got: pl.DataFrame, events: pl.DataFrame) -> bool:
    return got.cast(dict(events.schema)).equals(events)


def test_parquet_holds_the_events_delta_encoded_and_sorted(
    trace: Trace, events: pl.DataFrame, tmp_path: Path
) -> None:
    out = tmp_path / "x.parquet"
    assert export_trace(trace.path, out) == "parquet"
    assert same(pl.read_parquet(out), events)
    file = pq.ParquetFile(out, page_checksum_verification=True)
    assert file.read().num_rows == events.height
    group = file.metadata.row_group(0)
    by_name = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    assert "DELTA_BINARY_PACKED" in by_name["ts_ns"].encodings
    assert "DELTA_BINARY_PACKED" in by_name["gfn"].encodings
    assert [s.column_index for s in group.sorting_columns] == [0]
    meta = Meta.from_json(file.schema_arrow.metadata[b"tracekit"].decode())
    assert meta == trace.meta


def test_duckdb_reads_the_parquet_in_order(trace: Trace, events: pl.DataFrame, tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    out = tmp_path / "x.parquet"
    export_trace(trace.path, out)
    with duckdb.connect() as connection:
        table = connection.read_parquet(str(out))
        assert same(pl.from_arrow(table.to_arrow_table()), events)  # type: ignore[arg-type]
        by_kind = connection.sql(
            f"select kind, sum(latency_ns)::bigint from '{out}' group by kind"
        ).fetchall()
    expected = events.group_by("kind").agg(pl.col("latency_ns").sum())
    assert {kind: total or 0 for kind, total in by_kind} == dict(expected.select("kind", "latency_ns").rows())


def test_csv_and_ndjson_hold_the_events(trace: Trace, events: pl.DataFrame, tmp_path: Path) -> None:
    export_trace(trace.path, tmp_path / "x.csv")
    assert same(pl.read_csv(tmp_path / "x.csv", schema=dict(events.schema)), events)
    assert pacsv.read_csv(tmp_path / "x.csv").num_rows == events.height
    export_trace(trace.path, tmp_path / "x.ndjson")
    lines = [json.loads(line) for line in (tmp_path / "x.ndjson").read_text().splitlines()]
    assert lines == events.to_dicts()


def test_an_arrow_stream_goes_down_a_pipe(trace: Trace, events: pl.DataFrame) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tracekit", "export", str(trace.path)],
        capture_output=True,
        check=True,
        timeout=60,
    )
    table = pa.ipc.open_stream(io.BytesIO(done.stdout)).read_all()
    got = pl.from_arrow(table)
    assert isinstance(got, pl.DataFrame)
    assert same(got.cast({"kind": pl.String}), events)
    assert Meta.from_json(table.schema.metadata[b"tracekit"].decode()).source == "synthetic"


def test_a_reader_that_goes_away_is_no_error(trace: Trace) -> None:
    command = f"{sys.executable} -m tracekit export {trace.path} --format ndjson | head -n 1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False, timeout=60
    )
    assert json.loads(done.stdout)["ts_ns"] == trace.meta.start_ns
    assert "Traceback" not in done.stderr
    assert done.returncode == 0, done.stderr


def test_chrome_json_has_a_bar_for_each_stall(trace: Trace, events: pl.DataFrame, tmp_path: Path) -> None:
    export_trace(trace.path, tmp_path / "x.json")
    shown = json.loads((tmp_path / "x.json").read_text())["traceEvents"]
    bars = [event for event in shown if event["ph"] == "X"]
    stalls = events.filter(pl.col("latency_ns").is_not_null())
    start = trace.meta.start_ns
    assert start is not None
    assert [(b["name"], b["pid"], b["tid"], b["dur"]) for b in bars] == [
        (kind, vm, tid, latency / 1000)
        for kind, vm, tid, latency in stalls.select("kind", "vm", "tid", "latency_ns").iter_rows()
    ]
    ends = [round((b["ts"] + b["dur"]) * 1000) + start for b in bars]
    assert ends == stalls["ts_ns"].to_list()
    assert sum(event["ph"] == "i" for event in shown) == events.height - stalls.height
    assert {e["args"]["name"] for e in shown if e["name"] == "process_name"} == {
        f"vm {vm}" for vm in range(5)
    }


def test_perfetto_is_read_back_by_its_own_classes(trace: Trace, events: pl.DataFrame, tmp_path: Path) -> None:
    protos = pytest.importorskip("perfetto.protos.perfetto.trace.perfetto_trace_pb2")
    export_trace(trace.path, tmp_path / "x.pftrace")
    shown = protos.Trace()
    shown.ParseFromString((tmp_path / "x.pftrace").read_bytes())
    tracks = {
        p.track_descriptor.uuid: p.track_descriptor for p in shown.packet if p.HasField("track_descriptor")
    }
    packets = [p for p in shown.packet if p.HasField("track_event")]
    kinds = protos.TrackEvent
    begins = [p for p in packets if p.track_event.type == kinds.TYPE_SLICE_BEGIN]
    ends = [p for p in packets if p.track_event.type == kinds.TYPE_SLICE_END]
    instants = [p for p in packets if p.track_event.type == kinds.TYPE_INSTANT]
    stalls = events.filter(pl.col("latency_ns").is_not_null())
    assert [p.timestamp for p in ends] == stalls["ts_ns"].to_list()
    assert [p.timestamp for p in begins] == (stalls["ts_ns"] - stalls["latency_ns"]).to_list()
    assert [p.track_event.name for p in begins] == stalls["kind"].to_list()
    assert len(instants) == events.height - stalls.height
    assert [tracks[p.track_event.track_uuid].thread.tid for p in begins] == stalls["tid"].to_list()
    assert all(tracks[t.parent_uuid].HasField("process") for t in tracks.values() if t.HasField("thread"))
    shown_details = [
        {a.name: a.uint_value for a in p.track_event.debug_annotations}
        for p in packets
        if p.track_event.type != kinds.TYPE_SLICE_END
    ]
    details = events.select("gfn", "pages", "level", "access", "flags", "hva", "gva", "rip", "arg").to_dicts()
    assert shown_details == [{k: v for k, v in row.items() if v is not None} for row in details]


NUMBERS = st.one_of(st.integers(0, 300), st.integers(0, (1 << 64) - 1))


@given(st.lists(st.tuples(NUMBERS, NUMBERS, st.booleans()), min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_messages_made_in_bulk_are_those_made_one_by_one(rows: list[tuple[int, int, bool]]) -> None:
    protos = pytest.importorskip("perfetto.protos.perfetto.trace.perfetto_trace_pb2")

    def one(both: bool, numbers: Mapping[str, int]) -> bytes:
        times = [numbers["x"], numbers["y"]] if both else [numbers["x"]]
        packets = [protos.TracePacket(timestamp=t, trusted_packet_sequence_id=7) for t in times]
        return bytes(protos.Trace(packet=packets).SerializeToString())

    parts = []
    for both in (True, False):
        at = [i for i, row in enumerate(rows) if row[2] is both]
        if at:
            numbers = {name: np.array([rows[i][j] for i in at], np.uint64) for j, name in enumerate("xy")}
            numbers = numbers if both else {"x": numbers["x"]}
            parts.append((np.array(at), Shape.of(partial(one, both), numbers).filled(numbers)))
    made, expected = protos.Trace(), protos.Trace()
    made.ParseFromString(joined(parts))
    expected.ParseFromString(b"".join(one(both, {"x": x, "y": y}) for x, y, both in rows))
    assert made == expected


def test_samples_become_counters(tmp_path: Path) -> None:
    protos = pytest.importorskip("perfetto.protos.perfetto.trace.perfetto_trace_pb2")
    path = tmp_path / "s.trace"
    with TraceWriter(path, Meta(source="synthetic", vms=[{"pid": 7, "argv": ["/usr/bin/qemu"]}])) as writer:
        writer.append(events_batch(ts_ns=[50], kind="map", gfn=[1]))
        writer.add_sample(20, 0, "rss_bytes", 4096.0)
        writer.add_sample(10, 0, "rss_bytes", 2048.0)
    export_trace(path, tmp_path / "x.json")
    shown = json.loads((tmp_path / "x.json").read_text())["traceEvents"]
    counters = [event for event in shown if event["ph"] == "C"]
    assert [(c["name"], c["args"]["rss_bytes"]) for c in counters] == [
        ("rss_bytes", 2048.0),
        ("rss_bytes", 4096.0),
    ]
    assert any(event["args"].get("name") == "vm 0 qemu" for event in shown)
    export_trace(path, tmp_path / "x.pftrace")
    trace = protos.Trace()
    trace.ParseFromString((tmp_path / "x.pftrace").read_bytes())
    values = [p.track_event.double_counter_value for p in trace.packet if p.track_event.type == 4]
    assert values == [2048.0, 4096.0]


@pytest.mark.parametrize("name", EXPORT_FORMATS)
def test_a_trace_without_events_exports(name: str, tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "empty.trace", Meta(source="synthetic")):
        pass
    out = tmp_path / f"x{EXPORT_FORMATS[name].suffix}"
    assert format_of(out) == name
    export_trace(tmp_path / "empty.trace", out)
    if name == "chrome":
        assert json.loads(out.read_text())["traceEvents"] == []


def test_what_is_there_is_not_overwritten_and_what_fails_is_not_left(trace: Trace, tmp_path: Path) -> None:
    out = tmp_path / "x.csv"
    out.write_text("mine")
    with pytest.raises(UsageError, match="exists"):
        export_trace(trace.path, out)
    assert out.read_text() == "mine"
    export_trace(trace.path, out, force=True)
    assert out.stat().st_size > 1000
    with pytest.raises(UsageError, match="no folder"):
        export_trace(trace.path, tmp_path / "no" / "x.csv")
    with pytest.raises(UsageError, match="cannot tell the format"):
        export_trace(trace.path, tmp_path / "x.bin")
    with pytest.raises(UsageError, match="no export format is called") as caught:
        export_trace(trace.path, tmp_path / "x.bin", format="parqet")
    assert "parquet" in caught.value.hint
    assert sorted(file.name for file in tmp_path.iterdir()) == ["x.csv"]


@pytest.mark.parametrize("name", ["csv", "ndjson", "parquet", "chrome"])
def test_a_device_is_written_to_and_never_replaced(name: str, trace: Trace, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.symlink_to("/dev/full")
    with pytest.raises(FailedError, match="No space left on device") as caught:
        export_trace(trace.path, full, format=name, force=True)
    assert caught.value.hint
    assert Path("/dev/full").is_char_device()
    export_trace(trace.path, "/dev/null", format=name)
    command = [sys.executable, "-m", "tracekit", "export", str(trace.path), "--format", name]
    with Path("/dev/full").open("wb") as nowhere:
        done = subprocess.run(command, stdout=nowhere, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert "cannot write to stdout: No space left on device" in done.stderr


def test_without_the_perfetto_package_it_is_said_how_to_get_it(
    trace: Trace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "perfetto.protos.perfetto.trace", None)
    with pytest.raises(CapabilityError, match="perfetto") as caught:
        export_trace(trace.path, tmp_path / "x.pftrace")
    assert caught.value.hint == "pip install 'tracekit[perfetto]'"
    assert not list(tmp_path.iterdir())
