"""The ledger as a terminal table: 80 columns, one block per scenario, labels in words."""

from __future__ import annotations

from typing import Final

import polars as pl
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from tracekit.report.ledger import LABELS, Entry, checked, entries, headline, scenarios, shares, title
from tracekit.report.spark import range_bar
from tracekit.report.text import plain
from tracekit.report.units import human, human_interval

__all__ = ["WIDTH", "brief_table", "chance_table", "ledger_table"]

WIDTH: Final = 80
_BAR: Final = 20
_NAME: Final = 19  # what the brief table has room for: free_page_reporting
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
        blocks += [Text(plain(scenario), style="bold"), *_block(shown), *_shares(frame, scenario)]
        blocks += [_summary(frame, scenario), Text("")]
    used = frame["label"].unique().to_list()
    return Group(*blocks, _Bars(frame), Text(""), _legend([name for name in LABELS if name in used]))


def chance_table(rows: pl.DataFrame) -> RenderableType:
    """Return the confidence intervals of a bootstrapped result: what such recordings show on average.

    They stand apart from what the trace leaves open, [low, high] of the ledger; the two don't add up.
    """
    table = Table(box=None, width=WIDTH, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("by chance alone, 95 %", overflow="fold", ratio=1)
    table.add_column("saved", justify="right", no_wrap=True)
    table.add_column(Text("[low, high]"), no_wrap=True)
    table.add_column("blocks of time", overflow="fold", ratio=1)
    for row in rows.filter(pl.col("chance_blocks").is_not_null()).iter_rows(named=True):
        ends = row["chance_low"], row["chance_high"]
        shown = human_interval(row["saved"], *ends, row["unit"]) if ends != (None, None) else ("", "none")
        said = f"{row['chance_blocks']}{'; ' if row['chance_note'] else ''}{row['chance_note']}"
        table.add_row(Text(f"{plain(row['scenario'])}: {title(row['metric'])}"), *map(Text, (*shown, said)))
    return table


def brief_table(rows: pl.DataFrame) -> RenderableType:
    """Return one line per scenario: what it saves of stall and of mean resident memory, with intervals.

    Each figure's label is its first letter; the legend below names those that occur.
    """
    frame = checked(rows)
    table = Table(box=None, width=WIDTH, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("saved by", overflow="fold", ratio=1)
    for name in ("stall", "memory"):
        for one in (name, "[low, high]", ""):
            table.add_column(Text(one), justify="right", no_wrap=True)
    used = set()
    for scenario in scenarios(frame):
        found = {entry.metric: entry for entry in entries(frame, scenario, every=True)}
        cells = []
        for metric in ("stall", "resident_mean"):
            label = found[metric].label if metric in found else ""
            saved = _saving(found[metric]) if metric in found else ("", "")
            cells += [*map(Text, saved), Text(label[:1], style=_STYLES.get(label, ""))]
            used.add(label)
        table.add_row(Text(_in_lines(plain(scenario))), *cells)
    legend = (Text(f"{name[0]} = {name}: {LABELS[name]}", style="dim") for name in LABELS if name in used)
    return Group(table, Text(""), *legend)


def _in_lines(scenario: str) -> str:
    """Break a long name where its parameters are."""
    name, comma, parameters = scenario.partition(",")
    return f"{name},\n {parameters}" if comma and len(scenario) > _NAME else scenario


class _Bars:
    """Each scenario's headline as a bar, the surest first: solid is sure, shaded is possible."""

    def __init__(self, frame: pl.DataFrame) -> None:
        found = {scenario: headline(frame, scenario) for scenario in scenarios(frame)}
        leading = [(scenario, entry) for scenario, entry in found.items() if entry is not None]
        self.entries = sorted(leading, key=lambda pair: pair[1].rank)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table(box=None, width=WIDTH, padding=(0, 1, 0, 0), pad_edge=False, show_header=False)
        table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        for _ in range(3):
            table.add_column(no_wrap=True)
        for scenario, entry in self.entries:
            if entry.saved is None or not entry.baseline or entry.verb == "costs":
                continue
            ends = (None if end is None else end / entry.baseline for end in (entry.low, entry.high))
            drawn = range_bar(*ends, width=_BAR, ascii_only=options.ascii_only)
            words = f"{'' if entry.certain else 'up to '}{entry.share} of {title(entry.metric)}"
            table.add_row(Text(plain(scenario)), Text(drawn, style="cyan"), Text(words), Text(entry.label))
        if table.row_count:
            yield table


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


def _shares(frame: pl.DataFrame, scenario: str) -> list[RenderableType]:
    """Say what each mechanism of a combination adds: after those before it, and after all others."""
    entry = headline(frame, scenario)
    found = shares(frame, scenario, entry.metric) if entry else []
    if entry is None or not found:
        return []
    table = Table(box=None, width=WIDTH, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    table.add_column(Text(f"{plain(title(entry.metric))}, by mechanism"), overflow="fold", ratio=1)
    for name in ("in this order", "[low, high]", "if left out", "[low, high]"):
        table.add_column(Text(name), justify="right", no_wrap=True)
    for name, step, alone in found:
        last = ("", "") if alone is None else _saving(alone)
        table.add_row(Text(plain(name)), *map(Text, (*_saving(step), *last)))
    return [Text(""), table]


def _saving(entry: Entry) -> tuple[str, str]:
    if entry.exact and entry.saved is not None:
        return human(entry.saved, entry.unit), entry.spread
    value, interval = human_interval(entry.saved, entry.low, entry.high, entry.unit)
    return f"<= {value}" if entry.at_most else value, interval


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
