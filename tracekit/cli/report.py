"""`tracekit report`: one self-contained HTML page for the person who decides about a host."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tracekit.cli.output import next_command, print_json, quoted, stderr

__all__ = ["report"]


def report(
    source: Annotated[Path, typer.Argument(metavar="TRACE|RESULT", help="A trace, or a replay's JSON.")],
    scenario: Annotated[
        list[str] | None,
        typer.Option("--scenario", "-s", metavar="NAME[,k=v…]", help="What to replay (repeatable)."),
    ] = None,
    replay: Annotated[bool, typer.Option(help="Replay a trace before reporting on it.")] = True,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="The page (default: NAME.html).")
    ] = None,
    figures: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also write each chart as SVG and PNG into DIR.")
    ] = None,
    dark: Annotated[bool, typer.Option("--dark", help="Draw --figures for a dark ground.")] = False,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace an existing page.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print what was written and what it says.")] = False,
) -> None:
    """Write an HTML report: what you would save, how sure that is, and charts of what memory did."""
    from tracekit.report.write import write_report

    written = write_report(
        source,
        scenario or None,
        replay=replay,
        output=output,
        figures_to=figures,
        mode="dark" if dark else "light",
        force=force,
    )
    if json:
        print_json(written.facts())
        return
    typer.echo(written.page)
    talk = stderr()
    for line in written.words():
        talk.print(line, markup=False, highlight=False)
    next_command(f"xdg-open {quoted(written.page)}")
