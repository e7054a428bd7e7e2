"""`tracekit merge HOST GUEST -o OUT`: both views of one VM on one clock."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tracekit.cli.output import inert, next_command, print_json, quoted, stderr, stdout

__all__ = ["merge"]


def merge(
    host: Annotated[Path, typer.Argument(help="The trace recorded on the host.")],
    guest: Annotated[
        Path,
        typer.Argument(
            help="The trace recorded inside the VM (record --guest), or written by lab linux --guest-trace."
        ),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="The trace to write.")],
    vm: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Which VM of the host trace it is (default: the only one, or the only one with memslots).",
        ),
    ] = None,
    offset_ns: Annotated[
        int | None, typer.Option(help="What to add to guest times (default: estimated from both traces).")
    ] = None,
    uncertainty_ns: Annotated[
        int | None, typer.Option(min=0, help="How far off --offset-ns may be, to either side.")
    ] = None,
    force: Annotated[bool, typer.Option("-f", "--force", help="Replace OUT if it is a trace.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Merge a host's and a guest's trace of one VM, with the clocks' offset and how sure it is."""
    from tracekit.trace.merge import describe, given_offset
    from tracekit.trace.merge import merge as merge_traces

    offset = given_offset(offset_ns, uncertainty_ns)
    with stderr().status("merging"):
        trace, found = merge_traces(host, guest, out, vm=vm, offset=offset, force=force)
    if json:
        print_json(
            {"path": str(trace.path), "events": trace.rows, "lost": trace.lost, "offset": found.to_dict()}
        )
    else:
        text = f"{inert(str(trace.path))}: {trace.rows:,} events; {describe(found)}"
        stdout().print(text, markup=False, highlight=False)
    next_command(f"tracekit info {quoted(out)}")
