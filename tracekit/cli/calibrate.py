"""tracekit calibrate: what memory operations cost on this host."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tracekit.cli.output import next_command, print_json, refuse_output, stderr, stdout

__all__ = ["calibrate"]


def calibrate(
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FILE", help="Write the profile.")
    ] = None,
    chart: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw how long zeroing takes: FILE.svg, .png, .html or .json."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=2, help="Samples of each cost.")] = 25,
    force: Annotated[bool, typer.Option("-f", "--force", help="Replace the file if it exists.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print everything measured as JSON.")] = False,
) -> None:
    """Measure this host's costs with a real guest, as a profile for `tracekit replay --profile`."""
    from tracekit.errors import UsageError
    from tracekit.lab.calibrate.profile import calibrate as measure

    refuse_output(out, force=force)
    refuse_output(chart, force=True)
    if chart and chart.suffix not in (".svg", ".png", ".html", ".json"):
        raise UsageError(f"a chart can't be {chart.name}", hint="--chart zeroing.svg")
    console = stderr()
    result = measure(rounds=rounds, say=lambda text: console.print(text, markup=False, highlight=False))
    if out:
        result.save(out, force=force)
    if chart:
        from tracekit.report.zeroing import zeroing_chart

        zeroing_chart(result.to_json()["zeroing"]).save(chart)
    if json:
        print_json(result.to_json())
    else:
        from rich.table import Table

        from tracekit.report.units import human

        table = Table(title=f"Costs of {result.host['hostname']}", box=None)
        for column in ("cost", "median", "10 %", "90 %", "samples", "fit", "D"):
            table.add_column(column, justify="left" if column in ("cost", "fit") else "right")
        rows = list(result.costs.items())
        rows += [(f"{side} zeroes {human(size, 'bytes')}", one) for side, size, one in result.zeroing]
        for name, one in rows:
            fit = (one.fit.family, f"{one.fit.ks:.2f}") if one.fit else ("", "")
            times = (human(ns, "ns") for ns in (one.ns, one.low, one.high))
            table.add_row(name, *times, str(one.samples), *fit)
        stdout().print(table)
    next_command(f"tracekit replay TRACE --profile {out or 'HOST.toml'} --scenario zeroing")
