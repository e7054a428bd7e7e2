"""The newest faults, scrolling by: when, what, where, and how long the VM waited."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["FaultStream"]

_MOST: Final = 16
_LEVELS: Final = {1: "4K", 2: "2M", 3: "1G"}
_BAR: Final = 12
_SHORTEST_NS, _DECADES = 1_000.0, 4.0  # the bar grows from 1 us to 10 ms, by the logarithm
_SLOW: Final = ((1_000_000, "bold red"), (100_000, "yellow"))


class FaultStream:
    """Keeps the newest rows that had a latency, and draws them: the newest at the bottom.

    >>> stream = FaultStream()
    >>> stream.add([{"ts_ns": 5_000, "kind": "ept_violation", "gfn": 512, "latency_ns": 3_580}])
    >>> stream.add([{"ts_ns": 5_000, "kind": "ept_violation", "gfn": 512, "latency_ns": 3_580}])
    >>> stream.table(start_ns=0, rows=8).row_count
    1
    """

    def __init__(self) -> None:
        self._rows: deque[Mapping[str, Any]] = deque(maxlen=_MOST)
        self._newest_ns = -1

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Take in rows of the event table, oldest first; those that were there already are left out."""
        new = [row for row in rows if row["ts_ns"] > self._newest_ns]
        if new:
            self._newest_ns = new[-1]["ts_ns"]
            self._rows.extend(new)

    def table(self, *, start_ns: int, rows: int, ascii_only: bool = False) -> Table:
        """Return the last `rows` of them, with times since `start_ns`; at most 80 columns wide."""
        from rich.table import Table
        from rich.text import Text

        from tracekit.report.spark import bar
        from tracekit.report.units import human

        table = Table(title="newest faults", title_justify="left", box=None, padding=(0, 1, 0, 0))
        for heading in ("at", "kind", "vm", "vCPU", "gfn", "level", "latency", ""):
            left = heading in ("kind", "")
            table.add_column(heading, justify="left" if left else "right", no_wrap=True)
        for row in list(self._rows)[-rows:] if rows > 0 else []:
            latency_ns = row["latency_ns"]
            decades = math.log10(max(latency_ns / _SHORTEST_NS, 1.1))
            style = next((style for least_ns, style in _SLOW if latency_ns >= least_ns), "cyan")
            table.add_row(
                f"{(row['ts_ns'] - start_ns) / 1e9:.3f} s",
                str(row["kind"]),
                _known(row.get("vm")),
                _known(row.get("vcpu")),
                "" if row.get("gfn") is None else f"{row['gfn']:#x}",
                _LEVELS.get(row.get("level") or 0, ""),
                human(latency_ns, "ns"),
                Text(bar(decades, _DECADES, width=_BAR, ascii_only=ascii_only), style=style),
            )
        return table


def _known(number: int | None) -> str:
    return "" if number is None else str(number)
