"""What a report is about: a trace, a replay's result, or both, with what each file says of its making."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import polars as pl

from tracekit.errors import TracekitError, UsageError
from tracekit.report.ledger import checked
from tracekit.report.outline import Outline
from tracekit.report.text import plain

if TYPE_CHECKING:
    from tracekit.replay import Result
    from tracekit.trace import Trace

__all__ = ["DEFAULT_SCENARIOS", "Study", "load_result", "open_study"]

DEFAULT_SCENARIOS: Final = ("zeroing", "hot_hint", "hugepages", "prealloc")
"""What a report replays when it is given a trace and no scenario."""

_NUMBER, _TEXT = pl.Float64(), pl.String()
_TABLES: Final[dict[str, dict[str, pl.DataType]]] = {
    "curves": {"scenario": _TEXT, "ts_ns": pl.Int64(), "resident_bytes": _NUMBER},
    "swings": {
        "metric": _TEXT,
        "unit": _TEXT,
        "parameter": _TEXT,
        "at_low": _TEXT,
        "at_high": _TEXT,
        "saved": _NUMBER,
        "saved_at_low": _NUMBER,
        "saved_at_high": _NUMBER,
    },
    "miss_ratio": {"resident_bytes": _NUMBER, "miss_ratio": _NUMBER, "low": _NUMBER, "high": _NUMBER},
    "zeroing": {
        "side": _TEXT,
        "size_bytes": pl.Int64(),
        "zero_ns": _NUMBER,
        "low_ns": _NUMBER,
        "high_ns": _NUMBER,
    },
}
"""The tables that a result may carry beside its rows, column by column."""

_OPTIONAL: Final = ("metric", "unit")


@dataclass
class Study:
    """All that a report draws; every part may be missing, and then the report says so.

    `rows` are a replay's ledger; `curves` are resident memory (scenario, ts_ns, resident_bytes; scenario
    "baseline" is the recorded run); `swings`, `miss_ratio` and `zeroing` are what the tornado, miss-ratio
    and zeroing charts take; `provenance` says how the result was made.
    """

    name: str
    trace: Trace | None = None
    rows: pl.DataFrame | None = None
    curves: pl.DataFrame | None = None
    swings: pl.DataFrame | None = None
    miss_ratio: pl.DataFrame | None = None
    zeroing: pl.DataFrame | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, trace: Trace, result: Result) -> Study:
        """Return the study of a trace and a replay of it."""
        return cls(
            name=trace.path.absolute().name,
            trace=trace,
            rows=checked(result.rows),
            curves=result.curves,
            provenance=dict(result.about),
        )

    @cached_property
    def outline(self) -> Outline | None:
        """The trace boiled down for the charts; None where there is no trace."""
        return None if self.trace is None else Outline(self.trace)


def open_study(path: Path, scenarios: Sequence[str] | None = None, *, replay: bool = True) -> Study:
    """Open a trace or a result; a trace is replayed (`scenarios`, default DEFAULT_SCENARIOS) if `replay`.

    Raises UsageError when `path` is neither, or scenarios are given for a result.
    """
    if path.is_file():
        if scenarios:
            raise UsageError("a result has its scenarios already", hint=f"tracekit report {plain(path)}")
        return load_result(path)
    from tracekit.trace import open_trace

    trace = open_trace(path)
    if not replay:
        return Study(name=path.absolute().name, trace=trace)
    from tracekit.replay import run

    return Study.of(trace, run(trace, list(scenarios or DEFAULT_SCENARIOS)))


def load_result(path: Path) -> Study:
    """Read a replay's result: a JSON list of rows, or an object with `rows` and what else it carries.

    Raises UsageError where the file is not such a result.
    """
    hint = "tracekit replay TRACE --scenario NAME --json > result.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {plain(path)}: {error.strerror}", hint=hint) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{plain(path)} is not JSON: {plain(error, longest=120)}", hint=hint) from error
    if isinstance(document, list):
        document = {"rows": document}
    if not isinstance(document, dict):
        document = {}
    tables = {name: _table(path, name, document.get(name)) for name in _TABLES}
    rows = document.get("rows") or []
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        rows = []
    if not rows and all(table is None for table in tables.values()):
        raise UsageError(f"{plain(path)} is not a replay result: it holds no rows", hint=hint)
    about = document.get("about")
    provenance = about if isinstance(about, dict) else {}
    return Study(
        name=path.name,
        rows=checked(rows) if rows else None,
        curves=tables["curves"],
        swings=tables["swings"],
        miss_ratio=tables["miss_ratio"],
        zeroing=tables["zeroing"],
        provenance=provenance,
        trace=_its_trace(path, provenance),
    )


def _its_trace(result: Path, provenance: dict[str, Any]) -> Trace | None:
    """Return the trace that a result was made from, if it is still where it was and still the same."""
    from tracekit.trace import open_trace
    from tracekit.trace.fingerprint import fingerprint

    named = provenance.get("trace")
    if not isinstance(named, dict) or not isinstance(named.get("path"), str):
        return None
    for place in (Path(named["path"]), result.parent / Path(named["path"]).name):
        try:
            if (place / "meta.json").is_file() and fingerprint(place) == named.get("sha256"):
                return open_trace(place)
        except (TracekitError, OSError, ValueError):
            continue  # a report without the trace's own charts is better than none
    return None


def _table(path: Path, name: str, value: object) -> pl.DataFrame | None:
    """Return a table that a result carries beside its rows, with the columns that its chart takes."""
    if not value:
        return None
    try:
        table = pl.DataFrame(value, infer_schema_length=None)  # type: ignore[arg-type]
        absent = [pl.lit("").alias(column) for column in _OPTIONAL if column not in table.columns]
        return table.with_columns(absent).select(
            pl.col(column).cast(dtype) for column, dtype in _TABLES[name].items()
        )
    except (pl.exceptions.PolarsError, TypeError, ValueError) as error:
        raise UsageError(
            f"{plain(path)}: {name} is not a table of {', '.join(_TABLES[name])}", hint="tracekit report -h"
        ) from error
