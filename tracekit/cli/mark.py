"""`tracekit mark NAME`: name this moment in a recording that runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["mark"]


def mark(
    name: Annotated[str, typer.Argument(help="Such as ready: a letter, then letters, digits, - . _")],
    trace: Annotated[
        Path | None,
        typer.Option("-t", "--trace", help="The trace being recorded (default: that of this command)."),
    ] = None,
) -> None:
    """Name this moment in a recording that runs; `replay --phase boot=0:NAME` asks about the time till it.

    A recorded command needs no --trace: the recorder told it where marks go.
    """
    from tracekit.probes.marks import put_mark

    put_mark(name, trace)
