"""`tracekit density`: how many VMs fit on a host, without and with each scenario."""

from __future__ import annotations

from typing import Annotated

import typer

from tracekit.cli.output import next_command, print_json, quoted, stdout
from tracekit.cli.sizes import parse_size

__all__ = ["density"]


def density(
    results: Annotated[
        list[str],
        typer.Argument(metavar="RESULTS…", help="What fleet wrote, Parquet files, or replays' JSON."),
    ],
    host_memory: Annotated[
        int, typer.Option("--host-memory", metavar="SIZE", parser=parse_size, help="A host's memory.")
    ],
    risk: Annotated[
        float, typer.Option(metavar="SHARE", help="Share of moments at which a host may need more.")
    ] = 0.001,
    reserve: Annotated[
        int, typer.Option(metavar="SIZE", parser=parse_size, help="Memory the host keeps for itself.")
    ] = 0,
    together: Annotated[
        float,
        typer.Option(metavar="SHARE", help="Share of VMs that peak together: 0 random, 1 aligned."),
    ] = 0.0,
    by_class: Annotated[bool, typer.Option("--by-class", help="One answer per class of VMs.")] = False,
    vms: Annotated[int | None, typer.Option(min=1, help="VMs to place: says how many hosts.")] = None,
    host_cost: Annotated[float, typer.Option(min=0, help="What a host costs, in any currency.")] = 0.0,
    swap_rate: Annotated[
        int,
        typer.Option(metavar="SIZE", parser=parse_size, help="Bytes a second that the host swaps out."),
    ] = 1 << 30,
    balloon_rate: Annotated[
        int, typer.Option(metavar="SIZE", parser=parse_size, help="Bytes a second that balloons take back.")
    ] = 920_000_000,
    moments: Annotated[
        int | None, typer.Option(min=100, help="Random moments to draw (default: 100 / risk).")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed; the same seed gives the same answer.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say how many VMs fit on a host at a risk, how sure that is, and what happens when it runs over."""
    from tracekit.errors import UsageError
    from tracekit.replay.fleet import density as ask
    from tracekit.replay.fleet import load_curves
    from tracekit.replay.fleet.capacity import Fleet
    from tracekit.replay.fleet.overflow import Rates
    from tracekit.report.density import density_json, density_table

    if reserve >= host_memory:
        raise UsageError("the host keeps all of its memory for itself", hint="a smaller --reserve")
    curves = load_curves(results)
    classes = sorted(set(curves.classes)) if by_class else [""]
    answers = {
        name: ask(
            curves.of_class(name) if by_class else curves,
            host_memory - reserve,
            risk,
            together=together,
            fleet=Fleet(vms, host_cost) if vms else None,
            rates=Rates(float(swap_rate), float(balloon_rate)),
            moments=moments,
            seed=seed,
        )
        for name in classes
    }
    if json:
        print_json([{"vm_class": name or None, **density_json(one)} for name, one in answers.items()])
    else:
        for name, answer in answers.items():
            stdout().print(density_table(answer, name))
    again = "--together 0.2" if by_class or together else "--by-class"
    next_command(f"tracekit density {quoted(results[0])} --host-memory {host_memory} {again}")
