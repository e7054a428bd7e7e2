"""What a fleet would save per VM, as a terminal table."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tracekit.report.ledger import title
from tracekit.report.tables import WIDTH
from tracekit.report.text import plain
from tracekit.report.units import human, human_interval

if TYPE_CHECKING:
    from tracekit.replay.fleet.summary import Summary

__all__ = ["fleet_table"]


def fleet_table(found: Sequence[Summary]) -> RenderableType:
    """Return the mean saving per VM, one block per class and scenario; metrics that don't move are left out.

    `band` bounds what the traces leave open, `95 %` which VMs were recorded; both bound the mean.
    """
    blocks: list[RenderableType] = []
    for (vm_class, scenario), some in groupby(found, key=lambda one: (one.vm_class, one.scenario)):
        rows = list(some)
        whose = f", class {plain(vm_class)}" if vm_class else ""
        vms = max(one.vms for one in rows)
        head = f"{plain(scenario)}: saved per VM ({vms} VMs{whose}{_synthetic(rows)})"
        blocks += [Text(head, style="bold"), _block(rows), Text("")]
    return Group(*blocks)


def _block(rows: Sequence[Summary]) -> RenderableType:
    table = Table(box=None, width=WIDTH, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("metric", no_wrap=True, overflow="ellipsis", ratio=1)
    for name in ("baseline", "saved", "band", "95 %"):
        table.add_column(Text(name), justify="right", no_wrap=True)
    moving = [one for one in rows if one.saved or one.band.low or one.band.high]
    for one in moving:
        saved, band = human_interval(one.saved, one.band.low, one.band.high, one.unit)
        _, chance = human_interval(one.saved, one.interval.low, one.interval.high, one.unit)
        table.add_row(
            plain(title(one.metric)), human(one.baseline, one.unit), saved, Text(band), Text(chance)
        )
    return table if moving else Text("nothing that it moves", style="dim")


def _synthetic(rows: Sequence[Summary]) -> str:
    synthetic, vms = max(one.synthetic for one in rows), max(one.vms for one in rows)
    if not synthetic:
        return ""
    return ", all synthetic" if synthetic == vms else f", {synthetic} of them synthetic"
