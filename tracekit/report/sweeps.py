"""A sweep as terminal tables: the grid, where it starts to pay, and which parameter matters most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import polars as pl
from rich.console import RenderableType
from rich.table import Table

from tracekit.report.tables import WIDTH
from tracekit.report.text import plain
from tracekit.report.units import human, human_interval

if TYPE_CHECKING:
    from tracekit.replay.uncertainty import Sensitivity, Share, Statistical

__all__ = ["curve_table", "grid_table", "sobol_table", "tornado_table"]


def _table(*columns: str) -> Table:
    table = Table(box=None, width=WIDTH, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    table.add_column(columns[0], overflow="fold", ratio=1)
    for name in columns[1:]:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def grid_table(rows: pl.DataFrame, metric: str) -> RenderableType:
    """Return one line per setting: what it saves of `metric`, with interval and label.

    `rows` is a result whose scenarios are the settings; the last line is what the eye should find first.
    """
    whole = rows.filter(pl.col("metric") == metric).unique("scenario", keep="first", maintain_order=True)
    table = _table("setting", "saved", "[low, high]", "label")
    for row in whole.iter_rows(named=True):
        shown = human_interval(row["saved"], row["low"], row["high"], row["unit"])
        table.add_row(plain(row["scenario"]), *shown, row["label"])
    return table


def tornado_table(found: Sequence[Sensitivity], unit: str) -> RenderableType:
    """Return one line per parameter, the one that moves the saving most first."""
    table = _table("parameter", "range", "saved at low", "as it is", "saved at high")
    for one in found:
        table.add_row(
            plain(one.parameter),
            f"{one.at_low:g} … {one.at_high:g}",
            *(human(value, unit) for value in (one.value_at_low, one.value, one.value_at_high)),
        )
    return table


def sobol_table(found: Sequence[Share]) -> RenderableType:
    """Return each parameter's share of the variance, alone and with its interactions, with 95 % intervals."""
    table = _table("parameter", "alone", "[low, high]", "in all", "[low, high]")
    for one in found:
        first, total = one.first_interval, one.total_interval
        table.add_row(
            plain(one.parameter),
            f"{one.first:.2f}",
            _interval(first),
            f"{one.total:.2f}",
            _interval(total),
        )
    return table


def _interval(found: Statistical) -> str:
    """Show an interval; a note of the answer says why, where there is none."""
    if found.low is None or found.high is None:
        return "none"
    return f"[{found.low:.2f}, {found.high:.2f}]"


def curve_table(rows: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Return one line per memory limit: swap-ins, and the share of all uses that they and first uses are."""
    table = _table("limit", "swap-ins", "miss ratio", "[low, high]", "label")
    for row in rows:
        ends = "exact for LRU" if row["band"] == "exact" else f"[{row['low']:.3f}, {row['high']:.3f}]"
        table.add_row(
            human(row["resident_bytes"], "bytes"),
            f"{row['swap_ins']:,}",
            f"{row['miss_ratio']:.3f}",
            ends,
            row["label"],
        )
    return table
