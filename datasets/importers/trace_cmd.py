"""`trace-cmd report` text, and trace.dat through the trace-cmd tool (which also knows its plugins)."""

from __future__ import annotations

from pathlib import Path

from tracekit.datasets.importers.blocks import open_bytes, tool_output
from tracekit.datasets.importers.sink import Sink
from tracekit.datasets.importers.text_trace import read_text

__all__ = ["TRACE_DAT_MAGIC", "read_trace_cmd", "read_trace_dat"]

TRACE_DAT_MAGIC = b"\x17\x08\x44tracing"


def read_trace_cmd(path: Path | str, sink: Sink) -> None:
    """Read the text of `trace-cmd report`; `-` is stdin. With `report -t` times are in nanoseconds."""
    with open_bytes(path) as stream:
        read_text(stream, sink)


def read_trace_dat(path: Path | str, sink: Sink) -> None:
    """Read a trace.dat file; CapabilityError without the trace-cmd tool."""
    with tool_output(["trace-cmd", "report", "-t", "-i", str(path)], "trace-cmd") as stream:
        read_text(stream, sink)
