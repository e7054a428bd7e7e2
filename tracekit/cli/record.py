"""tracekit record: record what the memory of a VM really did."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tracekit.cli.output import next_command, print_json, stderr
from tracekit.cli.sizes import parse_size

__all__ = ["record"]


def record(
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="-- COMMAND…", help="The program to record, with its arguments."),
    ] = None,
    pid: Annotated[
        list[int] | None, typer.Option("-p", "--pid", help="Record a running process (can be repeated).")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="The trace folder (default: COMMAND.trace).")
    ] = None,
    duration: Annotated[
        float | None, typer.Option("-d", "--duration", metavar="SECONDS", help="Stop after so long.")
    ] = None,
    force: Annotated[bool, typer.Option("-f", "--force", help="Replace the trace if it exists.")] = False,
    buffer: Annotated[
        int,
        typer.Option(
            parser=parse_size,
            metavar="SIZE",
            show_default="32M",
            help="Ring between kernel and recorder (a power of 2).",
        ),
    ] = 32 << 20,
    json: Annotated[bool, typer.Option("--json", help="Print how it went as JSON.")] = False,
) -> None:
    """Record a VM: start it (-- COMMAND…) or attach to it (-p PID); Ctrl-C or its end finishes the trace."""
    from tracekit.probes.plan import RecordPlan
    from tracekit.probes.run import record as run

    name = Path(command[0]).name if command else f"pid-{pid[0]}" if pid else "record"
    plan = RecordPlan(
        out=out or Path(f"{name}.trace"),
        command=tuple(command or ()),
        pids=tuple(pid or ()),
        seconds=duration,
        force=force,
        ring_bytes=buffer,
    )
    report = run(plan)
    if json:
        print_json(report.to_json())
    console = stderr()
    for line in report.lines():
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    next_command(f"tracekit info {report.path}")
    raise typer.Exit(report.exit_code)
