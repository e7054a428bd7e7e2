"""The result of a replay: tidy rows, where they come from, and the file that keeps both."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl

from tracekit.replay.curves import CURVES
from tracekit.replay.losses import Missing, of_one_guest
from tracekit.trace.fingerprint import fingerprint
from tracekit.trace.schema import PAGE_BYTES
from tracekit.trace.whole_file import write_file

if TYPE_CHECKING:
    from tracekit.replay.costs import Profile
    from tracekit.replay.scenarios import Scenario
    from tracekit.replay.survey import Survey
    from tracekit.replay.timeline import Timeline, TraceLike

__all__ = ["ROWS", "Result", "Row"]

ROWS = pl.Schema(
    {
        "scenario": pl.String(),
        "mechanism": pl.String(),
        "metric": pl.String(),
        "unit": pl.String(),
        "baseline": pl.Float64(),
        "counterfactual": pl.Float64(),
        "saved": pl.Float64(),
        "low": pl.Float64(),
        "high": pl.Float64(),
        "label": pl.String(),
    }
)
"""Columns of a result; `low` and `high` bound `saved` (null = no bound)."""


class Row(NamedTuple):
    """One figure of a result."""

    scenario: str
    mechanism: str
    metric: str
    unit: str
    baseline: float | None
    counterfactual: float | None
    saved: float | None
    low: float | None
    high: float | None
    label: str


@dataclass(frozen=True)
class Result:
    """Rows (schema `ROWS`), `about` (trace hash, scenarios, costs, versions, seed), and memory `curves`.

    `tables`: what else its file carries, such as the `swings` of a tornado.
    """

    rows: pl.DataFrame
    about: dict[str, Any]
    curves: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=CURVES))
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: Sequence[Row], about: dict[str, Any], curves: Sequence[pl.DataFrame] = ()) -> Result:
        """Build the frames."""
        return cls(
            pl.DataFrame(rows, schema=ROWS, orient="row"),
            about,
            pl.concat([pl.DataFrame(schema=CURVES), *curves]),
        )

    def records(self) -> list[dict[str, Any]]:
        """Return the rows as a list of dicts: what `--json` prints and polars reads as it stands."""
        return self.rows.to_dicts()

    def document(self) -> dict[str, Any]:
        """Return what the result file holds; curves as columns, a third of the size of rows."""
        return {
            "about": self.about,
            "rows": self.records(),
            "curves": self.curves.to_dict(as_series=False),
            **self.tables,
        }

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Put rows and provenance in place as one JSON file; UsageError if it exists and not `force`."""
        write_file(Path(path), (json.dumps(self.document(), indent=2) + "\n").encode(), force=force)


def provenance(
    trace: TraceLike,
    timeline: Timeline,
    facts: Survey,
    scenarios: Sequence[Scenario],
    profile: Profile,
    seed: int,
) -> dict[str, Any]:
    """Return everything needed to say where the rows come from, and to make them again."""
    path = getattr(trace, "path", None)
    return {
        "trace": {
            "path": None if path is None else str(path),
            "sha256": None if path is None else fingerprint(Path(path)),
            "source": trace.meta.source,
            "events": int(facts.counts.sum()),
            "lost": trace.lost,
            "span_ns": timeline.span_ns,
        },
        "scenarios": [
            {"name": s.name, "params": {k: dict(v) for k, v in s.params.items()}} for s in scenarios
        ],
        "profile": {
            "name": profile.name,
            "origin": profile.origin,
            "costs_ns": {name: [c.ns, c.low, c.high] for name, c in profile.costs.items()},
        },
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("tracekit", "numba", "numpy", "polars", "pyarrow")},
        },
        "seed": seed,
        "notes": notes(trace, timeline, facts),
    }


def notes(trace: TraceLike, timeline: Timeline, facts: Survey) -> list[str]:
    """Return what a reader of the figures must know about this trace."""
    said = []
    faults = int(facts.faults.sum())
    if trace.meta.source == "synthetic":
        said.append("synthetic trace: no figure here was measured on a real machine")
    missing = Missing.of(trace)
    if of_one_guest(trace):
        said.append(
            "recorded inside the guest: what its host did is not in the trace, so nothing is known of what "
            "would be saved (tracekit merge HOST GUEST)"
        )
    elif missing.events is None:
        said.append("an unknown number of events was lost: intervals have no bound")
    elif missing.events:
        said.append(
            f"{missing.events} events were lost: what was counted is a lower bound, "
            "intervals are widened by them"
        )
    if missing.swap_outs:
        said.append(
            f"{missing.swap_outs} swap-outs at most name no page of the guest: intervals of what moves pages "
            "are widened by them"
        )
    if timeline.outside_rows:
        said.append(f"{timeline.outside_rows} events name no known guest memory: counted, never saved")
    if timeline.own_faults:
        said.append(f"{timeline.own_faults} faults of the VMM on memory of its own: left out")
    if without := faults - int(facts.measured.sum()):
        said.append(f"{without} of {faults} faults have no recorded latency: priced by class")
    if timeline.own_ns:
        taken = ", ".join(f"{ns} ns of each {kind}" for kind, ns in timeline.own_ns.items())
        said.append(f"latencies are without the recorder's own programs between their two stamps: {taken}")
    if facts.earlier_bytes:
        known = math.isfinite(facts.earlier_bytes)
        pages = (
            str(round(facts.earlier_bytes / timeline.share / PAGE_BYTES)) if known else "an unknown number of"
        )
        said.append(
            f"{pages} pages may have been mapped before the recording began: resident is at least this"
        )
    if facts.assumed_slots:
        said.append("memslots are assumed: a gfn may name another page than the guest's")
    if faults and not facts.access_known:
        said.append("the trace holds no access bits (shadow paging): no fault is known to be a write")
    return said
