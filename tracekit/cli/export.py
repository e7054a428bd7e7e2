"""`tracekit export`: a trace's events as Parquet, CSV, NDJSON, Perfetto, Chrome JSON or an Arrow stream."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tracekit.cli.output import next_command, stderr

__all__ = ["export"]


def export(
    trace: Annotated[Path, typer.Argument(help="The trace folder.")],
    out: Annotated[str, typer.Option("-o", "--out", help="The file; - is stdout.")] = "-",
    format: Annotated[  # noqa: A002
        str, typer.Option(help="parquet, csv, ndjson, perfetto, chrome, arrow (default: by suffix; - arrow).")
    ] = "",
    force: Annotated[bool, typer.Option("-f", "--force", help="Replace the file if it exists.")] = False,
) -> None:
    """Export a trace's events for other tools, streamed in time order."""
    from tracekit.datasets.exporters import export_trace

    name = export_trace(trace, out, format=format, force=force)
    if Path(out).is_file():
        stderr().print(f"{name}: {Path(out).stat().st_size:,} bytes in {out}", markup=False, highlight=False)
        next_command(f"tracekit info {trace}")
