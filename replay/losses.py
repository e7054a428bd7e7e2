"""What lost events do to a figure: its interval grows by what they could have been."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from tracekit.replay.ledger import Figure, unit_of, weaker
from tracekit.trace.schema import PAGE_BYTES

__all__ = ["with_losses"]


def with_losses(
    figures: Mapping[str, Figure], lost: int | None, *, changed: bool = True
) -> dict[str, Figure]:
    """Return the figures widened by `lost` events (None = an unknown number: no bound on either side).

    Each lost event may have been a fault that the scenario saves, or the discard that would have made a saved
    fault happen after all: counts move by one per event, stall by one p99.9 stall, pages by one 2 MiB block.
    That holds for a figure that seems untouched too. With no mechanism on (not `changed`) nothing can be
    saved, but what was counted is a lower bound all the same: only the label says so.
    """
    if lost == 0:
        return dict(figures)
    if not changed:
        return {name: replace(f, label=weaker(f.label, "bounded")) for name, f in figures.items()}
    tail = figures["stall_p99.9"].baseline if "stall_p99.9" in figures else 0.0
    return {name: _widened(name, figure, lost, tail) for name, figure in figures.items()}


def _widened(name: str, figure: Figure, lost: int | None, tail: float) -> Figure:
    if lost is None:
        step = math.inf
    elif unit_of(name) == "ns":
        step = lost * tail
    elif name.startswith("resident") or name == "zeroed_twice":
        step = lost * 512.0 * (PAGE_BYTES if name != "resident_time" else 0)
        if name == "resident_time":
            step = math.inf
    else:
        step = float(lost)
    saved = figure.saved
    return replace(
        figure,
        saved=saved._replace(low=saved.low - step, high=saved.high + step),
        label=weaker(figure.label, "bounded"),
    )
