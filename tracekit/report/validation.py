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
    bound); `held` counts the runs in the band [low, high]. `chance` is the factor by which a new run of the
    same may lie beside it, `new run` counts the runs that did no more than that.
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
            "" if one["factor"] is None else f"x{one['factor']:.2f}",
            f"{one['held_new_run']}/{one['runs']}",
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
    factors: dict[tuple[str, str], list[float]] = {}
    cases: dict[str, set[str]] = {}
    for one in document["checks"]:
        errors.setdefault(of(one), []).extend([one["error"]] if one["error"] is not None else [])
        cases.setdefault(of(one)[0], set()).add(one["case"])
    for one in document["summary"]:
        row = sums.setdefault(of(one), [0, 0, 0])
        factors.setdefault(of(one), []).extend([one["factor"]] if one["factor"] is not None else [])
        row[:] = (n + one[key] for n, key in zip(row, ("runs", "held", "held_new_run"), strict=True))
    lines = [
        "| mechanism (cases) | figure | runs | error: median, 90 %, largest | band | chance | new run |",
        "|---|---|---|---|---|---|---|",
    ]
    shown = ""
    for (mechanism, metric), (runs, held, new_run) in sums.items():
        name = "" if mechanism == shown else f"{mechanism}, {len(cases[mechanism])}"
        shown = mechanism
        lines.append(
            f"| {name} | {metric} | {runs} | {_errors(errors[mechanism, metric])} | {held} |"
            f" {_factors(factors[mechanism, metric])} | {new_run} |"
        )
    return "\n".join(lines)


def _errors(values: Sequence[float]) -> str:
    if not values:
        return "–"
    ninth = statistics.quantiles([*values, *values], n=10, method="inclusive")[-1]
    return ", ".join(f"{value:.1%}" for value in (statistics.median(values), ninth, max(values)))


def _factors(values: Sequence[float]) -> str:
    """Return the least and the largest factor of a mechanism's cases."""
    shown = [f"{value:.2f}" for value in (min(values), max(values))] if values else ["–"]
    return " … ".join(dict.fromkeys(shown))


def says(summary: Sequence[Mapping[str, Any]]) -> str:
    """Return what a reader should take away, in one line."""
    runs, held, new_run = (sum(one[key] for one in summary) for key in ("runs", "held", "held_new_run"))
    reached = sum(one["reached"] for one in summary)
    if not runs:
        return "= nothing was compared"
    return (
        f"= of {runs} measurements the bands held {held / runs:.0%}, the intervals for a new run"
        f" {new_run / runs:.0%};"
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
                    end: value / one["measured"] if value is not None else None
                    for end, value in _ends(one).items()
                },
            }
            for one in document["summary"]
            if one["measured"]
        ],
        schema={
            "figure": pl.String(),
            "mechanism": pl.String(),
            **{end: pl.Float64() for end in ("predicted", "low", "high", "least", "most")},
        },
    )
    shown = table.with_columns(
        *(pl.col(end).fill_null(0.0).clip(0.0, 3.0) for end in ("low", "least")),
        *(pl.col(end).fill_null(3.0).clip(0.0, 3.0) for end in ("high", "most")),
    )
    at = alt.Chart(inline(shown)).encode(y=alt.Y("figure:N", sort=None, title=None))
    scale = alt.Scale(domain=[0, 3], clamp=True)
    chart = alt.layer(
        at.mark_rule(strokeWidth=1.5).encode(x=alt.X("least:Q", scale=scale), x2="most:Q", color=_colour()),
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
        alt_text=f"Predictions, bands and what a new run may take, as ratios to the measured: {sentence}",
        chart=chart,
        table=table,
    )


def _ends(one: Mapping[str, Any]) -> dict[str, float | None]:
    """Return a summary's point, its band, and what a new run may take."""
    low, high, factor = one["low"], one["high"], one["factor"]
    return {
        "predicted": one["predicted"],
        "low": low,
        "high": high,
        "least": None if low is None or factor is None else low / factor,
        "most": None if high is None or factor is None else high * factor,
    }


def _colour() -> alt.Color:
    return alt.Color("mechanism:N", legend=None)


def _table() -> Table:
    table = Table(box=None, width=WIDTH, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("metric", no_wrap=True)
    table.add_column("predicted", justify="right", no_wrap=True)
    table.add_column(Text("[low, high]"), no_wrap=True, ratio=1)
    for name in ("measured", "error", "held", "chance", "new run", "goal"):
        table.add_column(name, justify="right", no_wrap=True)
    return table
