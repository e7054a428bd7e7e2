"""Importers: recordings of other tools become traces; one file per tool, all behind `import_trace`."""

from __future__ import annotations

import difflib
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from tracekit.datasets.importers.damo import read_damo_json, read_damo_raw
from tracekit.datasets.importers.ftrace import FTRACE_MAGIC, read_ftrace
from tracekit.datasets.importers.options import parse_options
from tracekit.datasets.importers.perf_script import PERF_DATA_MAGIC, read_perf_data, read_perf_script
from tracekit.datasets.importers.sink import ImportOptions, ImportReport, Memslot, Sink
from tracekit.datasets.importers.tables import read_csv, read_parquet
from tracekit.datasets.importers.trace_cmd import TRACE_DAT_MAGIC, read_trace_cmd, read_trace_dat
from tracekit.errors import UsageError
from tracekit.trace import Meta, TraceWriter

__all__ = [
    "FORMATS",
    "Format",
    "ImportOptions",
    "ImportReport",
    "Memslot",
    "guess_format",
    "import_trace",
    "parse_options",
]


_PERF_LINE = re.compile(rb"\] +\d+\.\d+: +(?:\d+ +)?[\w-]+:[\w-]+:")


@dataclass(frozen=True)
class Format:
    """A file format: what it is, and the function that reads it into a sink."""

    about: str
    read: Callable[[Path | str, Sink], None]


FORMATS: dict[str, Format] = {
    "perf": Format("perf script text", read_perf_script),
    "perf-data": Format("perf.data, through the perf tool", read_perf_data),
    "trace-cmd": Format("trace-cmd report text", read_trace_cmd),
    "trace-dat": Format("trace.dat, through the trace-cmd tool", read_trace_dat),
    "ftrace": Format("text of tracefs: trace, trace_pipe", read_ftrace),
    "damo": Format("damo's JSON records, plain or compressed", read_damo_json),
    "damo-raw": Format("text of damo report access --raw_form", read_damo_raw),
    "csv": Format("a CSV table, with --column", read_csv),
    "parquet": Format("a Parquet table, with --column", read_parquet),
}
"""Every format by the name that `tracekit import --format` takes."""


def guess_format(path: Path | str) -> str:
    """Return the format that a file's first bytes or its name tell; UsageError when they don't.

    >>> guess_format("events.parquet")
    'parquet'
    """
    name = str(path)
    for suffix, kind in ((".csv", "csv"), (".parquet", "parquet"), (".dat", "trace-dat"), (".json", "damo")):
        if name.endswith(suffix):
            return kind
    if name != "-" and Path(name).is_file():
        with Path(name).open("rb") as file:
            head = file.read(4096)
        for magic, kind in (
            (PERF_DATA_MAGIC, "perf-data"),
            (TRACE_DAT_MAGIC, "trace-dat"),
            (FTRACE_MAGIC, "ftrace"),
            (b"cpus=", "trace-cmd"),
            (b"PAR1", "parquet"),
            (b"base_time_absolute:", "damo-raw"),
            (b"\x78\x9c", "damo"),
        ):
            if head.startswith(magic):
                return kind
        if _PERF_LINE.search(head):
            return "perf"
    raise UsageError(f"cannot tell the format of {path}", hint=f"--format {'|'.join(FORMATS)}")


def import_trace(
    source: Path | str,
    out: Path | str,
    *,
    format: str = "",  # noqa: A002
    options: ImportOptions | None = None,
    force: bool = False,
) -> ImportReport:
    """Turn a recording of another tool into the trace `out`; `source` "-" is stdin.

    `format` is a name of FORMATS ("" = guessed). Raises UsageError for a file or format that is not there,
    or that holds no event; DamagedError at the first bad line if `options.strict`; CapabilityError without
    the tool that the format needs. Nothing is left at `out` after an error.
    """
    _check(source)
    name = format or guess_format(source)
    if name not in FORMATS:
        near = difflib.get_close_matches(name, FORMATS, 1)
        raise UsageError(
            f"no format is called {name!r}", hint=f"--format {near[0] if near else '|'.join(FORMATS)}"
        )
    options = options or ImportOptions()
    report = ImportReport(source=str(source), format=name, path=str(out))
    meta = Meta(
        source="imported",
        tool_version=version("tracekit"),
        clock={"name": "that of the imported file"},
        command=["tracekit", "import", "--format", name, Path(source).name],
        notes=[f"imported from {FORMATS[name].about}"],
    )
    writer = TraceWriter(out, meta, force=force)
    try:
        sink = Sink(writer, report, options)
        FORMATS[name].read(source, sink)
        if not report.rows:
            raise UsageError(
                f"{source} has no event that belongs in a trace ({report.lines:,} lines read as {name})",
                hint=f"--format {'|'.join(FORMATS)}",
            )
        meta.extra["import"] = {
            key: value for key, value in report.to_json().items() if key not in ("path", "source")
        }
        writer.close()
    except BaseException:
        writer.abort("import failed")
        shutil.rmtree(out, ignore_errors=True)
        raise
    return report


def _check(source: Path | str) -> None:
    """Say what is wrong with a file before a reader or another tool stumbles over it."""
    if str(source) == "-":
        return
    path = Path(source)
    if not path.exists():
        raise UsageError(f"no file at {source}", hint="tracekit import - reads stdin")
    if path.is_dir():
        hint = f"tracekit info {source}" if (path / "meta.json").is_file() else f"ls {source}"
        raise UsageError(f"{source} is a folder, not a file", hint=hint)
    if path.is_file() and not path.stat().st_size:
        raise UsageError(f"{source} is empty", hint="record again, or name another file")
    if not os.access(path, os.R_OK):
        raise UsageError(f"cannot read {source}: permission denied", hint=f"ls -l {source}")
