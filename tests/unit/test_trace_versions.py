"""Traces of an older tracekit read as today's; those of a newer one are refused by name."""

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from tracekit.errors import UsageError
from tracekit.trace import Meta, TraceWriter, compact, open_trace, recover
from tracekit.trace.schema import EVENTS, KINDS


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
