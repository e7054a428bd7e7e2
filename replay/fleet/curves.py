"""Resident memory over time of many VMs, put on one grid so that they can be added up."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tracekit.errors import UsageError
from tracekit.replay.fleet.dataset import read_dataset

__all__ = ["BASELINE", "CURVES", "Curves", "Grid", "load_curves", "with_ends"]

BASELINE: Final = "baseline"
"""The scenario that is the recorded run."""

CURVES: Final = pl.Schema(
    {
        "trace": pl.String(),
        "vm_class": pl.String(),
        "scenario": pl.String(),
        "ts_ns": pl.Int64(),
        "resident_bytes": pl.Float64(),
        "low_bytes": pl.Float64(),
        "high_bytes": pl.Float64(),
    }
)
"""Input rows: memory stays at `resident_bytes` until the curve's next row; its last row marks its end.

`low_bytes` and `high_bytes` bound it by what the trace leaves open. `vm_class` may be missing (then it is
""), and so may the bounds (then nothing is known of them). `ts_ns` may start anywhere: curves are taken
from their first row.
"""

BOUNDS: Final = ("low_bytes", "high_bytes")

STEPS: Final = 1024
"""Grid steps of the longest curve."""

_HINT: Final = "tracekit fleet TRACES… --scenario NAME -o RESULTS"


@dataclass(frozen=True)
class Grid:
    """The curves of one scenario, one after the other: curve i is values[starts[i] : starts[i] + lengths[i]].

    A value is the *largest* of its step, so a demand built from grids is never too small.
    """

    values: NDArray[np.float64]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]

    def at(self, curve: NDArray[np.int64], step: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the curves' values at these steps, each curve repeating after its own end."""
        return self.values[self.starts[curve] + step % self.lengths[curve]]


@dataclass(frozen=True)
class Curves:
    """Resident memory of the same VMs (`traces`, of `classes`) under each scenario, `step_ns` a step.

    `low` and `high` are the ends of what the traces leave open: a scenario is missing there where a trace
    has no bound. `rounding` is by which share taking the largest value of each step raises the mean (the
    worst scenario); `left_out` names traces that lack a scenario the others have.
    """

    traces: tuple[str, ...]
    classes: tuple[str, ...]
    step_ns: float
    grids: dict[str, Grid]
    rounding: float
    left_out: tuple[str, ...] = ()
    low: dict[str, Grid] = field(default_factory=dict)
    high: dict[str, Grid] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: pl.DataFrame, *, steps: int = STEPS) -> Curves:
        """Put rows of the `CURVES` table on a grid.

        Traces without all scenarios are left out, so that every scenario is asked about the same VMs. Raises
        UsageError for rows that are no curves, and when no trace is left.

        >>> rows = pl.DataFrame({"trace": "a", "scenario": "baseline", "ts_ns": [0, 30, 40],
        ...                      "resident_bytes": [1.0, 5.0, 0.0]})
        >>> Curves.of(rows, steps=4).grids["baseline"].values
        array([1., 1., 1., 5.])
        """
        table = _checked(rows)
        scenarios = table["scenario"].unique(maintain_order=True).to_list()
        if BASELINE in scenarios:
            scenarios = [BASELINE, *(name for name in scenarios if name != BASELINE)]
        per_trace = table.group_by("trace", maintain_order=True).agg(
            pl.col("scenario").n_unique(), pl.col("vm_class").first()
        )
        whole = per_trace.filter(pl.col("scenario") == len(scenarios)).sort("trace")
        if whole.is_empty():
            raise UsageError("no trace has a curve for every scenario", hint=_HINT)
        traces = whole["trace"].to_list()
        kept = table.filter(pl.col("trace").is_in(traces)).sort("trace", "scenario", "ts_ns")
        parts = kept.partition_by("trace", "scenario", as_dict=True)
        spans = [int(part["ts_ns"][-1] - part["ts_ns"][0]) for part in parts.values()]
        step_ns = max(max(spans) / steps, 1.0)
        grids, rounding = {}, 0.0
        ends: dict[str, dict[str, Grid]] = {name: {} for name in BOUNDS}
        for scenario in scenarios:
            mine = [parts[trace, scenario] for trace in traces]
            grids[scenario], excess = _grid(mine, step_ns)
            rounding = max(rounding, excess)
            for name in BOUNDS:
                if not any(part[name].null_count() for part in mine):
                    ends[name][scenario], _ = _grid(mine, step_ns, name)
        left_out = tuple(sorted(set(per_trace["trace"].to_list()) - set(traces)))
        classes = tuple(whole["vm_class"].to_list())
        low, high = (ends[name] for name in BOUNDS)
        return cls(tuple(traces), classes, step_ns, grids, rounding, left_out, low, high)

    def of_class(self, name: str) -> Curves:
        """Return only the curves of one class of VMs."""
        chosen = np.flatnonzero([one == name for one in self.classes])
        if not len(chosen):
            raise UsageError(f"no VM of class {name!r}", hint=", ".join(sorted(set(self.classes))))

        def of(grids: dict[str, Grid]) -> dict[str, Grid]:
            return {key: Grid(g.values, g.starts[chosen], g.lengths[chosen]) for key, g in grids.items()}

        return replace(
            self,
            traces=tuple(self.traces[i] for i in chosen),
            classes=tuple(self.classes[i] for i in chosen),
            grids=of(self.grids),
            low=of(self.low),
            high=of(self.high),
        )


def load_curves(results: Sequence[str], *, steps: int = STEPS) -> Curves:
    """Read curves from what `tracekit fleet` wrote, Parquet files, or results of `tracekit replay` (JSON).

    A folder (or URL) is a fleet's result or any folder of Parquet files with the columns of `CURVES`; a JSON
    result is one trace. Raises UsageError where there are none.
    """
    if not results:
        raise UsageError("no results given", hint=_HINT)
    return Curves.of(pl.concat(_read(one) for one in results), steps=steps)


def with_ends(curves: pl.DataFrame) -> pl.DataFrame:
    """Mark the end of a replay's curves: each last point lasts as long as the one before it.

    >>> curve = pl.DataFrame({"scenario": "a", "ts_ns": [0, 5], "resident_bytes": [1.0, 2.0]})
    >>> with_ends(curve)["ts_ns"].to_list()
    [0, 5, 10]
    """
    ends = curves.group_by("scenario", maintain_order=True).agg(
        pl.col("ts_ns").last() + pl.col("ts_ns").diff().last().fill_null(0),
        pl.exclude("scenario", "ts_ns").last(),
    )
    return pl.concat([curves, ends.select(curves.columns)])


def _read(results: str) -> pl.DataFrame:
    path = Path(results)
    try:
        if "://" in results or (path / "curves").is_dir():
            return _checked(read_dataset(f"{results.rstrip('/')}/curves"))
        if path.is_dir():
            return _checked(read_dataset(results))
        if path.suffix == ".json":
            return _from_result(path)
        return _checked(pl.read_parquet(path))
    except OSError as error:
        raise UsageError(f"cannot read {results}: {error.strerror or error}", hint=_HINT) from None
    except (pl.exceptions.PolarsError, ValueError, RecursionError) as error:
        raise UsageError(f"cannot read {results}: {str(error).splitlines()[0]}", hint=_HINT) from None


def _from_result(path: Path) -> pl.DataFrame:
    document = json.loads(path.read_text(encoding="utf-8"))
    curves = document.get("curves") if isinstance(document, dict) else document
    if not curves:
        raise UsageError(f"{path} holds no resident curves", hint=_HINT)
    frame = with_ends(pl.DataFrame(curves, infer_schema_length=None))
    return _checked(frame if "trace" in frame.columns else frame.with_columns(trace=pl.lit(str(path))))


def _checked(rows: pl.DataFrame) -> pl.DataFrame:
    """Return exactly the columns of `CURVES`; UsageError for what can't be a curve."""
    if "vm_class" not in rows.columns:
        rows = rows.with_columns(vm_class=pl.lit(""))
    absent = [name for name in BOUNDS if name not in rows.columns]
    rows = rows.with_columns(pl.lit(None, pl.Float64()).alias(name) for name in absent)
    missing = [name for name in CURVES if name not in rows.columns]
    if missing:
        raise UsageError(f"not a table of resident curves: column {missing[0]} is missing", hint=_HINT)
    table = rows.select(pl.col(name).cast(dtype) for name, dtype in CURVES.items())
    amounts = pl.col("resident_bytes")
    wrong = table.filter(
        pl.any_horizontal(pl.exclude(BOUNDS).is_null())
        | ~amounts.is_finite().fill_null(False)
        | (amounts < 0)
    )
    if wrong.height:
        raise UsageError(f"{wrong['trace'][0]}: a curve has an unknown or negative resident_bytes or time")
    crossed = table.filter(
        ~((pl.col("low_bytes") <= amounts) & (amounts <= pl.col("high_bytes"))).fill_null(True)
    )
    if crossed.height:
        raise UsageError(f"{crossed['trace'][0]}: a curve lies outside its own low_bytes and high_bytes")
    return table


def _grid(
    curves: Sequence[pl.DataFrame], step_ns: float, column: str = "resident_bytes"
) -> tuple[Grid, float]:
    """Return the grid of one scenario, and by which share it lies above the exact mean."""
    parts, exact, gridded = [], 0.0, 0.0
    for curve in curves:
        times = curve["ts_ns"].to_numpy()
        times = (times - times[0]).astype(np.float64)
        values = curve[column].to_numpy()
        part = _largest_of_steps(times, values, step_ns)
        parts.append(part)
        span = float(times[-1])
        exact += float(np.diff(times) @ values[:-1]) / span if span else float(values[-1])
        gridded += float(part.mean())
    lengths = np.array([len(part) for part in parts], np.int64)
    grid = Grid(np.concatenate(parts), np.cumsum(lengths) - lengths, lengths)
    return grid, gridded / exact - 1 if exact else 0.0


def _largest_of_steps(
    times: NDArray[np.float64], values: NDArray[np.float64], step_ns: float
) -> NDArray[np.float64]:
    span = float(times[-1])
    if not span:
        return values[-1:].astype(np.float64)
    count = max(1, round(span / step_ns))
    edges = np.arange(count) * (span / count)
    # What a step begins with, then what happens inside it; the last row only marks the end.
    grid: NDArray[np.float64] = values[np.searchsorted(times, edges, side="right") - 1]
    inside = np.minimum((times[:-1] * (count / span)).astype(np.int64), count - 1)
    np.maximum.at(grid, inside, values[:-1])
    return grid
