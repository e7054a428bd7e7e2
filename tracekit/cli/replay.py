"""tracekit replay: what a recorded VM would have saved, scenario by scenario."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tracekit.cli.output import next_command, print_json, quoted, refuse_output, stderr, stdout

__all__ = ["replay"]


def replay(
    trace: Annotated[Path, typer.Argument(help="The trace folder.")],
    scenario: Annotated[
        list[str] | None,
        typer.Option(
            "--scenario",
            "-s",
            metavar="NAME[+NAME][,k=v…]|FILE.toml",
            help="What to replay (repeatable): mechanisms with parameters, or a scenario file. Without it: "
            "every mechanism that the trace can answer for, alone and combined, in one table.",
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="P=VALUE", help="Set a parameter in every scenario (repeatable)."),
    ] = None,
    profile: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="Cost profile (default: published).")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Also write the result file.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace an existing result file.")] = False,
    phase: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=START:END",
            help="Also a part of the trace (repeatable); ends: seconds, a mark, or a kind's first event.",
        ),
    ] = None,
    open_loop: Annotated[
        bool, typer.Option("--open-loop", help="Keep every event at its recorded time.")
    ] = False,
    bootstrap: Annotated[
        int, typer.Option(metavar="N", min=0, help="Confidence intervals from N resamples (0 = none).")
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of whatever is drawn at random.")] = 0,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Scenarios replayed at a time.")] = 1,
    every: Annotated[
        bool, typer.Option("--all", help="Show every metric, not the leading ones only.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the tidy rows as JSON.")] = False,
) -> None:
    """Replay a trace: baseline, counterfactual and what is saved, each with interval and label."""
    from tracekit.replay import read_scenarios
    from tracekit.replay.everything import every_scenario
    from tracekit.replay.running import Room
    from tracekit.replay.scenarios import parse_settings
    from tracekit.trace import open_trace

    refuse_output(output, force=force)
    chosen = read_scenarios(scenario or [], settings=parse_settings(set_ or []))
    room = Room.of(
        open_trace(trace), profile=profile, seed=seed, closed_loop=not open_loop, phases=phase or []
    )
    left_out: list[str] = []
    if not scenario:
        chosen, left_out = every_scenario(room)
    result = room.result(chosen, jobs=jobs, bootstrap=bootstrap, steps=bool(scenario))
    if output is not None:
        result.save(output, force=force)
    if json:
        print_json(result.records())
    else:
        from tracekit.report.resident_lines import ResidentLines
        from tracekit.report.tables import brief_table, chance_table, ledger_table

        out = stdout()
        out.print(ledger_table(result.rows, every=every) if scenario or every else brief_table(result.rows))
        if bootstrap:
            out.print(chance_table(result.rows))
        if scenario and result.curves.height:
            out.print()
            out.print(ResidentLines(result.curves))
    talk = stderr()
    for note in [*result.about["notes"], *left_out]:
        talk.print(f"note: {note}", markup=False, highlight=False)
    if output is None:
        next_command(f"tracekit report {quoted(trace)}")
    else:
        next_command(f"tracekit report {quoted(output)}")
