"""Chrome trace JSON (chrome://tracing, ui.perfetto.dev): a bar for each stall, samples as counters.

The format: "Trace Event Format", Google, 2016. Times are microseconds since the trace's start.
"""

from __future__ import annotations

import json
from typing import IO, Any

import polars as pl

from tracekit.datasets.exporters.tracks import ARGUMENTS, process_name, samples_by_vm, threads
from tracekit.trace import Trace

__all__ = ["write_chrome"]


def write_chrome(trace: Trace, stream: IO[bytes]) -> None:
    """Write one JSON object with `traceEvents`: rows with a latency as bars (X), others as instants (i)."""
    start_ns = trace.meta.start_ns or 0
    head = {"displayTimeUnit": "ns", "otherData": {"source": trace.meta.source, "tool": "tracekit"}}
    stream.write((json.dumps(head)[:-1] + ', "traceEvents": [\n').encode())
    lines = [json.dumps(event) for event in _names(trace)]
    for ts_ns, vm, metric, value in samples_by_vm(trace):
        where = {"name": metric, "ph": "C", "pid": vm, "tid": 0, "ts": (ts_ns - start_ns) / 1000}
        lines.append(json.dumps({**where, "args": {metric: value}}))
    stream.write(",\n".join(lines).encode())
    for batch in trace.batches():
        frame = pl.from_arrow(batch)
        assert isinstance(frame, pl.DataFrame)
        texts = _events(frame, start_ns)
        stream.write((",\n" + ",\n".join(texts)).encode())
    stream.write(b"\n]}\n")


def _names(trace: Trace) -> list[dict[str, Any]]:
    out = []
    for vm in range(len(trace.meta.vms)):
        where = {"name": "process_name", "ph": "M", "pid": vm, "tid": 0}
        out.append({**where, "args": {"name": process_name(trace, vm)}})
    for vm, tid, name in threads(trace):
        out.append({"name": "thread_name", "ph": "M", "pid": vm, "tid": tid, "args": {"name": name}})
    return out


def _events(frame: pl.DataFrame, start_ns: int) -> list[str]:
    stall = pl.col("latency_ns").is_not_null()
    begin_ns = pl.col("ts_ns").cast(pl.Int64) - pl.col("latency_ns").fill_null(0).cast(pl.Int64) - start_ns
    fields = [
        pl.col("kind").cast(pl.String).alias("name"),
        pl.lit("memory").alias("cat"),
        pl.when(stall).then(pl.lit("X")).otherwise(pl.lit("i")).alias("ph"),
        (begin_ns / 1000).round(3).alias("ts"),
        (pl.col("latency_ns") / 1000).round(3).alias("dur"),
        pl.col("vm").alias("pid"),
        pl.col("tid"),
        pl.struct(ARGUMENTS).alias("args"),
    ]
    return frame.select(text=pl.struct(fields).struct.json_encode())["text"].to_list()
