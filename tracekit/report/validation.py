"""Predictions against reality as a terminal table and as a chart."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import polars as pl
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tracekit.report.figure import INK, Figure, inline
from tracekit.report.tables import WIDTH
from tracekit.report.text import plain
from tracekit.report.units import human, human_interval

__all__ = ["validation_figure", "validation_markdown", "validation_table"]


def validation_table(document: Mapping[str, Any]) -> RenderableType:
    """Return one block for each case of a validation (its JSON document), one line for each metric.

    Values are medians over the runs; `error` is the median point error (none where the model gives only a
    bound); `held` counts the runs whose interval held what was measured, `noise` those where it did once
    the ends may move as far as the same baseline varies from run to run.
    """
    blocks: list[RenderableType] = []
    title = ""
    table = Table()
    for one in document["summary"]:
        if (here := f"{one['mechanism']}: {one['case']}") != title:
            title, table = here, _table()
            blocks += [Text(plain(title), style="bold"), table, Text("")]
        shown, interval = human_interval(one["predicted"], one["low"], one["high"], one["unit"])
        table.add_row(
            one["metric"] + ("*" if one["emulated"] else ""),
            shown,
            Text(interval),
            human(one["measured"], one["unit"]),
            "" if one["error"] is None else f"{one['error']:.1%}",
            f"{one['held']}/{one['runs']}",
            f"{one['held_with_noise']}/{one['runs']}",
            Text("ok" if one["reached"] else "missed", style="green" if one["reached"] else "red"),
        )
    if any(one["emulated"] for one in document["summary"]):
        blocks.append(Text("*: times of an emulated machine", style="dim"))
    blocks += [Text(f"{name} is left out: {plain(why)}") for name, why in document["left_out"].items()]
    blocks.append(Text(says(document["summary"]), style="cyan"))
    return Group(*blocks)


def validation_markdown(document: Mapping[str, Any]) -> str:
    """Return a Markdown table: for each mechanism and figure the errors over all its runs, and what held.

    Cases for which the model gives only bounds stand by themselves: they have no point to be in error.
    """
    bounds = {(one["mechanism"], one["case"]) for one in document["checks"] if one["bound_only"]}

    def of(one: Mapping[str, Any]) -> tuple[str, str]:
        what = " (bounds)" if (one["mechanism"], one["case"]) in bounds else ""
        return one["mechanism"] + what, one["metric"] + ("*" if one["emulated"] else "")

    errors: dict[tuple[str, str], list[float]] = {}
    sums: dict[tuple[str, str], list[int]] = {}
    cases: dict[str, set[str]] = {}
    for one in document["checks"]:
        errors.setdefault(of(one), []).extend([one["error"]] if one["error"] is not None else [])
        cases.setdefault(of(one)[0], set()).add(one["case"])
    for one in document["summary"]:
        row = sums.setdefault(of(one), [0, 0, 0])
        row[:] = (n + one[key] for n, key in zip(row, ("runs", "held", "held_with_noise"), strict=True))
    lines = [
        "| mechanism (cases) | figure | runs | error: median, 90 %, largest | held | with noise |",
        "|---|---|---|---|---|---|",
    ]
    shown = ""
    for (mechanism, metric), (runs, held, noise) in sums.items():
        name = "" if mechanism == shown else f"{mechanism}, {len(cases[mechanism])}"
        shown = mechanism
        lines.append(
            f"| {name} | {metric} | {runs} | {_errors(errors[mechanism, metric])} | {held} | {noise} |"
        )
    return "\n".join(lines)


def _errors(values: Sequence[float]) -> str:
    if not values:
        return "–"
    ninth = statistics.quantiles([*values, *values], n=10, method="inclusive")[-1]
    return ", ".join(f"{value:.1%}" for value in (statistics.median(values), ninth, max(values)))


def says(summary: Sequence[Mapping[str, Any]]) -> str:
    """Return what a reader should take away, in one line."""
    runs, held, noise = (sum(one[key] for one in summary) for key in ("runs", "held", "held_with_noise"))
    reached = sum(one["reached"] for one in summary)
    if not runs:
        return "= nothing was compared"
    return (
        f"= intervals held {held / runs:.0%} of {runs} measurements, {noise / runs:.0%} with noise;"
        f" {reached} of {len(summary)} figures reach their goal"
    )


def validation_figure(document: Mapping[str, Any]) -> Figure:
    """Return the chart: each prediction with its interval, as a ratio to what was measured."""
    table = pl.DataFrame(
        [
            {
                "figure": f"{one['mechanism']}: {one['case']}, {one['metric']}",
                "mechanism": one["mechanism"],
                **{
                    end: one[end] / one["measured"] if one[end] is not None else None
                    for end in ("predicted", "low", "high")
                },
            }
            for one in document["summary"]
            if one["measured"]
        ],
        schema={
            "figure": pl.String(),
            "mechanism": pl.String(),
            **{end: pl.Float64() for end in ("predicted", "low", "high")},
        },
    )
    shown = table.with_columns(pl.col("low").clip(0.0, 3.0), pl.col("high").fill_null(3.0).clip(0.0, 3.0))
    at = alt.Chart(inline(shown)).encode(y=alt.Y("figure:N", sort=None, title=None))
    scale = alt.Scale(domain=[0, 3], clamp=True)
    chart = alt.layer(
        at.mark_rule(strokeWidth=4, opacity=0.4).encode(
            x=alt.X("low:Q", scale=scale, title="predicted / measured"), x2="high:Q", color=_colour()
        ),
        at.mark_point(filled=True, size=50).encode(x=alt.X("predicted:Q", scale=scale), color=_colour()),
        alt.Chart(inline(pl.DataFrame({"one": [1.0]}))).mark_rule(style=INK).encode(x="one:Q"),
    ).properties(width=420)
    sentence = says(document["summary"])
    return Figure(
        name="validation",
        title="Predicted against measured",
        says=sentence.removeprefix("= "),
        alt_text=f"Predictions with their intervals as ratios to what was measured: {sentence}",
        chart=chart,
        table=table,
    )


def _colour() -> alt.Color:
    return alt.Color("mechanism:N", legend=None)


def _table() -> Table:
    table = Table(box=None, width=WIDTH, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("metric", no_wrap=True)
    table.add_column("predicted", justify="right", no_wrap=True)
    table.add_column(Text("[low, high]"), no_wrap=True, ratio=1)
    for name in ("measured", "error", "held", "noise", "goal"):
        table.add_column(name, justify="right", no_wrap=True)
    return table
