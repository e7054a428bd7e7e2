"""What each scenario saves, as a share of the baseline, with its interval and its label."""

from __future__ import annotations

from typing import Final

import altair as alt
import polars as pl

from tracekit.report.charts.axes import WIDTH
from tracekit.report.figure import INK, inline
from tracekit.report.ledger import LABELS

__all__ = ["SHAPES", "chart"]

SHAPES: Final = {"measured": "circle", "bounded": "square", "assumed": "diamond"}
"""Label -> mark shape, so that no reader needs the colour."""


def chart(savings: pl.DataFrame) -> alt.FacetChart:
    """Draw one panel per metric: a bar per scenario from 0 to the saved share, a rule for its interval.

    `savings` has the columns metric, scenario, share, share_low, share_high (fractions of the baseline;
    negative = a cost), label and shown (the saving in words).

    >>> row = {"metric": "faults", "scenario": "prealloc", "share": 1.0, "share_low": 1.0, "share_high": 1.0,
    ...        "label": "measured", "shown": "65,537"}
    >>> chart(pl.from_dicts([row])).to_dict()["facet"]["row"]["field"]
    'metric'
    """
    scenarios = savings["scenario"].unique(maintain_order=True).to_list()
    metrics = savings["metric"].unique(maintain_order=True).to_list()
    labels = [label for label in LABELS if label in set(savings["label"])]
    base = alt.Chart().encode(
        y=alt.Y("scenario:N", sort=scenarios, title=None, axis=alt.Axis(labelLimit=220)),
        tooltip=["scenario:N", "metric:N", alt.Tooltip("shown:N", title="saved"), "label:N"],
    )
    percent = alt.Axis(format="~%", tickCount=6, grid=True)
    bars = base.mark_bar(height={"band": 0.62}, opacity=0.55).encode(
        x=alt.X("share:Q", title="saved, share of the baseline (left of 0 = a cost)", axis=percent),
        color=alt.Color("scenario:N", sort=scenarios, scale=alt.Scale(domain=scenarios), legend=None),
    )
    interval = base.mark_rule(strokeWidth=2).encode(x=alt.X("share_low:Q"), x2="share_high:Q")
    point = base.mark_point(size=70, style=INK, filled=True).encode(
        x="share:Q",
        shape=alt.Shape(
            "label:N",
            scale=alt.Scale(domain=labels, range=[SHAPES[name] for name in labels]),
            legend=alt.Legend(title=None, orient="top"),
        ),
    )
    layered = alt.layer(bars, interval, point, data=inline(savings)).properties(
        width=WIDTH - 160, height=alt.Step(24)
    )
    return layered.facet(
        row=alt.Row(
            "metric:N", sort=metrics, header=alt.Header(title=None, labelOrient="top", labelAnchor="start")
        ),
        spacing=14,
    )
