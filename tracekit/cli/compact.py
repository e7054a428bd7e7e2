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
    sample: Annotated[
        float | None,
        typer.Option(metavar="RATE", help="Keep this share of the guest's 2 MiB blocks (by a hash)."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Which blocks --sample keeps.")] = 0,
    rebase: Annotated[
        bool, typer.Option("--rebase", help="Take out names, command lines and real addresses.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Rewrite a trace as Parquet grouped by vCPU: same events, about half the space."""
    from tracekit.trace.compaction import compact as compact_trace

    with stderr().status("compacting"):
        report = compact_trace(trace, out, force=force, sample=sample, seed=seed, rebase=rebase)
    if json:
        print_json(asdict(report))
    else:
        before = report.bytes_before / max(report.rows_before, 1)
        after = report.bytes_after / max(report.rows, 1)
        kept = f" of {report.rows_before:,}" if sample else ""
        text = (
            f"{inert(report.path)}: {report.rows:,}{kept} events, {before:.2f} -> {after:.2f} bytes per event"
        )
        stdout().print(text, markup=False, highlight=False)
    next_command(f"tracekit info {quoted(out)}")
