"""The page of a comparison: what came out, what was the same, what differs, side by side."""

from __future__ import annotations

from typing import Any

from tracekit.report.comparison import Comparison
from tracekit.report.comparison.differences import Difference
from tracekit.report.comparison.table import conclusion, interval, percent
from tracekit.report.figures.of_comparison import draw_comparison
from tracekit.report.page.assembly import assemble
from tracekit.report.text import plain
from tracekit.report.units import human

__all__ = ["render_comparison"]


def render_comparison(found: Comparison) -> str:
    """Return the page of a comparison."""
    sides = [plain(side.name, longest=80) for side in found.sides]
    forced = {"grade": "alarm", "what": "Forced.", "then": plain(found.forced, longest=1200)}
    return assemble(
        "comparison.html",
        draw_comparison(found),
        kicker="tracekit compare",
        heading="These differ" if found.different else "No difference shown",
        name=" | ".join(sides),
        subject=[],
        notices=[forced] if found.forced else [],
        conclusion=conclusion(found),
        method=found.method,
        sides=sides,
        facts=[
            {
                "name": f.name,
                "values": [plain(v, longest=300) or "not known" for v in f.values],
                "verdict": f.verdict,
            }
            for f in found.facts
        ],
        pairs=[
            {"name": plain(pair.other.name, longest=80), "rows": [_row(d) for d in pair.differences]}
            for pair in found.pairs
        ],
    )


def _row(one: Difference) -> dict[str, Any]:
    return {
        "metric": plain(one.metric),
        "first": human(one.first, one.unit),
        "second": human(one.second, one.unit),
        "change": percent(one),
        "interval": interval(one),
        "p": "" if one.p is None else f"{one.p:.2g}",
        "verdict": one.verdict,
    }
