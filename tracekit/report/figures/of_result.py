"""Figures that a replay gives: what scenarios save, which mechanism saves it, what the saving hangs on."""

from __future__ import annotations

from typing import Final

import polars as pl

from tracekit.report.charts import missratio, resident, savings, tornado, waterfall, zeroing
from tracekit.report.charts.axes import least
from tracekit.report.figure import Figure
from tracekit.report.figures.of_trace import rss
from tracekit.report.ledger import TOTAL, WITHOUT, entries, scenarios, title
from tracekit.report.limits import fault_curve
from tracekit.report.study import Study
from tracekit.report.text import plain
from tracekit.report.units import human, human_interval

__all__ = [
    "draw_miss_ratio",
    "draw_resident",
    "draw_savings",
    "draw_tornado",
    "draw_waterfall",
    "draw_zeroing",
]

_MOST_SCENARIOS: Final = 6
_DECIDING: Final = ("stall", "critical_path", "faults", "guest_cpu", "zeroed_twice", "resident_mean")


def draw_resident(study: Study) -> Figure | None:
    """Return resident memory over time, modelled and sampled; None where neither is there."""
    outline = study.outline
    parts = []
    extent = outline.extent if outline else None
    if study.curves is not None and study.curves.height:
        start = int(least(study.curves, "ts_ns")) if extent is None else extent.start_ns
        keep = [resident.BASELINE, *study.curves["scenario"].unique(maintain_order=True).to_list()]
        parts.append(
            study.curves.filter(pl.col("scenario").is_in(keep[: _MOST_SCENARIOS + 1])).select(
                pl.col("scenario").alias("series"),
                ((pl.col("ts_ns").cast(pl.Int64) - start) / 1e9).alias("time_s"),
                pl.col("resident_bytes").cast(pl.Float64),
            )
        )
    if outline is not None and extent is not None:
        parts.append(rss(outline, extent).with_columns(pl.lit(resident.SAMPLED).alias("series")))
    parts = [part.select("series", "time_s", "resident_bytes") for part in parts if part.height]
    if not parts:
        return None
    curves = pl.concat(parts)
    peaks = curves.group_by("series", maintain_order=True).agg(pl.col("resident_bytes").max())
    said = ", ".join(f"{plain(name)} {human(peak, 'bytes')}" for name, peak in peaks.iter_rows())
    return Figure(
        name="resident",
        title="Resident memory over time",
        says=f"Peaks: {said}.",
        alt_text=f"Line chart of resident memory over time for {peaks.height} series. Peaks: {said}.",
        chart=resident.chart(curves, extent.span_s if extent else None),
        table=peaks.rename({"resident_bytes": "peak_bytes"}),
        known_by="Curves are each scenario's point figure, bounds are in the ledger; RSS is all of the VMM.",
        units={"peak_bytes": "bytes"},
    )


def draw_savings(study: Study) -> Figure | None:
    """Return what each scenario saves of each headline metric; None without a replay."""
    if study.rows is None:
        return None
    names = scenarios(study.rows)
    rows = []
    for scenario in names:
        for entry in entries(study.rows, scenario):
            if entry.metric not in _DECIDING or not entry.baseline or entry.saved is None:
                continue
            value, interval = human_interval(entry.saved, entry.low, entry.high, entry.unit)
            share, low, high = (
                None if end is None else end / entry.baseline for end in (entry.saved, entry.low, entry.high)
            )
            rows.append(
                {
                    "metric": title(entry.metric),
                    "scenario": plain(scenario, longest=60),
                    "share": share,
                    "share_low": low,
                    "share_high": high,
                    "label": entry.label,
                    "shown": f"{value} {interval}",
                }
            )
    if not rows:
        return None
    table = pl.from_dicts(rows, infer_schema_length=None)
    moving = (
        table.group_by("metric")
        .agg((pl.col("share").abs() > 0).any().alias("moves"))
        .filter("moves")["metric"]
    )
    table = table.filter(pl.col("metric").is_in(moving.to_list()))
    if not table.height:
        return None
    says = _surest_saving(table)
    return Figure(
        name="savings",
        title="What each scenario saves",
        says=says,
        alt_text=f"Bar chart of savings as a share of the baseline, a panel for each of {moving.len()} "
        f"metrics, a bar for each of {len(names)} scenarios, with intervals. {says}",
        chart=savings.chart(table),
        table=table,
        known_by="Left of 0 is a cost. Thin rules are the interval; the marker's shape is the label.",
    )


def _surest_saving(table: pl.DataFrame) -> str:
    """Say which scenario saves the most of the first metric at the least, as the cards are ranked."""
    metric = table["metric"][0]
    ranked = table.filter(pl.col("metric") == metric).sort(
        pl.col("share_low").fill_null(0.0).clip(0.0), "share", descending=True, nulls_last=True
    )
    first = ranked.row(0, named=True)
    share, low, high = (
        None if first[name] is None else f"{100 * first[name]:.0f}"
        for name in ("share", "share_low", "share_high")
    )
    if (first["share_low"] or 0.0) > 0:
        spread = "" if low == high else f" ({low} to {'?' if high is None else high} %)"
        whose = f"{share} % of the baseline{spread} by {first['scenario']}, {first['label']}"
        return f"The surest saving of {metric}: {whose}."
    most = max(first["share"], first["share_high"] or 0.0)
    if most <= 0:
        return f"No scenario saves {metric}."
    return f"No saving of {metric} is sure; {first['scenario']} may save up to {100 * most:.0f} %."


def draw_waterfall(study: Study) -> Figure | None:
    """Return the combination with most mechanisms, on its leading metric that mechanisms share out."""
    if study.rows is None:
        return None
    mechanism = pl.col("mechanism")
    parts = study.rows.filter(~mechanism.is_in(list(TOTAL)) & ~mechanism.str.starts_with(WITHOUT))
    combined = (
        parts.group_by("scenario", "metric", maintain_order=True)
        .agg(pl.len().alias("mechanisms"), pl.col("saved").abs().sum().alias("moved"))
        .filter((pl.col("mechanisms") > 1) & (pl.col("moved") > 0))
    )
    if not combined.height:
        return None
    scenario = combined.sort("mechanisms", descending=True, maintain_order=True)["scenario"][0]
    shared = set(combined.filter(pl.col("scenario") == scenario)["metric"])
    whole = next((e for e in entries(study.rows, scenario, every=True) if e.metric in shared), None)
    if whole is None or whole.baseline is None:
        return None
    chosen = parts.filter((pl.col("scenario") == scenario) & (pl.col("metric") == whole.metric))
    bars = waterfall.steps(
        whole.baseline, [(m, s or 0.0) for m, s in chosen.select("mechanism", "saved").iter_rows()]
    )
    words = ", then ".join(plain(m) for m in chosen["mechanism"])
    says = f"In this order: {words}. A later mechanism can only save what the earlier ones left."
    return Figure(
        name="waterfall",
        title=f"Which mechanism saves what: {title(whole.metric)} in {plain(scenario, longest=80)}",
        says=says,
        alt_text=f"Waterfall from the baseline of {human(whole.baseline, whole.unit)} {title(whole.metric)} "
        f"to the counterfactual. {says}",
        chart=waterfall.chart(bars, whole.unit, title(whole.metric)),
        table=bars,
    )


def draw_tornado(study: Study) -> Figure | None:
    """Return how far each parameter alone moves the saving; None where the result has no such rows."""
    swings = study.swings
    if swings is None or not swings.height:
        return None
    metric, unit = (str(swings[name][0]) if name in swings.columns else "" for name in ("metric", "unit"))
    order = tornado.by_swing(swings)
    top = order.row(0, named=True)
    says = (
        f"{plain(top['parameter'])} matters most: alone it moves the saving by {human(top['swing'], unit)}."
    )
    return Figure(
        name="tornado",
        title="Which parameter matters most",
        says=says,
        alt_text=f"Tornado chart of {swings.height} parameters, one at a time. {says}",
        chart=tornado.chart(swings, unit, title(metric)),
        table=order,
        known_by="One parameter at a time, the others as the scenario has them.",
        units=dict.fromkeys(("saved", "saved_at_low", "saved_at_high", "swing"), unit),
    )


def draw_miss_ratio(study: Study) -> Figure | None:
    """Return the miss-ratio curve of the result, or that of the trace's faults and evictions; else None."""
    curve = study.miss_ratio
    known_by = "As the result has it; the band is its uncertainty."
    if curve is None and study.outline is not None:
        curve = fault_curve(study.outline)
        known_by = "From faults and evictions. Exact if the host evicts in LRU order; the band is what other "
        known_by += (
            "policies did in experiments. Less memory than there was is not known: hits leave no trace."
        )
    if curve is None or not curve.height:
        return None
    most, least = curve.row(0, named=True), curve.row(-1, named=True)
    says = (
        f"At {human(most['resident_bytes'], 'bytes')} {100 * most['miss_ratio']:.0f} % of the faults stay, "
        f"at {human(least['resident_bytes'], 'bytes')} {100 * least['miss_ratio']:.0f} %."
    )
    return Figure(
        name="miss-ratio",
        title="How much memory is enough",
        says=says,
        alt_text=f"Line chart of the share of faults that stay against the memory limit. {says}",
        chart=missratio.chart(curve),
        table=curve,
        known_by=known_by,
        units={"resident_bytes": "bytes"} | dict.fromkeys(("miss_ratio", "low", "high"), "fraction"),
    )


def draw_zeroing(study: Study) -> Figure | None:
    """Return what zeroing costs by size: as calibrated, else as the cost profile prices it; else None."""
    costs, known_by = study.zeroing, "Measured on this host (tracekit calibrate); rules are the spread."
    if costs is None:
        costs, known_by = _priced(study), "Priced by the replay's cost profile; rules are its low and high."
    if costs is None or not costs.height:
        return None
    largest = costs.sort("size_bytes", "zero_ns").row(-1, named=True)
    size, time = human(largest["size_bytes"], "bytes"), human(largest["zero_ns"], "ns")
    says = f"{size} take {time} ({largest['side']})."
    return Figure(
        name="zeroing",
        title="What zeroing costs",
        says=says,
        alt_text=f"Line chart of the time to zero memory against its size, by side. {says}",
        chart=zeroing.chart(costs),
        table=costs,
        known_by=known_by,
        units={"size_bytes": "bytes", "zero_ns": "ns", "low_ns": "ns", "high_ns": "ns"},
    )


def _priced(study: Study) -> pl.DataFrame | None:
    """Return time to zero by size, linear in the profile's price of a page; None without such prices."""
    profile = study.provenance.get("profile")
    prices = profile.get("costs_ns") if isinstance(profile, dict) else None
    if not isinstance(prices, dict):
        return None
    rows = []
    for side, (cost, page_bytes) in _ZEROED_BY.items():
        ends = prices.get(cost)
        if isinstance(ends, list) and len(ends) == 3 and all(isinstance(end, int | float) for end in ends):
            for size in _SIZES:
                times = (size / page_bytes * float(end) for end in ends)
                rows.append({"side": side, "size_bytes": size, **dict(zip(_TIMES, times, strict=True))})
    return pl.from_dicts(rows) if rows else None


_SIZES: Final = tuple((32 << 20) << step for step in range(7))
_TIMES: Final = ("zero_ns", "low_ns", "high_ns")
_ZEROED_BY: Final = {
    "guest": ("guest_zero_4k", 4096),
    "host, faulted in by 4 KiB": ("host_minor_4k", 4096),
    "host, populated by 2 MiB": ("prefault_2m", 2 << 20),
}
