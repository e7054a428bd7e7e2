"""Resident memory over time as a line of blocks for each scenario, on one scale."""

from __future__ import annotations

from typing import Final

import polars as pl
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from tracekit.report.spark import sparkline
from tracekit.report.text import plain
from tracekit.report.units import human

__all__ = ["ResidentLines"]

_WIDTH: Final = 80
_MARKS: Final = 40


class ResidentLines:
    """What rich can print of a replay's `curves` (scenario, ts_ns, resident_bytes); nothing without rows.

    >>> curves = pl.DataFrame({"scenario": ["baseline"] * 2, "ts_ns": [0, 100], "resident_bytes": [0, 4096]})
    >>> Console(width=80, color_system=None).print(ResidentLines(curves))  # doctest: +ELLIPSIS
    resident memory ... peak
    baseline ...█ 4.00 KiB
    ...
    """

    def __init__(self, curves: pl.DataFrame) -> None:
        self._curves = curves

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw each scenario's curve; its steps hold until the next point."""
        if not self._curves.height:
            return
        top = float(self._curves["resident_bytes"].max() or 0)  # type: ignore[arg-type]
        start, stop = int(self._curves["ts_ns"].min()), int(self._curves["ts_ns"].max())  # type: ignore[arg-type]
        ends = pl.Series([start + (stop - start) * mark // _MARKS for mark in range(1, _MARKS + 1)])
        table = Table(box=None, width=_WIDTH, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
        table.add_column("resident memory", no_wrap=True, overflow="ellipsis", ratio=1)
        table.add_column(Text(f"from start to end, full = {human(top, 'bytes')}"), no_wrap=True)
        table.add_column("peak", justify="right", no_wrap=True)
        for (scenario,), curve in self._curves.group_by("scenario", maintain_order=True):
            points = curve.sort("ts_ns")
            # The value that holds at the end of each mark's span.
            at = points["ts_ns"].search_sorted(ends, "right") - 1
            values = [None if i < 0 else float(points["resident_bytes"][int(i)]) for i in at]
            drawn = sparkline(values, width=_MARKS, top=top, ascii_only=options.ascii_only)
            peak = human(float(curve["resident_bytes"].max() or 0), "bytes")  # type: ignore[arg-type]
            table.add_row(Text(plain(str(scenario))), Text(drawn, style="cyan"), peak)
        yield table
        yield Text("each scenario's point figure; its bounds are above", style="dim")
