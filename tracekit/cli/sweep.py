"""tracekit sweep: one scenario over many parameter values."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tracekit.cli.output import next_command, print_json, quoted, stderr, stdout

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tracekit.replay import Result

__all__ = ["sweep"]


def sweep(
    trace: Annotated[Path, typer.Argument(help="The trace folder.")],
    scenario: Annotated[
        str, typer.Option("--scenario", "-s", metavar="NAME|FILE.toml", help="The scenario to vary.")
    ],
    vary: Annotated[
        list[str],
        typer.Option(
            metavar="P=LOW:HIGH[:log][:COUNT]|P=a,b,c", help="A parameter and its values (repeatable)."
        ),
    ],
    metric: Annotated[str, typer.Option(help="What the answers are about.")] = "stall",
    break_even: Annotated[
        bool, typer.Option("--break-even", help="Find where the saving crosses zero.")
    ] = False,
    tornado: Annotated[
        bool, typer.Option("--tornado", help="One parameter at a time: which matters?")
    ] = False,
    sobol: Annotated[
        int, typer.Option(metavar="N", min=0, help="Sobol indices from N (a power of two) points.")
    ] = 0,
    bootstrap: Annotated[
        int, typer.Option(metavar="N", min=0, help="Grid: confidence intervals from N resamples.")
    ] = 0,
    profile: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="Cost profile (default: published).")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Also write the result file.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace an existing result file.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of whatever is drawn at random.")] = 0,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Settings replayed at a time.")] = 1,
    json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False,
) -> None:
    """Vary a scenario's parameters: the grid, or where it breaks even, or what matters most."""
    from tracekit.errors import UsageError
    from tracekit.replay import read_scenarios
    from tracekit.replay.ledger import unit_of
    from tracekit.replay.running import Room
    from tracekit.replay.sweeping import Sweep
    from tracekit.replay.uncertainty import parse_variations, swing_rows
    from tracekit.report import sweeps
    from tracekit.trace import open_trace

    if len(chosen := read_scenarios([scenario])) != 1:
        raise UsageError(f"{scenario} holds {len(chosen)} scenarios; a sweep varies one", hint="-s NAME")
    room = Room.of(open_trace(trace), chosen[0].mechanisms, profile=profile, seed=seed)
    found = Sweep(room, chosen[0], parse_variations(vary), metric=metric, jobs=jobs)
    rows: list[Any]
    result: Result | None = None
    tables: dict[str, list[dict[str, Any]]]
    shown: RenderableType
    if break_even:
        crossings = found.break_even()
        rows, shown = [asdict(one) for one in crossings], "\n".join(one.sentence() for one in crossings)
        tables = {"crossings": rows}
    elif tornado:
        swings = found.tornado()
        rows, shown = swing_rows(swings), sweeps.tornado_table(swings, unit_of(metric))
        tables = {"swings": [{"metric": metric, "unit": unit_of(metric), **row} for row in rows]}
    elif sobol:
        shares = found.sobol(sobol)
        rows, shown = [asdict(one) for one in shares], sweeps.sobol_table(shares)
        tables = {"shares": rows}
    else:
        result = found.grid(bootstrap=bootstrap)
        tables = {}
        rows, shown = result.records(), sweeps.grid_table(result.rows, metric)
    if output is not None:
        # An answer stands beside the rows of the scenario that it is about.
        result = replace(result or room.result([chosen[0]]), tables=tables)
        result.save(output, force=force)
    if json:
        print_json(rows)
    else:
        stdout().print(shown, markup=False, highlight=False)
    for note in room.notes():
        stderr().print(f"note: {note}", markup=False, highlight=False)
    next_command(f"tracekit sweep {quoted(trace)} -s {quoted(Path(scenario))} --vary … --tornado")
