"""Traces of an older tracekit read as today's; those of a newer one are refused by name."""

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from tracekit.errors import UsageError
from tracekit.trace import Meta, TraceWriter, compact, open_trace, recover
from tracekit.trace.schema import EVENTS, KINDS, SCHEMA_VERSION

STORED_TRACES = Path(__file__).with_name("stored_traces")


def write_with_kinds(path, kinds, monkeypatch):
    """Write one event of each of `kinds` as a tracekit would that knew exactly those."""
    dictionary = pa.array(kinds, pa.string())
    metadata = {"_PL_ENUM_VALUES2": "".join(f"{len(kind)};{kind}" for kind in kinds)}
    schema = EVENTS.set(1, EVENTS.field("kind").with_metadata(metadata))
    n = len(kinds)
    columns = [
        pa.nulls(n, f.type) if f.nullable else pa.array(np.arange(n), f.type)
        for f in EVENTS
        if f.name != "kind"
    ]
    columns.insert(1, pa.DictionaryArray.from_arrays(pa.array(range(n), pa.uint8()), dictionary))
    with monkeypatch.context() as patch:
        patch.setattr("tracekit.trace.part.EVENTS", schema)
        patch.setattr("tracekit.trace.writer.check_batch", lambda batch: batch)
        with TraceWriter(path, Meta()) as writer:
            writer.append(pa.RecordBatch.from_arrays(columns, schema=schema))


def test_fewer_kinds_read_as_todays(tmp_path, monkeypatch):
    write_with_kinds(tmp_path / "old.trace", KINDS[:20], monkeypatch)
    compact(tmp_path / "old.trace", tmp_path / "small.trace")
    for name in ("old.trace", "small.trace"):
        trace = open_trace(tmp_path / name)
        frame = trace.events.collect()
        assert frame.schema["kind"] == pl.Enum(KINDS)
        assert frame["kind"].to_list() == list(KINDS[:20])
        assert frame.filter(pl.col("kind") == "mark").height == 0
        assert pa.Table.from_batches(trace.batches())["kind"].to_pylist() == list(KINDS[:20])
        assert recover(tmp_path / name).whole


def test_more_kinds_are_refused(tmp_path, monkeypatch):
    write_with_kinds(tmp_path / "new.trace", (*KINDS, "telepathy"), monkeypatch)
    trace = open_trace(tmp_path / "new.trace")
    with pytest.raises(UsageError, match="newer tracekit"):
        trace.events.collect()
    with pytest.raises(UsageError, match="newer tracekit"):
        list(trace.batches())


# Recorded by the first tracekit that wrote the version: a guest of 211 random pages on two vCPUs and 31 added
# ones, whose 243 faults KVM counted too (`pf_taken`). What its events are was summed up that day.
STORED = {
    "schema-1.trace": {
        "kinds": {"host_fault": 8185, "madvise": 6, "memslot": 3, "ept_violation": 243},
        "sums": {"gfn": 164_197, "gva": 665_186_304, "latency_ns": 45_043_643},
        "last_ns": 26_104_432_540_107,
    }
}


def test_every_version_ever_written_has_a_stored_trace():
    assert sorted(STORED) == sorted(path.name for path in STORED_TRACES.iterdir())
    versions = {
        json.loads((STORED_TRACES / name / "meta.json").read_text())["schema_version"] for name in STORED
    }
    assert versions == set(range(1, SCHEMA_VERSION + 1))


@pytest.mark.parametrize("name", STORED)
def test_a_stored_trace_reads_as_on_the_day_it_was_recorded(name, tmp_path):
    path, told = tmp_path / name, STORED[name]
    shutil.copytree(STORED_TRACES / name, path)
    assert recover(path).changed is False
    compact(path, tmp_path / "small.trace")
    for source in (path, tmp_path / "small.trace"):
        trace = open_trace(source)
        trace.verify()
        events = trace.events.collect()
        assert dict(events.group_by("kind").len().cast({"kind": pl.String}).rows()) == told["kinds"]
        assert {column: events[column].sum() for column in told["sums"]} == told["sums"]
        assert events["ts_ns"][-1] == told["last_ns"]
        assert (trace.lost, trace.memslots.height) == (0, 3)
        assert pa.Table.from_batches(trace.batches()).num_rows == events.height
