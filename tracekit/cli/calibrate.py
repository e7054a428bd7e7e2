"""tracekit calibrate: what memory operations cost on this host."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tracekit.cli.output import next_command, print_json, stderr, stdout

__all__ = ["calibrate"]


def calibrate(
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FILE", help="Write the profile.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=2, help="Samples of each cost.")] = 25,
    force: Annotated[bool, typer.Option("-f", "--force", help="Replace the file if it exists.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print everything measured as JSON.")] = False,
) -> None:
    """Measure this host's costs with a real guest, as a profile for `tracekit replay --profile`."""
    from tracekit.errors import UsageError
    from tracekit.lab.calibrate.profile import calibrate as measure

    if out and out.exists() and not force:
        raise UsageError(f"{out} exists", hint="--force replaces it")
    console = stderr()
    result = measure(rounds=rounds, say=lambda text: console.print(text, markup=False, highlight=False))
    if out:
        result.save(out, force=force)
    if json:
        print_json(result.to_json())
    else:
        from rich.table import Table

        from tracekit.report.units import human

        table = Table(title=f"Costs of {result.host['hostname']}", box=None)
        for column in ("cost", "median", "10 %", "90 %", "samples"):
            table.add_column(column, justify="left" if column == "cost" else "right")
        rows = list(result.costs.items())
        rows += [(f"{side} zeroes {human(size, 'bytes')}", one) for side, size, one in result.zeroing]
        for name, one in rows:
            table.add_row(name, *(human(ns, "ns") for ns in (one.ns, one.low, one.high)), str(one.samples))
        stdout().print(table)
    next_command(f"tracekit replay TRACE --profile {out or 'HOST.toml'} --scenario zeroing")
