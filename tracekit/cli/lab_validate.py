"""`tracekit lab validate`: predictions against reality, on this host."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tracekit.cli.output import next_command, print_json, quoted, stderr, stdout

__all__ = ["validate"]


def validate(
    mechanism: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MECHANISM]…", help="Which (default: all but epf, which takes the lab host)."
        ),
    ] = None,
    case: Annotated[
        str, typer.Option(metavar="TEXT", help="Only cases whose name contains TEXT, such as Linux.")
    ] = "",
    repeat: Annotated[int, typer.Option(min=1, help="Runs of each case, each with a seed of its own.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="The first seed.")] = 0,
    baselines: Annotated[
        int, typer.Option(min=1, help="Recordings of each baseline, around the real run.")
    ] = 2,
    profile: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Costs of this host (default: calibrated before each seed)."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="DIR", help="Keep traces, costs, result and chart here."),
    ] = None,
    again: Annotated[
        bool,
        typer.Option("--again", help="Run nothing: predict and compare anew what an earlier run left in -o."),
    ] = False,
    record_only: Annotated[
        bool, typer.Option("--record-only", help="Only record into -o; --again predicts and compares.")
    ] = False,
    lab_host: Annotated[
        bool, typer.Option("--lab-host", help="Record in a lab host (epf always does); compare here.")
    ] = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print one line for each figure of a mechanism, as Markdown.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print every check as JSON.")] = False,
) -> None:
    """Record a baseline, predict a scenario, really run it, and compare the two."""
    import sys
    import tempfile
    from contextlib import ExitStack

    from tracekit.errors import UsageError
    from tracekit.lab.validate.running import validate as run_cases
    from tracekit.report.validation import validation_markdown, validation_table

    console = stderr()

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False)

    with ExitStack() as stack:
        if (again or record_only) and out is None:
            raise UsageError("--again and --record-only need a folder", hint="-o FOLDER")
        if out is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tracekit-validate-")))
        else:
            folder = out
            if folder.exists() and not folder.is_dir():
                raise UsageError(f"{folder} is a file", hint="tracekit lab validate -o FOLDER")
            folder.mkdir(parents=True, exist_ok=True)
        found = run_cases(
            mechanism or [],
            folder,
            profile=profile,
            part=case,
            repeat=repeat,
            seed=seed,
            baselines=baselines,
            again=again,
            record_only=record_only,
            lab_host=lab_host,
            say=say,
            keep=lambda so_far: None if record_only else _keep(folder, so_far.to_json()),
        )
        document = found.to_json()
    if record_only:
        next_command(f"tracekit lab validate --again -o {quoted(folder)}")
        return
    if json:
        print_json(document)
    elif markdown:
        sys.stdout.write(validation_markdown(document) + "\n")
    else:
        stdout().print(validation_table(document))
    next_command(f"tracekit lab validate --repeat 20 -o {quoted(out or Path('validation'))}")


def _keep(folder: Path, document: dict[str, object]) -> None:
    import json

    from tracekit.report.figure import save_figures
    from tracekit.report.validation import validation_figure

    (folder / "validation.json").write_text(json.dumps(document, indent=2) + "\n")
    save_figures([validation_figure(document)], folder)
