"""`perf script` text, and perf.data through the perf tool.

Losses are in the text only with `perf script --show-lost-events`; process numbers only with -F …,pid,tid.
"""

from __future__ import annotations

from pathlib import Path

from tracekit.datasets.importers.blocks import open_bytes, tool_output
from tracekit.datasets.importers.sink import Sink
from tracekit.datasets.importers.text_trace import read_text

__all__ = ["PERF_DATA_MAGIC", "read_perf_data", "read_perf_script"]

PERF_DATA_MAGIC = b"PERFILE2"


def read_perf_script(path: Path | str, sink: Sink) -> None:
    """Read the text of `perf script`; `-` is stdin."""
    with open_bytes(path) as stream:
        read_text(stream, sink)


def read_perf_data(path: Path | str, sink: Sink) -> None:
    """Read a perf.data file; CapabilityError without the perf tool."""
    command = ["perf", "script", "-i", str(path), "--ns", "--show-lost-events", "--force"]
    with tool_output([*command, "-F", "comm,pid,tid,cpu,time,event,trace"], "linux-perf") as stream:
        read_text(stream, sink)
