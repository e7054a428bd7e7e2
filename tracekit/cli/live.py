"""What `tracekit record` shows while it records: rates by kind, memory, losses, disk, the newest faults."""

from __future__ import annotations

from collections import deque
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from tracekit.cli.stream import FaultStream

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.table import Table

    from tracekit.probes.plan import Status

__all__ = ["LiveView"]

_WINDOW_S: Final = 2.0
_FAULTS, _FEWEST_FAULTS = 10, 1
_OTHER_LINES: Final = 10  # titles, headings, rules, caption


class LiveView:
    """Tables on the terminal, brought up to date by `update`; nothing at all when it is not `shown`."""

    def __init__(self, console: Console, *, shown: bool) -> None:
        self._console, self._shown = console, shown
        self._live: Live | None = None
        self._recent: deque[Status] = deque()
        self._faults = FaultStream()

    def update(self, status: Status | None) -> None:
        """Show how the recording stands; None takes the tables away, as it has stopped."""
        if self._live is None:
            return
        if status is None:
            self._live.stop()
            self._live = None
            return
        self._recent.append(status)
        while status.seconds - self._recent[0].seconds > _WINDOW_S:
            self._recent.popleft()
        self._faults.add(status.newest)
        self._live.update(self._tables(status), refresh=True)

    def __enter__(self) -> Self:
        """Begin to show."""
        if self._shown:
            from rich.live import Live

            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        """Take the table away."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _tables(self, status: Status) -> Group:
        from rich.console import Group
        from rich.text import Text

        room = self._console.height - _OTHER_LINES - len(status.kinds)
        faults = self._faults.table(
            start_ns=status.start_ns,
            rows=max(_FEWEST_FAULTS, min(_FAULTS, room)),
            ascii_only=self._console.options.ascii_only,
        )
        rates = Group(self._table(status), Text(self._caption(status), style="dim"))
        return Group(rates, "", faults) if faults.row_count else rates

    def _table(self, status: Status) -> Table:
        from rich.table import Table

        before = self._recent[0]
        seconds = max(status.seconds - before.seconds, 1e-9)
        table = Table(title=f"recording, {status.seconds:.0f} s  (Ctrl-C ends it)", title_justify="left")
        for heading in ("kind", "events", "per second"):
            table.add_column(heading, justify="left" if heading == "kind" else "right")
        for kind, count in sorted(status.kinds.items(), key=lambda item: -item[1]):
            rate = (count - before.kinds.get(kind, 0)) / seconds if before is not status else 0.0
            table.add_row(kind, f"{count:,}", f"{rate:,.0f}")
        return table

    @staticmethod
    def _caption(status: Status) -> str:
        from tracekit.report.units import human

        lost = "unknown" if status.lost is None else f"{status.lost:,}"
        disk = human(status.bytes_written, "bytes")
        parts = [f"lost {lost}", f"ring {status.ring_share:.0%}", f"disk {disk}"]
        if status.held_bytes:
            parts.append("held " + human(status.held_bytes, "bytes"))
        if "rss_bytes" in status.samples:
            parts.append("VMM resident " + human(status.samples["rss_bytes"], "bytes"))
        return " · ".join(parts)
