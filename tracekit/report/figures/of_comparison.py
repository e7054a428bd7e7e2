"""Figures of a comparison: what changed by how much, and both sides on the same axes."""

from __future__ import annotations

import numpy as np
import polars as pl

from tracekit.report.charts import differences, latency, sides
from tracekit.report.comparison import Comparison
from tracekit.report.comparison.blocks import BINS, Tally
from tracekit.report.figure import Figure
from tracekit.report.outline import BINS_PER_DECADE, FAULT_KINDS, TIME_BINS, Outline
from tracekit.report.text import plain

__all__ = ["draw_comparison"]


def draw_comparison(found: Comparison) -> list[Figure]:
    """Return the figures of a comparison, in the order a reader wants them."""
    return [figure for figure in (_changes(found), _latency(found), _stall(found)) if figure is not None]


def _named(found: Comparison) -> list[tuple[str, list[Tally]]]:
    """Return each side's name, numbered because two may have the same, with its tallies."""
    tallies = [found.first, *(pair.second for pair in found.pairs)]
    return [
        (f"{number} {plain(side.name, longest=40)}", tally)
        for number, (side, tally) in enumerate(zip(found.sides, tallies, strict=True), 1)
    ]


def _changes(found: Comparison) -> Figure | None:
    rows = [
        {
            "metric": plain(one.metric, longest=60),
            "side": plain(pair.other.name, longest=40),
            "change": one.relative,
            "low": None if one.low is None or not one.first else one.low / abs(one.first),
            "high": None if one.high is None or not one.first else one.high / abs(one.first),
            "verdict": one.verdict,
        }
        for pair in found.pairs
        for one in pair.differences
        if one.relative is not None
    ]
    if not rows:
        return None
    table = pl.from_dicts(rows, infer_schema_length=None)
    most = max(rows, key=lambda row: abs(float(row["change"] or 0)))
    says = f"Largest change: {most['metric']}, {100 * float(most['change'] or 0):+.1f} %, {most['verdict']}."
    return Figure(
        name="changes",
        title="What changed, and by how much",
        says=says,
        alt_text=f"Chart of {len(rows)} changes in percent with their intervals. {says}",
        chart=differences.chart(table, found.tolerance),
        table=table,
        known_by=f"The grey band is the tolerance, {100 * found.tolerance:g} %; rules are 95 % intervals.",
        units=dict.fromkeys(("change", "low", "high"), "fraction"),
    )


def _latency(found: Comparison) -> Figure | None:
    parts = []
    for name, tallies in _named(found):
        counts = sum(
            (table.sum(axis=0) for t in tallies for k, table in t.latency.items()),
            np.zeros(BINS),
        )
        at = np.flatnonzero(counts)
        edges = 10.0 ** (np.stack([at, at + 1]) / BINS_PER_DECADE)
        parts.append(
            pl.DataFrame(
                {
                    "cause": name,
                    "latency_bin": at,
                    "from_ns": edges[0].round(1),
                    "to_ns": edges[1].round(1),
                    "events": counts[at] / len(tallies),
                },
                schema={
                    "cause": pl.String,
                    "latency_bin": pl.Int64,
                    "from_ns": pl.Float64,
                    "to_ns": pl.Float64,
                    "events": pl.Float64,
                },
            )
        )
    bins = pl.concat(parts) if parts else pl.DataFrame()
    if not bins.height:
        return None
    rows = [
        {"side": name, **{f"p{100 * q:g}_ns": latency.quantile(part, q) for q in (0.5, 0.99, 0.999)}}
        for (name,), part in bins.group_by("cause", maintain_order=True)
    ]
    table = pl.from_dicts(rows)
    return Figure(
        name="latencies",
        title="How long faults took",
        says="Faults per run by how long each took, all faults on guest memory together.",
        alt_text=f"Histogram of fault service times on logarithmic axes, a line for each of {len(rows)}.",
        chart=latency.chart(bins),
        table=table,
        units=dict.fromkeys(("p50_ns", "p99_ns", "p99.9_ns"), "ns"),
    )


def _stall(found: Comparison) -> Figure | None:
    """Draw each side's stall over its own time, the mean of its runs."""
    parts = []
    for number, side in enumerate(found.sides, 1):
        for outline in (Outline(run) for run in side.runs):
            if outline.extent is None:
                continue
            step_s = outline.extent.time_step_ns / 1e9
            own = outline.tally.filter(pl.col("kind").is_in(list(FAULT_KINDS)) & pl.col("located"))
            own = own.group_by("time_bin").agg(pl.col("latency_ns").sum())
            bins = pl.DataFrame({"time_bin": range(TIME_BINS)}, schema={"time_bin": own.schema["time_bin"]})
            own = bins.join(own, on="time_bin", how="left", maintain_order="left").fill_null(0)
            parts.append(
                own.select(
                    pl.lit(f"{number} {plain(side.name, longest=40)}").alias("side"),
                    (pl.col("time_bin") * step_s).alias("time_s"),
                    (pl.col("latency_ns") / (step_s * len(side.runs))).alias("value"),
                )
            )
    if not parts:
        return None
    curves = pl.concat(parts).group_by("side", "time_s", maintain_order=True).sum()
    if not curves["value"].sum():
        return None
    busiest = curves.group_by("side", maintain_order=True).agg(pl.col("value").max().alias("most_ns_per_s"))
    return Figure(
        name="stalls",
        title="Stall over time",
        says="Stall per second, each side from its own start.",
        alt_text=f"Line chart of stall over time, a line for each of {busiest.height} sides.",
        chart=sides.chart(curves, "ns", "stall per second"),
        table=busiest,
        known_by="Summed over all threads of the VM; the mean of a side's runs.",
        units={"most_ns_per_s": "ns"},
    )
