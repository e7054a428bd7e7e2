"""`tracekit fleet`: every trace through every scenario, on Dask."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from tracekit.cli.output import inert, next_command, print_json, quoted, stderr, stdout

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tracekit.replay.fleet.task import Outcome

__all__ = ["fleet"]


def fleet(
    traces: Annotated[
        list[str], typer.Argument(metavar="TRACES…", help="Folders with traces, traces, or URLs of either.")
    ],
    scenario: Annotated[
        list[str],
        typer.Option(
            "--scenario", "-s", metavar="NAME[+NAME][,k=v…]|FILE.toml", help="What to replay (repeatable)."
        ),
    ],
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="RESULTS", help="Folder or URL; what is there is kept.")
    ],
    jobs: Annotated[
        int | None, typer.Option("--jobs", "-j", min=1, help="Processes (default: CPUs).")
    ] = None,
    dask: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="A Dask scheduler, such as tcp://host:8786.")
    ] = None,
    profile: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="Cost profile (default: published).")
    ] = None,
    open_loop: Annotated[
        bool, typer.Option("--open-loop", help="Keep every event at its recorded time.")
    ] = False,
    by_class: Annotated[bool, typer.Option("--by-class", help="Sum up each class of VMs (folder).")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of whatever is drawn at random.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Replay many traces through many scenarios; go on where an earlier run stopped."""
    from dataclasses import asdict

    from tracekit.errors import FailedError
    from tracekit.replay import load_profile, read_scenarios
    from tracekit.replay.fleet.cluster import connected, replay_fleet
    from tracekit.replay.fleet.places import find_traces
    from tracekit.replay.fleet.summary import summary
    from tracekit.replay.fleet.task import Question, summarised

    places = find_traces(traces)
    question = Question(tuple(read_scenarios(scenario)), load_profile(profile), seed, not open_loop)
    with connected(jobs, dask) as client:
        outcomes = _watched(replay_fleet(places, question, output, client), len(places))
    did = summarised(outcomes)
    found = summary(output, by_class=by_class, seed=seed) if len(did["failed"]) < did["traces"] else []
    if json:
        print_json({**did, "summary": [asdict(one) for one in found]})
    elif found:
        from tracekit.report.fleet import fleet_table

        stdout().print(fleet_table(found))
    talk = stderr()
    for bad in did["failed"]:
        talk.print(f"{inert(bad['trace'])}: {inert(bad['error'])}", style="red", markup=False)
    talk.print(f"{did['traces']} traces: {did['replayed']} replays done, {did['kept']} kept", highlight=False)
    if did["failed"]:
        raise FailedError(
            f"{len(did['failed'])} of {did['traces']} traces could not be replayed",
            hint="tracekit recover TRACE, then the same command again",
        )
    next_command(f"tracekit density {quoted(output)} --host-memory 768G --risk 0.001")


def _watched(outcomes: Iterator[Outcome], total: int) -> list[Outcome]:
    """Collect outcomes behind a progress bar on stderr."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    seen: list[Outcome] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=stderr()) as progress:
        bar = progress.add_task("traces", total=total)
        for outcome in outcomes:
            seen.append(outcome)
            failed = sum(bool(one.error) for one in seen)
            progress.update(bar, advance=1, description=f"traces, {failed} bad" if failed else "traces")
    return seen
