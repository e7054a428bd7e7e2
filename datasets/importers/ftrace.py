"""ftrace text: what /sys/kernel/tracing/trace or trace_pipe give."""

from __future__ import annotations

from pathlib import Path

from tracekit.datasets.importers.blocks import open_bytes
from tracekit.datasets.importers.sink import Sink
from tracekit.datasets.importers.text_trace import read_text

__all__ = ["FTRACE_MAGIC", "read_ftrace"]

FTRACE_MAGIC = b"# tracer:"


def read_ftrace(path: Path | str, sink: Sink) -> None:
    """Read the text of a trace or trace_pipe file; `-` is stdin.

    The `trace` file's header says how many events the ring overwrote: they become a loss.
    """
    with open_bytes(path) as stream:
        read_text(stream, sink)
