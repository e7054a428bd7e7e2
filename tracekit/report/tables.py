"""The ledger as a terminal table: 80 columns, one block per scenario, labels in words."""

from __future__ import annotations

from typing import Final

import polars as pl
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tracekit.report.ledger import LABELS, Entry, checked, entries, headline, scenarios, title
from tracekit.report.text import plain
from tracekit.report.units import human, human_interval

__all__ = ["WIDTH", "ledger_table"]

WIDTH: Final = 80
_STYLES: Final = {"measured": "green", "bounded": "yellow", "assumed": "magenta"}


def ledger_table(rows: pl.DataFrame, *, every: bool = False) -> RenderableType:
    """Return what each scenario saves as something rich can print, 80 columns wide.

    `rows` is a replay's result (columns of `ledger.COLUMNS`); `every` adds the metrics behind the
    headline ones. `saved` stands before the interval [low, high] that bounds it; a cost is negative.

    >>> from rich.console import Console
    >>> row = {"scenario": "prealloc", "mechanism": "prealloc", "metric": "faults", "unit": "count",
    ...        "baseline": 65537, "counterfactual": 0, "saved": 65537, "low": 65537, "high": 65537,
    ...        "label": "measured"}
    >>> Console(width=80, color_system=None).print(ledger_table(pl.from_dicts([row])))  # doctest: +ELLIPSIS
    prealloc
    ...
    """
    frame = checked(rows)
    blocks: list[RenderableType] = []
    for scenario in scenarios(frame):
        shown = entries(frame, scenario, every=every)
        blocks += [Text(plain(scenario), style="bold"), *_block(shown), _summary(frame, scenario), Text("")]
    used = frame["label"].unique().to_list()
    return Group(*blocks, _legend([name for name in LABELS if name in used]))


def _block(shown: list[Entry]) -> list[RenderableType]:
    if not shown:
        return []
    table = Table(box=None, width=WIDTH, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("metric", no_wrap=True, overflow="ellipsis", ratio=1)
    table.add_column("baseline", justify="right", no_wrap=True)
    table.add_column("counter-\nfactual", justify="right", no_wrap=True)
    table.add_column("saved", justify="right", no_wrap=True)
    table.add_column(Text("[low, high]"), no_wrap=True)
    table.add_column("label", no_wrap=True)
    for entry in shown:
        saved, interval = _saving(entry)
        table.add_row(
            Text(f"{plain(title(entry.metric))}"),
            Text(human(entry.baseline, entry.unit)),
            Text(human(entry.counterfactual, entry.unit)),
            Text(saved, style="bold" if entry.certain else ""),
            Text(interval, style="dim"),
            Text(entry.label, style=_STYLES[entry.label]),
        )
    return [table]


def _saving(entry: Entry) -> tuple[str, str]:
    if entry.exact and entry.saved is not None:
        return human(entry.saved, entry.unit), entry.spread
    return human_interval(entry.saved, entry.low, entry.high, entry.unit)


def _summary(frame: pl.DataFrame, scenario: str) -> Text:
    entry = headline(frame, scenario)
    return Text(f"= {entry.sentence()}" if entry else "= nothing to say about this scenario", style="cyan")


def _legend(used: list[str]) -> Text:
    """Name the labels that occur, one a line, so that no reader has to know a colour."""
    legend = Text()
    for label in used:
        legend.append(label, style=_STYLES[label])
        legend.append(f": {LABELS[label]}\n", style="dim")
    legend.right_crop(1)
    return legend
