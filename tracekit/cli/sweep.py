"""tracekit sweep: one scenario over many parameter values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tracekit.cli.output import next_command, print_json, quoted, refuse_output, stderr, stdout

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tracekit.replay import Result
    from tracekit.replay.sweeping import Sweep

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
    curve: Annotated[
        bool, typer.Option("--curve", help="swap over limit_mib: swap-ins at all limits from one pass.")
    ] = False,
    sample: Annotated[
        float, typer.Option(metavar="SHARE", min=0.0, max=1.0, help="Curve: from a share of the pages.")
    ] = 1.0,
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
    from tracekit.replay.running import Room
    from tracekit.replay.scenarios import parse_settings
    from tracekit.replay.sweeping import Sweep, scenario_to_vary
    from tracekit.replay.uncertainty import parse_variations
    from tracekit.trace import open_trace

    _one_question(break_even, tornado, bool(sobol), curve, bool(bootstrap))
    refuse_output(output, force=force)
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
    if break_even:
        answer = _crossings(found)
    elif tornado:
        answer = _swings(found)
    elif sobol:
        answer = _shares(found, sobol)
    elif curve:
        answer = _limits(found, sample)
    else:
        answer = _grid(found, bootstrap)
    if output is not None:
        # An answer stands beside the rows of the scenario that it is about.
        result = replace(answer.result or room.result([chosen]), tables=answer.tables)
        result.save(output, force=force)
    if json:
        print_json(answer.rows)
    else:
        for part in answer.shown:
            stdout().print(part, markup=False, highlight=False)
    for note in [*room.notes(), *answer.notes]:
        stderr().print(f"note: {note}", markup=False, highlight=False)
    ranges = not any(isinstance(one.values, tuple) for one in variations)
    question = "--break-even" if tornado else "--tornado"
    if break_even or sobol or not ranges:
        next_command(f"tracekit replay {quoted(trace)} -s {quoted(scenario)}")
        return
    words = ["tracekit", "sweep", quoted(trace), "-s", quoted(scenario)]
    words += [word for one in set_ or [] for word in ("--set", quoted(one))]
    words += [word for one in vary for word in ("--vary", quoted(one))]
    words += [] if curve else [word for one in phase or [] for word in ("--phase", quoted(one))]
    words += [] if metric == "stall" else ["--metric", quoted(metric)]
    next_command(" ".join([*words, question]))


@dataclass(frozen=True)
class _Answer:
    """What a question came to: rows for a program, what a reader sees, what the result file carries."""

    rows: list[Any]
    shown: Sequence[RenderableType]
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    result: Result | None = None


def _crossings(sweep: Sweep) -> _Answer:
    crossings = sweep.break_even()
    rows = [asdict(one) for one in crossings]
    return _Answer(rows, [one.sentence() for one in crossings], {"crossings": rows})


def _swings(sweep: Sweep) -> _Answer:
    from tracekit.replay.ledger import unit_of
    from tracekit.replay.uncertainty import swing_rows
    from tracekit.report.sweeps import tornado_table

    swings, unit = sweep.tornado(), unit_of(sweep.metric)
    rows: list[dict[str, Any]] = list(swing_rows(swings))
    kept = [{"metric": sweep.metric, "unit": unit, **row} for row in rows]
    return _Answer(rows, [tornado_table(swings, unit)], {"swings": kept}, sweep.outside())


def _shares(sweep: Sweep, points: int) -> _Answer:
    from tracekit.report.sweeps import sobol_table

    shares = sweep.sobol(points)
    rows = [asdict(one) for one in shares]
    notes = dict.fromkeys(one.first_interval.note for one in shares if one.first_interval.note)
    return _Answer(rows, [sobol_table(shares)], {"shares": rows}, list(notes))


def _limits(sweep: Sweep, share: float) -> _Answer:
    from tracekit.replay.memory_limits import limits_of
    from tracekit.report.sweeps import curve_table

    rows, notes = limits_of(sweep.room, sweep.scenario, sweep.variations, rate=share)
    return _Answer(rows, [curve_table(rows)], {"miss_ratio": rows}, notes)


def _grid(sweep: Sweep, bootstrap: int) -> _Answer:
    import polars as pl

    from tracekit.report.sweeps import grid_table
    from tracekit.report.tables import chance_table

    result = sweep.grid(bootstrap=bootstrap)
    shown = [grid_table(result.rows, sweep.metric)]
    if bootstrap:
        shown.append(chance_table(result.rows.filter(pl.col("metric") == sweep.metric)))
    return _Answer(result.records(), shown, result=result)


def _one_question(*asked: bool) -> None:
    """Refuse two questions at once."""
    from tracekit.errors import UsageError

    if sum(asked) > 1:
        raise UsageError(
            "--break-even, --tornado, --sobol, --curve and --bootstrap (of the grid) are questions of "
            "their own",
            hint="one of them at a time",
        )
