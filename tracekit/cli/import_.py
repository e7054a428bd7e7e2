"""`tracekit import`: recordings of perf, trace-cmd, ftrace and damo, and tables, become traces."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from tracekit.cli.output import next_command, print_json, stderr

__all__ = ["import_"]


def import_(
    source: Annotated[str, typer.Argument(metavar="FILE", help="The recording; - is stdin.")],
    format: Annotated[  # noqa: A002
        str,
        typer.Option(
            help="perf, perf-data, trace-cmd, trace-dat, ftrace, damo, damo-raw, csv, parquet (or guessed)."
        ),
    ] = "",
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="The trace folder (default: FILE.trace here).")
    ] = None,
    mmu: Annotated[
        Literal["", "ept", "npt", "shadow"],
        typer.Option(help="How KVM mapped memory, where no line tells it.", show_default=False),
    ] = "",
    addresses: Annotated[
        Literal["gpa", "gva"], typer.Option(help="What DAMON's addresses are: physical or virtual.")
    ] = "gpa",
    column: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=SQL", help='A column from a table\'s columns: "ts_ns=time_us*1000".'),
    ] = None,
    memslot: Annotated[
        list[str] | None,
        typer.Option(metavar="GPA:SIZE:HVA", help="Where guest memory is in the VMM: 0:1G:0x7f0000000000."),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="A line that can't be read is an error.")] = False,
    force: Annotated[bool, typer.Option("-f", "--force", help="Replace the trace if it exists.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print what became of the file as JSON.")] = False,
) -> None:
    """Import a recording of another tool: losses stay losses, lines not understood are counted."""
    from tracekit.datasets.importers import import_trace, parse_options

    path = out or Path(f"{Path(source).stem if source != '-' else 'stdin'}.trace")
    options = parse_options(
        mmu=mmu, addresses=addresses, columns=column or [], memslots=memslot or [], strict=strict
    )
    with stderr().status(f"importing {source}"):
        report = import_trace(source, path, format=format, options=options, force=force)
    if json:
        print_json(report.to_json())
    for line in report.text():
        stderr().print(line, markup=False, highlight=False, soft_wrap=True)
    next_command(f"tracekit info {path}")
