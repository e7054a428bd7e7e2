"""A whole curve of memory limits from one pass: the swap-ins of LRU at each, as `swap` counts them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tracekit.errors import UsageError
from tracekit.replay import events as ev
from tracekit.replay.events import Columns
from tracekit.replay.jit import compiled, int64
from tracekit.replay.missratio import MissRatioCurve, Shards, StackDistances
from tracekit.replay.missratio.references import FORGET, TOUCH
from tracekit.replay.pages import maps
from tracekit.replay.reduction import PLAIN_ROWS
from tracekit.replay.running import Room
from tracekit.replay.scenarios import Scenario
from tracekit.replay.timeline import Timeline
from tracekit.replay.uncertainty import Variation
from tracekit.trace.schema import PAGE_BYTES

__all__ = ["curve_of_limits", "curve_rows", "limits_of", "pages_of", "seen_uses", "varied_limits"]

MIB: Final = 1 << 20


def limits_of(
    room: Room, scenario: Scenario, variations: Sequence[Variation], *, rate: float = 1.0
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the rows of the curve that a sweep asks for, and what its reader must know."""
    limits = varied_limits(scenario, variations)
    capacities = pages_of(limits, float(scenario.params["swap"]["other_mib"]))
    curve = curve_of_limits(room.timeline, capacities, rate=rate, seed=room.seed)
    said = [
        *curve.notes,
        "the host is taken to evict what was used least recently; other orders: without --curve",
    ]
    if not room.facts.counts[ev.ACCESSED]:
        said.append("no access samples: uses of mapped pages are not seen, and each may be a swap-in more")
    return curve_rows(curve, limits), said


def varied_limits(scenario: Scenario, variations: Sequence[Variation]) -> NDArray[np.float64]:
    """Return the limits that a sweep asks about, MiB. Raises UsageError where no one pass answers it."""
    names = [m.name for m in scenario.mechanisms]
    asked = [one.name.rpartition(".")[2] for one in variations]
    if names != ["swap"] or asked != ["limit_mib"] or isinstance(variations[0].values, tuple):
        raise UsageError(
            "a curve is one of limits: swap alone, and nothing else varied",
            hint="-s swap --vary limit_mib=16:256:100 --curve",
        )
    return np.unique(variations[0].values)


def curve_of_limits(
    timeline: Timeline, capacity_pages: ArrayLike, *, rate: float = 1.0, seed: int = 0
) -> MissRatioCurve:
    """Return the miss ratio of LRU at each of these limits, from one pass over the seen uses.

    `rate` below 1: from that share of the pages, with a 95 % band (`Shards`). It is *assumed*: that the host
    evicts by LRU, and that there are no uses but those that the trace shows.
    """
    found: StackDistances | Shards = (
        StackDistances(timeline.index.pages)
        if rate >= 1
        else Shards(rate=rate, seed=seed, pages=timeline.index.pages)
    )
    for pages, ops in seen_uses(timeline):
        found.feed(pages, ops)
    return replace(found.curve(capacity_pages), label="assumed")


def seen_uses(timeline: Timeline) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
    """Yield pages and what happened to them, batch by batch: uses as `swap` sees them, and what ends them.

    A sample or an allocation of a page that the host has not is no use: nothing is brought in for it.
    """
    there = np.zeros(0, np.bool_)
    for columns in timeline:
        if len(there) < timeline.index.pages:
            there = np.concatenate([there, np.zeros(timeline.index.pages - len(there), np.bool_)])
        room = int(columns.pages[columns.page >= 0].sum(dtype=np.int64))
        pages, ops = np.empty(room, np.int64), np.empty(room, np.uint8)
        work = _compiled() if len(columns.t) > PLAIN_ROWS else _uses_of
        filled = work(columns, int(timeline.levels_known), there, pages, ops)
        yield pages[:filled], ops[:filled]


def _uses_of(c: Columns, levels_known: int, there: Any, pages: Any, ops: Any) -> int:
    filled = 0
    for i in range(len(c.t)):
        op, first, n = int64(c.op[i]), int64(c.page[i]), int64(c.pages[i])
        if first < 0:
            continue
        mapped = maps(int64(c.bits[i]), levels_known)
        brings = op in (ev.POPULATE, ev.SWAP_IN) or (op == ev.FAULT and mapped)
        ends = op in (ev.DROP, ev.SWAP_OUT)
        if not (brings or ends or op in (ev.FAULT, ev.ACCESSED, ev.ALLOC)):
            continue
        for page in range(first, first + n):
            if brings or there[page]:
                pages[filled] = page
                ops[filled] = FORGET if ends else TOUCH
                filled += 1
            if brings:
                there[page] = True
            elif ends:
                there[page] = False
    return filled


@cache
def _compiled() -> Any:
    return compiled(_uses_of)


def curve_rows(curve: MissRatioCurve, limits_mib: NDArray[np.float64]) -> list[dict[str, Any]]:
    """Return a row for each limit: swap-ins and miss ratio with its band (None = not known)."""
    rows = []
    for limit, ratio, low, high in zip(
        limits_mib.tolist(), curve.miss_ratio.tolist(), curve.low.tolist(), curve.high.tolist(), strict=True
    ):
        rows.append(
            {
                "limit_mib": limit,
                "resident_bytes": limit * MIB,
                "swap_ins": round(ratio * curve.references) - curve.cold,
                "miss_ratio": ratio,
                "low": low,
                "high": high,
                "label": curve.label,
                "band": curve.band,
            }
        )
    return rows


def pages_of(limits_mib: NDArray[np.float64], other_mib: float) -> NDArray[np.int64]:
    """Return how many pages of guest memory each limit leaves room for, as `swap` has it."""
    return np.maximum((limits_mib - other_mib) * MIB // PAGE_BYTES, 1).astype(np.int64)
