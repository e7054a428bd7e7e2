"""Reads the rows of a replay: which metrics lead, which rows are totals, what one sentence says."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import polars as pl

from tracekit.errors import UsageError
from tracekit.report.text import plain
from tracekit.report.units import human, human_interval, human_share

__all__ = [
    "COLUMNS",
    "HEADLINE",
    "LABELS",
    "WITHOUT",
    "Entry",
    "checked",
    "entries",
    "headline",
    "scenarios",
    "shares",
    "title",
]

COLUMNS: Final = (
    "scenario",
    "mechanism",
    "metric",
    "unit",
    "baseline",
    "counterfactual",
    "saved",
    "low",
    "high",
    "label",
)
"""The columns of a result, in order; `low` and `high` bound `saved`."""

LABELS: Final[dict[str, str]] = {
    "measured": "follows from recorded events",
    "bounded": "an interval of all that is consistent with the trace",
    "assumed": "rests on a parameter of the scenario",
}

TOTAL: Final = frozenset({"all", "total", ""})
"""Mechanism names that mean the scenario as a whole."""

WITHOUT: Final = "without "
"""Before a mechanism's name: the row says what a combination would lose without it."""

_TITLES: Final[dict[str, str]] = {
    "stall": "guest stall",
    "critical_path": "critical path",
    "faults": "faults",
    "host_cpu_path": "host CPU on path",
    "host_cpu_background": "host CPU beside",
    "guest_cpu": "guest CPU",
    "zeroed_twice": "bytes zeroed twice",
    "resident_mean": "mean resident",
    "resident_peak": "peak resident",
    "refaults": "refaults",
    "hypercalls": "hypercalls",
    "prefaults_wasted": "prefaults wasted",
}

HEADLINE: Final = tuple(_TITLES)
"""The metrics shown first, most telling first; the rest of a result follows under `every metric`."""


@dataclass(frozen=True)
class Entry:
    """One row of a result."""

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

    @property
    def share(self) -> str:
        """The saved part of the baseline in percent."""
        return human_share(self.saved, self.baseline)

    @property
    def exact(self) -> bool:
        """Whether the interval is the saving itself."""
        return self.saved is not None and self.low == self.saved == self.high

    @property
    def telling(self) -> bool:
        """Whether there is anything to tell: not all zero."""
        return any(v is None or v != 0 for v in (self.baseline, self.saved, self.low, self.high))

    @property
    def at_most(self) -> bool:
        """Whether the value is what the trace leaves possible at the best, so that it reads "at most"."""
        low, saved = self.low, self.saved
        best = self.label == "bounded" and saved is not None and saved == self.high
        return best and saved != 0 and (low is None or low < (saved or 0))

    @property
    def spread(self) -> str:
        """What stands for an interval of no width: exact, or not questioned because it was assumed."""
        return "no spread" if self.label == "assumed" else "exact"

    @property
    def rank(self) -> tuple[float, int, float]:
        """Sort key that puts the surest saving first: what is saved at the least, then the better label."""
        return -round(self.sure_share, 2), list(LABELS).index(self.label), -(self.saved or 0.0)

    @property
    def sure_share(self) -> float:
        """The share of the baseline that is saved at the least."""
        least = self.saved if self.low is None else self.low
        return (least or 0.0) / (self.baseline or 1.0)

    @property
    def certain(self) -> bool:
        """Whether the interval leaves out zero: the sign of the saving is known."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    @property
    def verb(self) -> str:
        """Whether the scenario saves or costs."""
        return "saves" if (self.saved or 0) >= 0 else "costs"

    @property
    def amount(self) -> tuple[float | None, float | None, float | None]:
        """The saving, or the cost as a positive number, with its interval turned the same way."""
        if self.saved is None or self.saved >= 0:
            return self.saved, self.low, self.high
        low, high = (None if end is None else -end for end in (self.high, self.low))
        return -self.saved, low, high

    def sentence(self) -> str:
        """Say the saving in words, with its interval and label.

        >>> Entry("zeroing", "zeroing", "stall", "ns", 9e9, 8e9, 1e9, 9e8, 1.1e9, "bounded").sentence()
        'guest stall: saves 1.00 s [0.90, 1.10] of 9.00 s (11 %), bounded'
        """
        name, whole = title(self.metric), human(self.baseline, self.unit)
        if self.saved is None:
            return f"{name}: unknown, {self.label}"
        if self.exact and self.saved == 0:
            return f"{name}: unchanged at {whole}, {self.label}"
        value, interval = human_interval(*self.amount, self.unit)
        limit = "" if not self.at_most else "at most " if self.verb == "saves" else "at least "
        said = value if self.exact else f"{limit}{value} {interval}"
        share = f" ({self.share.lstrip('-')})" if self.share else ""
        return f"{name}: {self.verb} {said} of {whole}{share}, {self.label}"


def title(metric: str) -> str:
    """Return the words for a metric: known ones by table, others by their name; of a part, with the part.

    >>> title("stall"), title("stall_p99"), title("critical_path:boot")
    ('guest stall', 'stall p99', 'critical path, boot')
    """
    name, colon, part = metric.partition(":")
    said = _TITLES.get(name, name.replace("_", " "))
    return f"{said}, {part}" if colon else said


def checked(rows: pl.DataFrame | Iterable[dict[str, Any]]) -> pl.DataFrame:
    """Return a result's rows with exactly the ledger columns and types; UsageError where one is missing.

    >>> checked([{"scenario": "s"}])
    Traceback (most recent call last):
    ...
    tracekit.errors.UsageError: not a replay result: column mechanism is missing
    """
    number, text = pl.Float64(), pl.String()
    types = dict.fromkeys(COLUMNS, number) | dict.fromkeys(
        ("scenario", "mechanism", "metric", "unit", "label"), text
    )
    hint = "tracekit replay TRACE --scenario NAME --json > result.json"
    try:
        frame = (
            rows if isinstance(rows, pl.DataFrame) else pl.from_dicts(list(rows), infer_schema_length=None)
        )
        missing = [name for name in COLUMNS if name not in frame.columns]
        if missing:
            raise UsageError(f"not a replay result: column {missing[0]} is missing", hint=hint)
        frame = frame.select(pl.col(name).cast(types[name]) for name in COLUMNS)
    except (pl.exceptions.PolarsError, TypeError, ValueError) as error:
        raise UsageError(f"not a replay result: {plain(error, longest=120)}", hint=hint) from error
    strange = frame.filter(~pl.col("label").is_in(list(LABELS)).fill_null(False))
    if strange.height:
        raise UsageError(
            f"not a replay result: label {plain(strange['label'][0])} is none of {', '.join(LABELS)}",
            hint=hint,
        )
    return frame


def scenarios(rows: pl.DataFrame) -> list[str]:
    """Return the scenarios of a result in their order."""
    return rows["scenario"].unique(maintain_order=True).to_list()


def entries(rows: pl.DataFrame, scenario: str, *, every: bool = False) -> list[Entry]:
    """Return a scenario's totals: the headline metrics that tell something; with `every`, all others behind.

    A scenario's total is the row whose mechanism is "all"; where there is none, the single mechanism's row.
    """
    found = [Entry(**row) for row in rows.filter(pl.col("scenario") == scenario).iter_rows(named=True)]
    by_metric: dict[str, list[Entry]] = {}
    for entry in found:
        by_metric.setdefault(entry.metric, []).append(entry)
    totals = dict(_totals(by_metric))
    leading = [*HEADLINE, *(m for m in totals if m.startswith("critical_path:"))]
    ordered = [totals.pop(m) for m in leading if m in totals and totals[m].telling]
    return [*ordered, *totals.values()] if every else ordered


def _totals(by_metric: dict[str, list[Entry]]) -> Iterator[tuple[str, Entry]]:
    for metric, found in by_metric.items():
        whole = [entry for entry in found if entry.mechanism in TOTAL]
        if whole or len(found) == 1:
            yield metric, (whole or found)[0]


def shares(rows: pl.DataFrame, scenario: str, metric: str) -> list[tuple[str, Entry, Entry | None]]:
    """Return a combination's mechanisms in order: name, step of the waterfall, and what it alone adds.

    Empty for a scenario of one mechanism.
    """
    mine = rows.filter((pl.col("scenario") == scenario) & (pl.col("metric") == metric))
    found = {row["mechanism"]: Entry(**row) for row in mine.iter_rows(named=True)}
    names = [name for name in found if name not in TOTAL and not name.startswith(WITHOUT)]
    return [(name, found[name], found.get(WITHOUT + name)) for name in names] if len(names) > 1 else []


def headline(rows: pl.DataFrame, scenario: str) -> Entry | None:
    """Return the entry that says most about a scenario: the first headline metric that moves.

    Time that a guest waits leads, then faults, CPU and memory (the order of HEADLINE).
    """
    leading = entries(rows, scenario)
    moving = [e for e in leading if e.saved and math.isfinite(e.saved)]
    return next(iter(moving or leading), None)
