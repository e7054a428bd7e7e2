"""`tracekit recover TRACE`: make a whole trace of what a crash left."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from tracekit.cli.output import inert, next_command, print_json, quoted, stderr, stdout

__all__ = ["recover"]


def recover(
    trace: Annotated[Path, typer.Argument(help="The trace folder.")],
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Close an unfinished or damaged trace; exit code 4 when something is missing, and what."""
    from tracekit.probes.marks import remove_left_pipe
    from tracekit.trace.recovery import recover as recover_trace

    report = recover_trace(trace)
    remove_left_pipe(trace)
    if json:
        print_json({**asdict(report), "whole": report.whole})
    else:
        _print_report(report.rows, report.from_unfinished, changed=report.changed)
    talk = stderr()
    for note in report.notes:
        talk.print(f"note: {inert(note)}", markup=False, highlight=False)
    for row in report.missing:
        count = "an unknown number of events" if row["lost"] is None else f"{row['lost']:,} events"
        text = f"missing: {count} from {row['t0_ns']} to {row['t1_ns']} ns: {inert(row['reason'])}"
        talk.print(text, style="red", markup=False, highlight=False)
    next_command(f"tracekit info {quoted(trace)}")
    if not report.whole:
        raise typer.Exit(4)


def _print_report(rows: int, from_unfinished: int, *, changed: bool) -> None:
    text = f"{rows:,} events are whole"
    if from_unfinished:
        text += f", {from_unfinished:,} of them out of unfinished or damaged parts"
    if not changed:
        text += "; nothing had to be done"
    stdout().print(text, highlight=False)
