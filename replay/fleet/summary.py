"""What a fleet would save per VM: by scenario, class of VMs, and metric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl

from tracekit.replay.fleet.dataset import read_dataset
from tracekit.replay.uncertainty.answers import Identification, Statistical
from tracekit.replay.uncertainty.blocks import by_group
from tracekit.replay.uncertainty.bootstrap import interval
from tracekit.replay.uncertainty.seeding import generator

__all__ = ["EVERY_CLASS", "METRICS", "Summary", "summary"]

METRICS: Final = ("stall", "critical_path", "faults", "guest_cpu", "resident_mean", "resident_peak")
"""The metrics summed up unless others are asked for."""

EVERY_CLASS: Final = ""
_RESAMPLES: Final = 999


@dataclass(frozen=True)
class Summary:
    """One metric of one scenario, per VM: the mean over `vms` VMs of a class ("" = all of them).

    `band`: the means of all VMs' lower and of all their upper ends. `interval`: where the mean of
    all VMs of this kind lies (bootstrap over VMs). `unknown` VMs have no figure and are not in any of it;
    `synthetic` VMs come from synthetic traces.
    """

    vm_class: str
    scenario: str
    metric: str
    unit: str
    vms: int
    unknown: int
    synthetic: int
    baseline: float
    saved: float
    band: Identification
    interval: Statistical


def summary(
    results: str,
    metrics: Sequence[str] = METRICS,
    *,
    by_class: bool = False,
    level: float = 0.95,
    seed: int = 0,
) -> list[Summary]:
    """Sum up a store of results, largest classes first; scenarios' totals only, not their waterfall.

    Raises UsageError when there are no results.
    """
    totals = _totals(results, metrics)
    keys = ["scenario", "metric"]
    groups: list[tuple[str, pl.DataFrame]] = [(EVERY_CLASS, totals)]
    if by_class:
        sizes = totals.group_by("vm_class").agg(pl.col("trace").n_unique().alias("n"))
        names = sizes.sort("n", "vm_class", descending=[True, False])["vm_class"].to_list()
        groups = [(name, totals.filter(pl.col("vm_class") == name)) for name in names]
    found = []
    for vm_class, rows in groups:
        parts = rows.partition_by(keys, as_dict=True, maintain_order=True)
        for scenario, metric in sorted(parts, key=lambda key: (key[0], list(metrics).index(key[1]))):
            found.append(_one(vm_class, parts[scenario, metric], level, seed))
    return found


def _totals(results: str, metrics: Sequence[str]) -> pl.DataFrame:
    import pyarrow.dataset as pds

    rows = read_dataset(f"{results.rstrip('/')}/rows", pds.field("metric").isin(list(metrics)))
    one = ["trace", "scenario", "metric"]
    # A combination has a row "all" beside its waterfall; a single mechanism has only its own row.
    return rows.filter((pl.col("mechanism") == "all") | (pl.len().over(one) == 1)).sort(one)


def _one(vm_class: str, rows: pl.DataFrame, level: float, seed: int) -> Summary:
    known = rows.filter(pl.col("saved").is_not_null())
    scenario, metric = rows["scenario"][0], rows["metric"][0]
    saved = known["saved"].to_numpy()
    lows, highs = known["low"], known["high"]
    band = Identification(
        None if lows.null_count() or not len(lows) else float(lows.to_numpy().mean()),
        None if highs.null_count() or not len(highs) else float(highs.to_numpy().mean()),
    )
    rng = generator(seed, "fleet", vm_class, scenario, metric)
    blocks = by_group(saved, known["trace"].to_numpy())
    return Summary(
        vm_class=vm_class,
        scenario=scenario,
        metric=metric,
        unit=rows["unit"][0],
        vms=known.height,
        unknown=rows.height - known.height,
        synthetic=int((known["source"] == "synthetic").sum()),
        baseline=float(np.mean(known["baseline"].fill_null(0).to_numpy())) if known.height else 0.0,
        saved=float(saved.mean()) if known.height else 0.0,
        band=band,
        interval=interval(blocks, "mean", level=level, resamples=_RESAMPLES, rng=rng),
    )
