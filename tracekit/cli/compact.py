"""`tracekit compact TRACE -o OUT`: the same trace in about half the space."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from tracekit.cli.output import inert, next_command, print_json, quoted, stderr, stdout

__all__ = ["compact"]


def compact(
    trace: Annotated[Path, typer.Argument(help="The trace folder.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The compacted trace to write.")],
    force: Annotated[bool, typer.Option("-f", "--force", help="Replace OUT if it is a trace.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Rewrite a trace as Parquet grouped by vCPU: same events, about half the space."""
    from tracekit.trace.compaction import compact as compact_trace

    with stderr().status("compacting"):
        report = compact_trace(trace, out, force=force)
    if json:
        print_json(asdict(report))
    else:
        rows = max(report.rows, 1)
        before, after = report.bytes_before / rows, report.bytes_after / rows
        text = f"{inert(report.path)}: {report.rows:,} events, {before:.2f} -> {after:.2f} bytes per event"
        stdout().print(text, markup=False, highlight=False)
    next_command(f"tracekit info {quoted(out)}")
