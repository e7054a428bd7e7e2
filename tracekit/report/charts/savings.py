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

COLUMNS: Final = 2


def chart(savings: pl.DataFrame) -> alt.FacetChart:
    """Draw one panel per metric: a bar per scenario from 0 to the saved share, a rule for its interval.

    `savings` has the columns metric, scenario, share, share_low, share_high (fractions of the baseline;
    negative = a cost), label and shown (the saving in words).

    >>> row = {"metric": "faults", "scenario": "prealloc", "share": 1.0, "share_low": 1.0, "share_high": 1.0,
    ...        "label": "measured", "shown": "65,537"}
    >>> chart(pl.from_dicts([row])).to_dict()["facet"]["field"]
    'metric'
    """
    scenarios = savings["scenario"].unique(maintain_order=True).to_list()
    metrics = savings["metric"].unique(maintain_order=True).to_list()
    labels = [label for label in LABELS if label in set(savings["label"])]
    ends = [float(end) for name in ("share", "share_low", "share_high") for end in savings[name].drop_nulls()]
    # A cost can be many times the baseline: the bar is cut there, its length is in the table.
    shares = alt.Scale(
        domain=[max(-1.0, min([0.0, *ends])), 1.0 if max(ends) > 0 else 0.0], nice=False, clamp=True
    )
    base = alt.Chart().encode(
        y=alt.Y("scenario:N", sort=scenarios, title=None, axis=alt.Axis(labelLimit=200)),
        tooltip=["scenario:N", "metric:N", alt.Tooltip("shown:N", title="saved"), "label:N"],
    )
    bars = base.mark_bar(height={"band": 0.66}, opacity=0.55).encode(
        x=alt.X(
            "share:Q",
            title="saved, share of the baseline",
            axis=alt.Axis(format="~%", tickCount=5, grid=True),
            scale=shares,
        ),
        color=alt.Color("scenario:N", sort=scenarios, scale=alt.Scale(domain=scenarios), legend=None),
    )
    interval = base.mark_rule(strokeWidth=2).encode(x=alt.X("share_low:Q", scale=shares), x2="share_high:Q")
    point = base.mark_point(size=60, style=INK, filled=True, opacity=1).encode(
        x=alt.X("share:Q", scale=shares),
        shape=alt.Shape(
            "label:N",
            scale=alt.Scale(domain=labels, range=[SHAPES[name] for name in labels]),
            legend=alt.Legend(title=None, orient="top"),
        ),
    )
    panel = alt.layer(bars, interval, point, data=inline(savings)).properties(
        width=(WIDTH - 80) // COLUMNS, height=alt.Step(22)
    )
    return panel.facet(
        facet=alt.Facet(
            "metric:N", sort=metrics, header=alt.Header(title=None, labelAnchor="start", labelFontWeight=600)
        ),
        columns=COLUMNS,
        spacing=18,
    )
