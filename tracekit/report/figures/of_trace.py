"""Figures that a trace alone gives: what vCPUs waited for, how long, where, and what came back."""

from __future__ import annotations

from typing import Final

import polars as pl

from tracekit.report.charts import balloon, heat, latency, stall
from tracekit.report.figure import Figure
from tracekit.report.outline import BINS_PER_DECADE, FAULT_KINDS, Extent, Outline
from tracekit.report.study import Study
from tracekit.report.units import human, human_share
from tracekit.trace.schema import PAGE_BYTES

__all__ = ["draw_balloon", "draw_heat", "draw_latency", "draw_stall", "rss"]

_LEVELS: Final = {1: "4 KiB", 2: "2 MiB", 3: "1 GiB"}
_CAUSES: Final = {
    "ept_violation": "MMU fault",
    "host_fault": "host fault",
    "guest_fault": "guest fault",
    "swap_in": "swap-in",
    "apf_completed": "asynchronous page fault",
}


def _causes(frame: pl.DataFrame) -> pl.DataFrame:
    """Keep the kinds that make a vCPU wait and name the cause of each row."""
    level = pl.col("level").replace_strict(_LEVELS, default=None, return_dtype=pl.String)
    names = pl.concat_str(
        pl.col("kind").replace_strict(_CAUSES, default=None, return_dtype=pl.String),
        pl.when(level.is_not_null()).then(pl.lit(" ") + level).otherwise(pl.lit("")),
        pl.when(pl.col("major")).then(pl.lit(", waits for I/O")).otherwise(pl.lit("")),
    )
    return frame.filter(pl.col("kind").is_in(list(_CAUSES))).with_columns(names.alias("cause"))


def _seconds(extent: Extent, ts_ns: pl.Expr) -> pl.Expr:
    return ((ts_ns.cast(pl.Int64) - extent.start_ns) / 1e9).round(6)


def rss(outline: Outline, extent: Extent) -> pl.DataFrame:
    """Return the sampled resident memory of all VMs together."""
    samples = outline.trace.samples.filter(pl.col("metric") == "rss_bytes")
    return (
        samples.group_by("ts_ns")
        .agg(pl.col("value").sum().alias("resident_bytes"))
        .sort("ts_ns")
        .select(_seconds(extent, pl.col("ts_ns")).alias("time_s"), "resident_bytes")
    )


def draw_heat(study: Study) -> Figure | None:
    """Return gfn x time of first touches, refaults and discards; None without located events."""
    outline = study.outline
    if outline is None or outline.extent is None or not outline.heat.height:
        return None
    extent, cells = outline.extent, outline.heat
    step_s, pages = extent.time_step_ns / 1e9, extent.gfn_step
    table = cells.select(
        "what",
        (pl.col("time_bin") * step_s).round(6).alias("time_s"),
        ((pl.col("time_bin") + 1) * step_s).round(6).alias("time_end_s"),
        ((pl.col("gfn_bin").cast(pl.Int64) * pages + extent.first_gfn) * PAGE_BYTES).alias("gpa_bytes"),
        (((pl.col("gfn_bin").cast(pl.Int64) + 1) * pages + extent.first_gfn) * PAGE_BYTES).alias(
            "gpa_end_bytes"
        ),
        "pages",
    )
    sums = cells.group_by("what").agg(pl.col("pages").sum()).sort("pages", descending=True)
    said = ", ".join(f"{what} {human(count * PAGE_BYTES, 'bytes')}" for what, count in sums.iter_rows())
    return Figure(
        name="heat",
        title="Where and when memory was touched, touched again and given back",
        says=f"In all: {said}.",
        alt_text=f"Heatmap of guest-physical address against time, a panel for each event. In all: {said}.",
        chart=heat.chart(table, extent.span_s),
        table=sums.with_columns((pl.col("pages") * PAGE_BYTES).alias("bytes")),
        known_by="First touches and refaults are faults that found no mapping; other touches leave no trace.",
        units={"bytes": "bytes"},
    )


def draw_latency(study: Study) -> Figure | None:
    """Return the distribution of fault service times by cause; None where no latency is known."""
    if study.outline is None:
        return None
    known = _causes(study.outline.tally).filter(pl.col("latency_bin").is_not_null())
    if not known.height:
        return None
    bins = (
        known.group_by("cause", "latency_bin")
        .agg(pl.col("events").sum(), pl.col("latency_ns").sum())
        .sort("cause", "latency_bin")
        .with_columns(_edge(0).alias("from_ns"), _edge(1).alias("to_ns"))
    )
    rows = []
    for (cause,), part in bins.group_by("cause", maintain_order=True):
        tail = {f"p{100 * q:g}_ns": latency.quantile(part, q) for q in (0.5, 0.99, 0.999)}
        rows.append(
            {"cause": cause, "faults": part["events"].sum(), "stall_ns": part["latency_ns"].sum(), **tail}
        )
    table = pl.from_dicts(rows).sort("stall_ns", descending=True)
    top = table.row(0, named=True)
    says = (
        f"{top['cause']}: half took up to {human(top['p50_ns'], 'ns')}, one in a hundred more than "
        f"{human(top['p99_ns'], 'ns')}, one in a thousand more than {human(top['p99.9_ns'], 'ns')}."
    )
    return Figure(
        name="latency",
        title="How long faults took",
        says=says,
        alt_text=f"Histogram of fault service times on logarithmic axes, a line per cause. {says}",
        chart=latency.chart(bins.select("cause", "latency_bin", "from_ns", "to_ns", "events")),
        table=table,
        known_by="Measured per fault; bins are 4.7 % wide, quantiles are their upper bounds.",
        units=dict.fromkeys(("stall_ns", "p50_ns", "p99_ns", "p99.9_ns"), "ns"),
    )


def _edge(side: int) -> pl.Expr:
    """Return the lower (0) or upper (1) bound of a latency bin, in ns."""
    return pl.lit(10.0).pow((pl.col("latency_bin") + side) / BINS_PER_DECADE).round(1)


def draw_stall(study: Study) -> Figure | None:
    """Return the vCPUs' stall by cause and over time; None where no latency is known."""
    outline = study.outline
    if outline is None or outline.extent is None:
        return None
    # As the replay counts it: faults on guest memory. A swap-in is none of its own, it happens inside one.
    own = outline.tally.filter(pl.col("kind").is_in(list(FAULT_KINDS)) & pl.col("located"))
    waits = _causes(own).filter(pl.col("latency_ns") > 0)
    if not waits.height:
        return None
    step_s = outline.extent.time_step_ns / 1e9
    table = waits.group_by(
        "cause",
        (pl.col("time_bin") * step_s).round(6).alias("time_s"),
        ((pl.col("time_bin") + 1) * step_s).round(6).alias("time_end_s"),
    ).agg(pl.col("events", "latency_ns").sum())
    table = table.sort("cause", "time_s")
    total = (
        table.group_by("cause").agg(pl.col("events", "latency_ns").sum()).sort("latency_ns", descending=True)
    )
    top = total.row(0, named=True)
    whole = float(total["latency_ns"].sum())
    says = f"{top['cause']} makes {human_share(top['latency_ns'], whole)} of {human(whole, 'ns')} stall."
    return Figure(
        name="stall",
        title="What the VM waited for",
        says=says,
        alt_text=f"Bar chart of stall by cause and area chart of stall over time. {says}",
        chart=stall.chart(table, outline.extent.span_s),
        table=total.rename({"latency_ns": "stall_ns"}),
        known_by="Service times summed over threads; the critical path is shorter where they wait together.",
        units={"stall_ns": "ns"},
    )


def draw_balloon(study: Study) -> Figure | None:
    """Return what balloon, free page reports and discards gave back; None where nothing did."""
    outline = study.outline
    if outline is None or outline.extent is None:
        return None
    extent = outline.extent
    over = outline.tally.with_columns(
        ((pl.col("time_bin") + 1) * (extent.time_step_ns / 1e9)).round(6).alias("time_s"),
        (pl.col("pages") * PAGE_BYTES).alias("bytes"),
    )
    inflated = pl.when(pl.col("kind") == "balloon_inflate").then("bytes").otherwise(-pl.col("bytes"))
    discards = pl.col("returned") & ~pl.col("kind").is_in(["balloon_inflate", "free_page_report"])
    moves = [
        over.filter(pl.col("kind").is_in(["balloon_inflate", "balloon_deflate"])).with_columns(
            inflated.alias("bytes"), pl.lit("balloon").alias("series")
        ),
        over.filter(pl.col("kind") == "free_page_report").with_columns(
            pl.lit("free page reports").alias("series")
        ),
        over.filter(discards).with_columns(pl.lit("other discards").alias("series")),
    ]
    sums = [_running(part, extent) for part in moves if part.height]
    if not sums:
        return None
    target = outline.trace.samples.filter(pl.col("metric") == "balloon_target_bytes").select(
        pl.lit("balloon target").alias("series"), _seconds(extent, pl.col("ts_ns")).alias("time_s"), "value"
    )
    resident = rss(outline, extent).select(pl.lit("resident").alias("series"), "time_s", "resident_bytes")
    named = [part.rename({part.columns[2]: "bytes"}) for part in (target, resident) if part.height]
    curves = pl.concat(
        part.select("series", "time_s", pl.col("bytes").cast(pl.Float64)) for part in (*sums, *named)
    )
    totals = pl.concat(_moved(part) for part in sums)
    said = "; ".join(
        f"{name} {human(size, 'bytes')} between {start:.3g} s and {stop:.3g} s"
        for name, start, stop, size in totals.iter_rows()
    )
    return Figure(
        name="balloon",
        title="How memory came back to the host",
        says=f"{said}.",
        alt_text=f"Line chart of memory returned to the host over time. {said}.",
        chart=balloon.chart(curves, extent.span_s),
        table=totals,
        known_by="The balloon is inflated minus deflated; a page reported or discarded twice counts twice.",
        units={"bytes": "bytes"},
    )


def _running(moves: pl.DataFrame, extent: Extent) -> pl.DataFrame:
    """Return the running sum of `bytes` of one series, from 0 at the start, kept up to the end."""
    sums = (
        moves.group_by("series", "time_s")
        .agg(pl.col("bytes").sum())
        .sort("time_s")
        .with_columns(pl.col("bytes").cum_sum())
    )
    start = sums.head(1).with_columns(time_s=0.0, bytes=pl.lit(0, sums.schema["bytes"]))
    return pl.concat(
        [start, sums, sums.tail(1).with_columns(time_s=pl.max_horizontal(pl.lit(extent.span_s), "time_s"))]
    )


def _moved(sums: pl.DataFrame) -> pl.DataFrame:
    """Say of one series when it first and last changed, and the most it reached."""
    changed = sums.filter(pl.col("bytes").diff().fill_null(0) != 0)
    return changed.group_by("series").agg(
        pl.col("time_s").min().alias("from_s"), pl.col("time_s").max().alias("to_s"), pl.col("bytes").max()
    )
