"""tracekit demo: the main job on a live guest, in one command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tracekit.cli.output import next_command, print_json, stderr, stdout

__all__ = ["demo"]


def demo(
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FOLDER", help="Where to put it all.")] = Path(
        "demo"
    ),
    json: Annotated[bool, typer.Option("--json", help="Print the rows of the result as JSON.")] = False,
) -> None:
    """Record a real guest, replay what-ifs, print the table and write the report."""
    from tracekit.lab.demo import run_demo

    talk = stderr()
    with talk.status("starting") as status:

        def say(line: str) -> None:
            talk.print(line, markup=False, highlight=False)
            status.update(line)

        made = run_demo(out, say=say)
    if made.instead:
        talk.print(
            f"not live: {made.instead}.\nReplayed instead: a bundled trace, really recorded on another host.",
            style="yellow",
            markup=False,
            highlight=False,
        )
    if json:
        print_json(made.result.records())
    else:
        from tracekit.report.tables import ledger_table

        stdout().print(ledger_table(made.result.rows))
    talk.print(f"report: {made.report}", markup=False, highlight=False, soft_wrap=True)
    next_command(f"tracekit info {made.trace.path}")
