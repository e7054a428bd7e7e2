"""tracekit sweep: one scenario over many parameter values."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tracekit.cli.output import next_command, print_json, quoted, refuse_existing, stderr, stdout

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
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="P=VALUE", help="Set a parameter of the scenario (repeatable)."),
    ] = None,
    metric: Annotated[str, typer.Option(help="What the answers are about.")] = "stall",
    phase: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=START:END", help="Also a part of the trace: --metric stall:NAME."),
    ] = None,
    open_loop: Annotated[
        bool, typer.Option("--open-loop", help="Keep every event at its recorded time.")
    ] = False,
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
    seed: Annotated[int, typer.Option(min=0, help="Seed of whatever is drawn at random.")] = 0,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Settings replayed at a time.")] = 1,
    json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False,
) -> None:
    """Vary a scenario's parameters: the grid, or where it breaks even, or what matters most."""
    import polars as pl

    from tracekit.replay.ledger import unit_of
    from tracekit.replay.running import Room
    from tracekit.replay.scenarios import parse_settings
    from tracekit.replay.sweeping import Sweep, scenario_to_vary
    from tracekit.replay.uncertainty import parse_variations, swing_rows
    from tracekit.report import sweeps
    from tracekit.report.tables import chance_table
    from tracekit.trace import open_trace

    _one_question(break_even, tornado, bool(sobol), bool(bootstrap))
    refuse_existing(output, force=force)
    variations = parse_variations(vary)
    chosen = scenario_to_vary(scenario, variations, parse_settings(set_ or []))
    room = Room.of(
        open_trace(trace),
        chosen.mechanisms,
        profile=profile,
        seed=seed,
        closed_loop=not open_loop,
        phases=phase or [],
    )
    found = Sweep(room, chosen, variations, metric=metric, jobs=jobs)
    rows: list[Any]
    notes: list[str] = []
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
        notes = found.outside()
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
        result = replace(result or room.result([chosen]), tables=tables)
        result.save(output, force=force)
    if json:
        print_json(rows)
    else:
        stdout().print(shown, markup=False, highlight=False)
        if bootstrap and result is not None:
            stdout().print(chance_table(result.rows.filter(pl.col("metric") == metric)))
    for note in [*room.notes(), *notes]:
        stderr().print(f"note: {note}", markup=False, highlight=False)
    next_command(f"tracekit sweep {quoted(trace)} -s {quoted(Path(scenario))} --vary … --tornado")


def _one_question(*asked: bool) -> None:
    """Refuse two questions at once."""
    from tracekit.errors import UsageError

    if sum(asked) > 1:
        raise UsageError(
            "--break-even, --tornado, --sobol and --bootstrap (of the grid) are questions of their own",
            hint="one of them at a time",
        )
