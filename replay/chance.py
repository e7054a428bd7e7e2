"""What chance did: block bootstrap over the time windows of a replay, kept apart from identification.

A trace is cut into `WINDOWS` equal windows; what each saves is one value of a series, and whole blocks of at
least ten correlation lengths are resampled (`tracekit.replay.uncertainty`). The interval answers "what would
recordings like this one of the same workload show on average?", not "what does this trace leave open?".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tracekit.replay import accounts as ac
from tracekit.replay import events as ev
from tracekit.replay.quantiles import values_of
from tracekit.replay.state import Replay, Stand
from tracekit.replay.uncertainty import by_window, generator, interval

__all__ = ["CHANCE", "FEWEST_RESAMPLES", "METRICS", "WINDOWS", "chance_rows", "window_ends"]

WINDOWS: Final = 256
FEWEST_RESAMPLES: Final = 99
"""Of fewer the outermost would be the ends of an interval, wherever they happen to lie."""

_MOST: Final = 100_000
"""Latencies by which a tail is judged."""

METRICS: Final = ("faults", "stall", "refaults")
"""What adds up over time. Resident memory hardly forgets itself within a recording: it has no blocks."""

CHANCE: Final = pl.Schema(
    {
        "scenario": pl.String(),
        "mechanism": pl.String(),
        "metric": pl.String(),
        "chance_low": pl.Float64(),
        "chance_high": pl.Float64(),
        "chance_blocks": pl.Int64(),
        "chance_note": pl.String(),
    }
)
"""Columns beside a result's rows: a 95 % interval of `saved`; null, with the reason, where none is honest."""


def window_ends(span_ns: int) -> list[int]:
    """Return where the windows of a trace end, ns since its start."""
    return [span_ns * k // WINDOWS for k in range(1, WINDOWS + 1)]


def chance_rows(
    scenario: str,
    mechanism: str,
    replay: Replay,
    nominal: NDArray[np.int64],
    *,
    resamples: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Return rows of the schema `CHANCE` for a replay that kept its stands at the ends of all windows.

    `nominal`: the price of a fault of each class without a latency (ns). The random stream depends on the
    seed and on what the row is about, so on nothing that runs beside it. How heavy the tail of stalls is say
    the latencies that the scenario took away or made, not the windows' sums, which are too few.
    """
    series = _series([replay.stands[t] for t in sorted(replay.stands)], nominal)
    stalls = values_of(np.abs(replay.world.histogram), _MOST)
    rows = []
    for metric in METRICS:
        saved = np.diff(series[metric], prepend=0.0)
        rng = generator(seed, "chance", scenario, metric)
        parts = stalls if metric == "stall" and len(stalls) else None
        found = interval(by_window(saved), "mean", resamples=resamples, rng=rng, parts=parts)
        rows.append(
            {
                "scenario": scenario,
                "mechanism": mechanism,
                "metric": metric,
                "chance_low": None if found.low is None else found.low * len(saved),
                "chance_high": None if found.high is None else found.high * len(saved),
                "chance_blocks": found.units,
                "chance_note": found.note,
            }
        )
    return rows


def _series(stands: Sequence[Stand], nominal: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """Return what was saved up to each of these times."""
    faults = np.stack([s.faults for s in stands]).reshape(len(stands), -1, ac.VERDICTS, ev.CLASSES, ac.CELLS)
    added = np.stack([s.added for s in stands]).reshape(len(stands), -1, ac.REASONS, ev.CLASSES, 2)
    table, extra = faults.sum(axis=1), added.sum(axis=1)
    gone = table[:, [ac.SKIPPED, ac.HIT, ac.REPRICED]][..., ac.COUNT].sum(axis=(1, 2))
    base = table[..., ac.BASE_NS] + table[..., ac.UNMEASURED] * nominal
    stall = (base - table[..., ac.NEW_NS]).sum(axis=(1, 2))
    stall -= extra[:, [ac.REFAULT, ac.DEFERRED]][..., 1].sum(axis=(1, 2))
    return {
        "faults": (gone - extra[..., 0].sum(axis=(1, 2))).astype(np.float64),
        "stall": stall.astype(np.float64),
        "refaults": -extra[:, ac.REFAULT, :, 0].sum(axis=1).astype(np.float64),
    }
