"""`tracekit compare`: are two recordings, or two results, the same?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tracekit.cli.output import next_command, print_json, quoted, stdout
from tracekit.errors import FailedError, UsageError

__all__ = ["compare"]

DIFFERENT = 1


def compare(
    sides: Annotated[
        list[str],
        typer.Argument(
            metavar="A B […]", help="Traces or results; repeated runs of one side joined by commas: A1,A2,A3."
        ),
    ],
    tolerance: Annotated[
        float, typer.Option(min=0, help="Differences up to this share of A are none.")
    ] = 0.05,
    alpha: Annotated[float, typer.Option(min=0, max=1, help="Adjusted p above this shows nothing.")] = 0.01,
    seed: Annotated[int, typer.Option(min=0, help="Seed of permutations and bootstrap.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Compare the incomparable, and say so.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Also write an HTML page.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", "-f", help="Replace an existing page.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Compare recordings or results: provenance, then differences. Exit code 0 same, 1 different, 2 error."""
    from tracekit.report.comparison import compare as compare_sides

    try:
        found = compare_sides(sides, force=force, tolerance=tolerance, alpha=alpha, seed=seed)
        if output is not None:
            from tracekit.report.page import render_comparison
            from tracekit.trace.whole_file import write_file

            write_file(output, render_comparison(found).encode(), force=replace)
    except FailedError as error:
        # Exit code 1 means "different" here, and nothing else.
        raise UsageError(error.message, hint=error.hint) from error
    if json:
        print_json(found.document())
    else:
        from tracekit.report.comparison.table import comparison_table

        stdout().print(comparison_table(found))
    if output is None:
        next_command(f"tracekit compare {' '.join(quoted(Path(side)) for side in sides)} -o comparison.html")
    else:
        next_command(f"xdg-open {quoted(output)}")
    raise typer.Exit(DIFFERENT if found.different else 0)
