"""`tracekit datasets`: bundled traces and synthetic ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tracekit.cli.listing import CommandList
from tracekit.cli.output import next_command, print_json, stderr, stdout

__all__ = ["app"]

app = typer.Typer(cls=CommandList, help="Bundled real traces and synthetic ones.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
def list_(json: Json = False) -> None:
    """List the bundled traces and the generators of synthetic ones."""
    from tracekit.datasets.listing import rows, table

    if json:
        print_json(rows())
    else:
        stdout().print(table())
    next_command("tracekit datasets show NAME")


@app.command()
def show(name: Annotated[str, typer.Argument(help="A name from the list.")], json: Json = False) -> None:
    """Show a bundled trace's data card, or a generator's parameters."""
    from tracekit.datasets.listing import describe, details

    if json:
        print_json(describe(name))
    else:
        stdout().print(details(name))
    next_command(f"tracekit datasets make {name}")


@app.command("fetch-path")
def fetch_path(name: Annotated[str, typer.Argument(help="A bundled trace.")], json: Json = False) -> None:
    """Print where a bundled trace is, after checking it against its sha256."""
    from tracekit.datasets.catalog import trace_path

    where = trace_path(name)
    if json:
        print_json({"name": name, "path": str(where)})
    else:
        typer.echo(where)
    next_command(f"tracekit info {where}")


@app.command()
def make(
    name: Annotated[str, typer.Argument(help="A bundled trace (recorded anew), or synthetic:NAME.")],
    values: Annotated[
        list[str] | None, typer.Argument(metavar="[K=V]...", help="Parameters of a synthetic one.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="The trace folder (default: NAME.trace).")
    ] = None,
    events: Annotated[str | None, typer.Option(help="Short for events=N (1e9 is a number too).")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Short for seed=N.")] = None,
    force: Annotated[bool, typer.Option("-f", "--force", help="Overwrite the trace folder.")] = False,
    json: Json = False,
) -> None:
    """Make a dataset: generate a synthetic trace, or record a bundled one anew on this host."""
    from tracekit.datasets.making import make as make_dataset

    values = list(values or [])
    values += [f"{key}={value}" for key, value in (("events", events), ("seed", seed)) if value is not None]
    with stderr().status(f"making {name}"):
        made = make_dataset(name, out, values, force=force)
    if json:
        print_json(made)
    else:
        typer.echo(made["path"])
    next_command(f"tracekit info {made['path']}")
