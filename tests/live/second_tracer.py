"""What another tracer saw meanwhile: the kernel's ftrace, an instance of its own, on the recorder's clock."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import polars as pl
import pytest

from tracekit.probes import tracefs

# comm-tid (tgid) [cpu] flags seconds.micros: event: words
_LINE = re.compile(r"-(\d+)\s+\(\s*([\d-]+)\)\s+\[\d+\]\s+\S+\s+(\d+)\.(\d{6}):\s+(\w+)[:(]\s*(.*)")


@dataclass
class SecondTracer:
    """`rows` after the with block: event, ts_ns (of whole microseconds), tid, tgid, text."""

    rows: pl.DataFrame

    def of(self, event: str) -> pl.DataFrame:
        return self.rows.filter(pl.col("event") == event)


def field(text: str, name: str) -> str:
    """Return the value of `name=value` or `name value` in an event's text."""
    found = re.search(rf"\b{name}[=: ]+([^\s,]+)", text)
    assert found, text
    return found[1]


@contextmanager
def second_tracer(*events: str, only: str = "", kilobytes: int = 65536) -> Iterator[SecondTracer]:
    """Trace `category/event`s of the whole machine while the block runs; fails if it lost any.

    `only`: a filter for all of them, in ftrace's words.
    """
    root = tracefs.tracefs_root()
    instance = root / "instances" / f"tracekit-test-{os.getpid()}"
    try:
        instance.mkdir()
    except OSError as error:
        pytest.skip(f"no tracefs instance can be made: {error}")
    tracer = SecondTracer(pl.DataFrame())
    try:
        (instance / "buffer_size_kb").write_text(str(kilobytes))
        (instance / "trace_clock").write_text("mono")
        (instance / "options" / "record-tgid").write_text("1")
        for event in events:
            if only:
                (instance / "events" / event / "filter").write_text(only)
            (instance / "events" / event / "enable").write_text("1")
        yield tracer
        (instance / "tracing_on").write_text("0")
        for cpu in (instance / "per_cpu").iterdir():
            assert "\noverrun: 0\n" in (cpu / "stats").read_text()
        tracer.rows = _rows((instance / "trace").read_text(errors="replace"))
    finally:
        (instance / "events" / "enable").write_text("0")
        instance.rmdir()


def _rows(text: str) -> pl.DataFrame:
    found = [match.groups() for match in map(_LINE.search, text.splitlines()) if match]
    rows = [
        (event, int(seconds) * 10**9 + int(micros) * 1000, int(tid), int(tgid.strip("-") or 0), words)
        for tid, tgid, seconds, micros, event, words in found
    ]
    columns = {"event": pl.String, "ts_ns": pl.Int64, "tid": pl.Int64, "tgid": pl.Int64, "text": pl.String}
    return pl.DataFrame(rows, schema=columns, orient="row")
