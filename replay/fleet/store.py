"""The results of a fleet: a hive-partitioned Parquet dataset with one file per trace, replaced as a whole.

    RESULTS/rows/vm_class=CLASS/TRACE.parquet      the rows of all scenarios
    RESULTS/curves/vm_class=CLASS/TRACE.parquet    resident memory over time

A trace's rows are either all there or not at all, so nothing is counted twice and a killed worker leaves
nothing half done. `pl.scan_parquet("RESULTS/rows", hive_partitioning=True)` and DuckDB read it as it stands.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from tracekit.errors import FailedError
from tracekit.replay.fleet.curves import BASELINE, with_ends
from tracekit.replay.fleet.places import Place, file_system
from tracekit.replay.result import ROWS

if TYPE_CHECKING:
    from tracekit.replay.result import Result

__all__ = ["FLEET_CURVES", "FLEET_ROWS", "UNFINISHED", "Part", "Store"]

_TEXT: Final = pl.String()
FLEET_ROWS: Final = pl.Schema(
    {"trace": _TEXT, "fingerprint": _TEXT, "terms": _TEXT, "pair": _TEXT, "source": _TEXT, **ROWS}
)
"""A replay's rows, with the trace's name, content hash and source.

`terms` is the hash of what all scenarios share (cost profile, seed, loop, version), `pair` that of trace and
scenario.
"""

FLEET_CURVES: Final = pl.Schema(
    {
        "trace": _TEXT,
        "pair": _TEXT,
        "scenario": _TEXT,
        "ts_ns": pl.Int64(),
        "resident_bytes": pl.Float64(),
        "low_bytes": pl.Float64(),
        "high_bytes": pl.Float64(),
    }
)
"""Resident curves with bands; `pair` is empty for the recorded run. A curve's last row marks its end."""

UNFINISHED: Final = ".unfinished"
"""The folder for files that are being written: beside the dataset, so that no reader ever meets them."""

_ABOUT: Final = b"tracekit"


@dataclass(frozen=True)
class Part:
    """What the store holds of one trace; `about` has one entry per replay that went into it."""

    rows: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=FLEET_ROWS))
    curves: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=FLEET_CURVES))
    about: tuple[dict[str, Any], ...] = ()

    @classmethod
    def of(cls, trace: str, fingerprint: str, terms: str, result: Result, pairs: Mapping[str, str]) -> Part:
        """Take a replay's result; `pairs` gives the hash of each scenario's pair by the scenario's name."""
        hashes = pl.DataFrame(list(pairs.items()), {"scenario": _TEXT, "pair": _TEXT}, orient="row")
        rows = result.rows.join(hashes, on="scenario", how="left").with_columns(
            trace=pl.lit(trace),
            fingerprint=pl.lit(fingerprint),
            terms=pl.lit(terms),
            source=pl.lit(result.about["trace"]["source"]),
        )
        # The recorded run has no pair, even where somebody replays `baseline` as a scenario too.
        curves = (
            with_ends(result.curves.unique(["scenario", "ts_ns"], keep="first", maintain_order=True))
            .join(hashes, on="scenario", how="left")
            .with_columns(
                trace=pl.lit(trace),
                pair=pl.when(pl.col("scenario") == BASELINE).then(pl.lit("")).otherwise("pair"),
            )
        )
        return cls(
            rows.select(FLEET_ROWS.names()),
            curves.select(FLEET_CURVES.names()).sort("scenario", "ts_ns"),
            (result.about,),
        )

    @property
    def pairs(self) -> set[str]:
        """The trace x scenario pairs that are done."""
        return set(self.rows["pair"].to_list())

    def still_true(self, fingerprint: str, terms: str, pairs: Mapping[str, str]) -> Part:
        """Return what holds for this trace under these terms; a scenario in `pairs` only with that hash."""
        rows = self.rows.filter(pl.col("fingerprint") == fingerprint, pl.col("terms") == terms)
        asked = pl.col("scenario").is_in(list(pairs))
        rows = rows.filter(~asked | pl.col("pair").is_in(list(pairs.values())))
        if not rows.height:
            return Part()
        return Part(rows, self.curves.filter(pl.col("pair").is_in(["", *rows["pair"].unique()])), self.about)

    def with_new(self, new: Part) -> Part:
        """Return both; the recorded run's curve is there once."""
        kept = self.curves.filter(pl.col("pair") != "") if new.curves.height else self.curves
        return Part(
            pl.concat([self.rows, new.rows]), pl.concat([kept, new.curves]), (*self.about, *new.about)
        )


class Store:
    """A dataset of results in a folder, or at an fsspec URL."""

    def __init__(self, results: str) -> None:
        self.fs, self.root = file_system(results)
        self.local = "://" not in results

    def read(self, place: Place) -> Part:
        """Return what is there of a trace; nothing for what this version did not write."""
        path = self._path("rows", place)
        if not self.fs.exists(path):
            return Part()
        try:
            rows, about = self._load(path, FLEET_ROWS)
            curves, _ = self._load(self._path("curves", place), FLEET_CURVES)
        except (OSError, pa.ArrowException, pl.exceptions.PolarsError, ValueError):
            return Part()  # damaged, or of another version: done again
        return Part(rows, curves, tuple(about))

    def write(self, place: Place, part: Part) -> None:
        """Replace what is there of a trace. Rows come last: with them it is done."""
        self._save(self._path("curves", place), part.curves, ())
        self._save(self._path("rows", place), part.rows, part.about)

    def _path(self, what: str, place: Place) -> str:
        folder = f"vm_class={quote(place.vm_class, safe='')}"
        return f"{self.root}/{what}/{folder}/{quote(place.name, safe='')}.parquet"

    def _load(self, path: str, schema: pl.Schema) -> tuple[pl.DataFrame, list[dict[str, Any]]]:
        with self.fs.open(path, "rb") as file:
            table = pq.ParquetFile(file).read()
        about = json.loads((table.schema.metadata or {}).get(_ABOUT, b"[]"))
        frame = pl.from_arrow(table)
        assert isinstance(frame, pl.DataFrame)
        return frame.select(pl.col(name).cast(dtype) for name, dtype in schema.items()), about

    def _save(self, path: str, frame: pl.DataFrame, about: Collection[dict[str, Any]]) -> None:
        table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
        table = table.replace_schema_metadata({_ABOUT: json.dumps(list(about)).encode()})
        # An object store shows an object when it is complete; a file system has a rename for that.
        target = f"{self.root}/{UNFINISHED}/{uuid.uuid4().hex}" if self.local else path
        try:
            for one in (path, target):
                self.fs.makedirs(one.rpartition("/")[0], exist_ok=True)
            with self.fs.open(target, "wb") as file:
                pq.write_table(table, file, compression="zstd")
            if self.local:
                Path(target).replace(path)
        except OSError as error:
            raise FailedError(f"cannot write {path}: {error.strerror or error}") from None


def clear_unfinished(results: str) -> None:
    """Remove what killed workers left behind in a local folder; call it only while nobody writes there."""
    shutil.rmtree(Path(results) / UNFINISHED, ignore_errors=True)
