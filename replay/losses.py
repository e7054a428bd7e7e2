"""What lost events do to a figure: its interval grows by what they could have been."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import polars as pl

from tracekit.replay.ledger import Figure, unit_of, weaker
from tracekit.replay.timeline import TraceLike
from tracekit.trace.loss_reasons import SWAP_OUT_UNPLACED, most_of
from tracekit.trace.schema import PAGE_BYTES

__all__ = ["Missing", "of_one_guest", "with_losses"]


def of_one_guest(trace: TraceLike) -> bool:
    """Say whether a trace was recorded inside its guest and holds nothing that the host did.

    >>> from tracekit.trace import open_trace
    >>> of_one_guest(open_trace("datasets/data/guest-side.trace"))
    True
    """
    return getattr(trace.meta, "extra", {}).get("side") == "guest"


@dataclass(frozen=True)
class Missing:
    """What a trace does not hold: `events` (None = an unknown number), and at most so many `swap_outs`.

    Of a guest alone that is all that its host did.

    A swap-out that names no page leaves open which one the host has no more. Faults on it are in the trace.

    >>> Missing(2, 100).that_matter(moved=True), Missing(2, 100).that_matter(moved=False)
    (102, 2)
    """

    events: int | None = 0
    swap_outs: int = 0

    @classmethod
    def of(cls, trace: TraceLike) -> Missing:
        """Take both from a trace's ledger.

        >>> from tracekit.trace import open_trace
        >>> Missing.of(open_trace("datasets/data/limit-zram.trace"))
        Missing(events=0, swap_outs=0)
        """
        if of_one_guest(trace):
            return cls(None)
        if trace.lost is not None:
            return cls(trace.lost)
        unknown = trace.losses.filter(pl.col("lost").is_null())["reason"]
        swap_outs = [most_of(one) for one in unknown if one.startswith(SWAP_OUT_UNPLACED)]
        bounds = [most for most in swap_outs if most is not None]
        if not bounds or len(bounds) < len(unknown):
            return cls(None)
        return cls(int(trace.losses["lost"].sum()), sum(bounds))

    def that_matter(self, *, moved: bool) -> int | None:
        """Return how many there are at most that matter; `moved`: what is on backs pages or takes them.

        Where nothing does, which pages the host has does not matter: they are the same in both worlds.
        """
        return self.events if self.events is None or not moved else self.events + self.swap_outs


def with_losses(
    figures: Mapping[str, Figure], missing: Missing, *, changed: bool = True, moved: bool = True
) -> dict[str, Figure]:
    """Return the figures widened by what is missing (an unknown number of events: no bound on either side).

    Each lost event may have been a fault that the scenario saves, or the discard that would have made a saved
    fault happen after all: counts move by one per event, stall by one p99.9 stall, pages by one 2 MiB block.
    That holds for a figure that seems untouched too. With no mechanism on (not `changed`) nothing can be
    saved, but what was counted is a lower bound all the same: only the label says so. `moved`: of `Missing`.
    """
    lost = missing.that_matter(moved=changed and moved)
    if lost == 0:
        unsure = [name for name in figures if missing.swap_outs and name.startswith("resident")]
        return dict(figures) | _bounded(figures, unsure)
    if not changed:
        return _bounded(figures, figures)
    tail = figures["stall_p99.9"].baseline if "stall_p99.9" in figures else 0.0
    return {name: _widened(name, figure, lost, tail) for name, figure in figures.items()}


def _bounded(figures: Mapping[str, Figure], names: Iterable[str]) -> dict[str, Figure]:
    return {name: replace(figures[name], label=weaker(figures[name].label, "bounded")) for name in names}


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
