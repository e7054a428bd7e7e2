"""Exporters: a trace's events for other tools; one file per format, all behind `export_trace`."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tracekit.datasets.exporters.arrow_stream import write_arrow_stream
from tracekit.datasets.exporters.chrome import write_chrome
from tracekit.datasets.exporters.parquet import write_parquet
from tracekit.datasets.exporters.perfetto import write_perfetto
from tracekit.datasets.exporters.target import output_bytes
from tracekit.datasets.exporters.text import write_csv, write_ndjson
from tracekit.errors import UsageError
from tracekit.trace import Trace, open_trace

__all__ = ["EXPORT_FORMATS", "ExportFormat", "export_trace", "format_of"]


@dataclass(frozen=True)
class ExportFormat:
    """A format: what it is, the suffix that tells it, whether it is binary, what writes it."""

    about: str
    suffix: str
    binary: bool
    write: Callable[[Trace, IO[bytes]], None]


EXPORT_FORMATS: dict[str, ExportFormat] = {
    "arrow": ExportFormat("an Arrow IPC stream", ".arrows", True, write_arrow_stream),
    "parquet": ExportFormat("Parquet, time-ordered and delta-encoded", ".parquet", True, write_parquet),
    "csv": ExportFormat("CSV with a header line", ".csv", False, write_csv),
    "ndjson": ExportFormat("one JSON object a line", ".ndjson", False, write_ndjson),
    "perfetto": ExportFormat("Perfetto's format, for ui.perfetto.dev", ".pftrace", True, write_perfetto),
    "chrome": ExportFormat("Chrome trace JSON", ".json", False, write_chrome),
}
"""Every format by the name that `tracekit export --format` takes."""


def format_of(out: Path | str) -> str:
    """Return the format that a file's suffix tells; `-` is an Arrow stream; UsageError if none does.

    >>> format_of("x.parquet"), format_of("-")
    ('parquet', 'arrow')
    """
    if str(out) == "-":
        return "arrow"
    for name, known in EXPORT_FORMATS.items():
        if str(out).endswith(known.suffix):
            return name
    raise UsageError(f"cannot tell the format of {out}", hint=f"--format {'|'.join(EXPORT_FORMATS)}")


def export_trace(trace: Path | str, out: Path | str, *, format: str = "", force: bool = False) -> str:  # noqa: A002
    """Write a trace's events to `out` ("-" = stdout) and return the format's name.

    Streams: memory stays at a few batches. Raises UsageError for an unknown format and a file that exists,
    DamagedError for a trace that is not what was written, CapabilityError without a package that is needed.
    """
    name = format or format_of(out)
    if name not in EXPORT_FORMATS:
        near = difflib.get_close_matches(name, EXPORT_FORMATS, 1)
        raise UsageError(
            f"no export format is called {name!r}",
            hint=f"--format {near[0] if near else '|'.join(EXPORT_FORMATS)}",
        )
    opened = open_trace(trace)
    with output_bytes(out, binary=EXPORT_FORMATS[name].binary, force=force) as stream:
        EXPORT_FORMATS[name].write(opened, stream)
    return name
