"""From the baseline to the counterfactual, one mechanism after the other in the scenario's own order."""

from __future__ import annotations

import altair as alt
import polars as pl

from tracekit.report.charts.axes import HEIGHT, WIDTH, most
from tracekit.report.figure import INK, inline
from tracekit.report.units import human, scale_for

__all__ = ["chart", "steps"]


def steps(baseline: float, savings: list[tuple[str, float]]) -> pl.DataFrame:
    """Return the bars of a waterfall: step, kind (level, saving or cost), top, bottom, change.

    >>> steps(10.0, [("zeroing", 4.0), ("hugepages", -1.0)]).select("step", "kind", "top", "bottom").rows()
    [('baseline', 'level', 10.0, 0.0), ('zeroing', 'saving', 10.0, 6.0), ('hugepages', 'cost', 7.0, 6.0),
     ('counterfactual', 'level', 7.0, 0.0)]
    """
    rows = [{"step": "baseline", "kind": "level", "top": baseline, "bottom": 0.0, "change": baseline}]
    level = baseline
    for name, saved in savings:
        after = level - saved
        kind = "saving" if saved >= 0 else "cost"
        rows.append(
            {
                "step": name,
                "kind": kind,
                "top": max(level, after),
                "bottom": min(level, after),
                "change": -saved,
            }
        )
        level = after
    rows.append({"step": "counterfactual", "kind": "level", "top": level, "bottom": 0.0, "change": level})
    return pl.from_dicts(rows)


def chart(bars: pl.DataFrame, unit: str, title: str) -> alt.LayerChart:
    """Draw the bars that `steps` returns; `unit` is that of the values, `title` names the metric.

    >>> chart(steps(10.0, [("zeroing", 4.0)]), "count", "faults").to_dict()["layer"][0]["mark"]["type"]
    'bar'
    """
    scale = scale_for(most(bars, "top"), unit)
    order = bars["step"].to_list()
    signs = {"saving": "-", "cost": "+", "level": ""}
    shown = bars.with_columns(
        pl.col("top", "bottom") / scale.divisor,
        pl.struct("kind", "change")
        .map_elements(lambda r: signs[r["kind"]] + human(abs(r["change"]), unit), return_dtype=pl.String)
        .alias("shown"),
    )
    suffix = f" ({scale.suffix})" if scale.suffix else ""
    base = alt.Chart(inline(shown)).encode(
        x=alt.X("step:N", sort=order, title=None, axis=alt.Axis(labelAngle=0, labelLimit=130)),
        y=alt.Y("top:Q", title=f"{title}{suffix}"),
        tooltip=["step:N", "kind:N", alt.Tooltip("shown:N", title="change")],
    )
    levels = base.transform_filter(alt.datum.kind == "level").mark_bar(
        size=44, style=[INK, "ink-fill"], opacity=0.75
    )
    changes = (
        base.transform_filter(alt.datum.kind != "level")
        .mark_bar(size=44)
        .encode(
            y2="bottom:Q",
            color=alt.Color(
                "kind:N",
                scale=alt.Scale(domain=["saving", "cost"]),
                legend=alt.Legend(title=None, orient="top"),
            ),
        )
    )
    labels = base.mark_text(dy=-8, style=INK).encode(text="shown:N")
    drawn: alt.LayerChart = (levels + changes + labels).properties(width=WIDTH, height=HEIGHT)
    return drawn
