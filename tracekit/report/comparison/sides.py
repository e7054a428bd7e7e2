"""The sides of a comparison: one or several recordings of the same thing, or one replay result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tracekit.errors import UsageError
from tracekit.report.study import Study, load_result
from tracekit.report.text import plain
from tracekit.trace import Trace, open_trace

__all__ = ["Side", "open_sides"]


@dataclass
class Side:
    """One side: repeated recordings (`runs`), or a replay's result (`study`)."""

    name: str
    runs: list[Trace] = field(default_factory=list)
    study: Study | None = None


def open_sides(arguments: Sequence[str]) -> list[Side]:
    """Open each argument: a trace, a result, or several traces of repeated runs joined by commas.

    Raises UsageError for fewer than two sides, for what is neither trace nor result, and where
    recordings are compared with results.
    """
    if len(arguments) < 2:
        raise UsageError("a comparison needs two sides", hint="tracekit compare A.trace B.trace")
    sides = [_open(argument) for argument in arguments]
    for side, argument in zip(sides, arguments, strict=True):
        if bool(side.runs) != bool(sides[0].runs):
            raise UsageError(
                f"{plain(argument)} is {_kind(side)}, {plain(arguments[0])} {_kind(sides[0])}",
                hint="compare recordings with recordings, results with results",
            )
    return sides


def _open(argument: str) -> Side:
    # A comma may also be part of one name.
    parts = [argument] if Path(argument).exists() else argument.split(",")
    paths = [Path(part) for part in parts if part]
    if not paths:
        raise UsageError("a side of the comparison is empty", hint="tracekit compare A.trace B.trace")
    names = ",".join(path.absolute().name for path in paths)
    if len(paths) == 1 and paths[0].is_file():
        return Side(names, study=load_result(paths[0]))
    return Side(names, runs=[open_trace(path) for path in paths])


def _kind(side: Side) -> str:
    return "a recording" if side.runs else "a result"
