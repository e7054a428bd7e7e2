"""VMs per host as a terminal table and as JSON."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tracekit.report.tables import WIDTH
from tracekit.report.text import plain
from tracekit.report.units import human

if TYPE_CHECKING:
    from tracekit.replay.fleet import Density
    from tracekit.replay.fleet.capacity import Fit
    from tracekit.replay.uncertainty import Statistical
    from tracekit.replay.uncertainty.answers import Identification

__all__ = ["density_json", "density_table"]


def density_table(answer: Density, vm_class: str = "") -> RenderableType:
    """Return VMs per host for each scenario, then what happens when a host runs over."""
    phase = {0.0: "random phases", 1.0: "all aligned"}.get(
        answer.together, f"{answer.together:.0%} of VMs peak together"
    )
    whose = f" of class {plain(vm_class)}" if vm_class else ""
    head = (
        f"VMs{whose} per host with {human(answer.room_bytes, 'bytes')} for them, over at most"
        f" {answer.risk:g} of the time ({answer.vms_seen} VMs seen, {phase})"
    )
    blocks: list[RenderableType] = [Text(head, style="bold"), _fits(answer), Text("")]
    if any(fit.band.low != fit.band.high or fit.band.low is None for fit in answer.fits):
        blocks += [_bands(answer), Text("")]
    blocks.append(_overflows(answer))
    blocks += [Text(f"note: {plain(note)}", style="yellow") for note in answer.notes]
    return Group(*blocks)


def density_json(answer: Density) -> dict[str, Any]:
    """Return everything that is known, with the table's names."""
    return asdict(answer)


def _fits(answer: Density) -> Table:
    table = _table("scenario", "VMs", "[95 %]", "extra", "[95 %]", "risk", "one more")
    money = any(fit.saving for fit in answer.fits)
    if money:
        table.add_column("hosts saved", justify="right")
    for fit in answer.fits:
        cells = [
            plain(fit.scenario),
            f"{fit.vms:,}",
            _ends(fit.interval),
            f"{fit.extra:+,}" if fit.extra else "0",
            _ends(fit.extra_interval),
            f"{fit.risk:.2g}",
            f"{fit.risk_of_one_more:.2g}",
        ]
        table.add_row(*cells, *([_saving(fit)] if money else []))
    return table


def _bands(answer: Density) -> Table:
    """Return what the traces of these VMs leave open; no statistics in it."""
    table = _table("what the traces leave open", "VMs between", "extra between")
    for fit in answer.fits:
        table.add_row(plain(fit.scenario), _ends(fit.band), _ends(fit.extra_band))
    return table


def _saving(fit: Fit) -> str:
    if fit.saving is None:
        return ""
    money = f" = {fit.saving.money_saved:,.0f}" if fit.saving.money_saved else ""
    return f"{fit.saving.hosts_saved:,} of {fit.saving.hosts + fit.saving.hosts_saved:,}{money}"


def _overflows(answer: Density) -> Table:
    names = ("hosts\never", "a day", "lasts", "peak", "swap\na day", "balloons\ntake", "kills\na day")
    table = _table("when over", *names)
    for fit in answer.fits:
        over = fit.overflow
        if over is None:
            continue
        table.add_row(
            plain(fit.scenario),
            f"{over.hosts_ever:.1%}",
            f"{over.episodes:.2g}",
            human(over.mean_s * 1e9, "ns"),
            human(over.peak_bytes, "bytes"),
            human(over.swap_bytes, "bytes"),
            f"{1 - over.balloon_share_of_time / over.share_of_time:.0%}" if over.share_of_time else "",
            f"{over.oom_kills:.2g}",
        )
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, width=WIDTH, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    table.add_column(first, no_wrap=True, overflow="ellipsis", ratio=1)
    for name in others:
        table.add_column(Text(name), justify="right", no_wrap=True)
    return table


def _ends(interval: Statistical | Identification) -> str:
    low = "?" if interval.low is None else f"{math.floor(interval.low):,}"
    high = "?" if interval.high is None else f"{math.ceil(interval.high):,}"
    return f"[{low}, {high}]"
