"""The report of a study: what would be saved, the ledger, the charts, what it all rests on."""

from __future__ import annotations

from typing import Any, Final

import polars as pl

from tracekit.report.figure import Figure
from tracekit.report.figures import draw
from tracekit.report.ledger import LABELS, Entry, entries, headline, scenarios, title
from tracekit.report.notices import assumptions, costs, losses, notices, provenance, subject
from tracekit.report.page.assembly import assemble
from tracekit.report.study import Study
from tracekit.report.text import plain
from tracekit.report.units import human, human_interval

__all__ = ["render"]

_BESIDE: Final = (
    "critical_path",
    "faults",
    "host_cpu_background",
    "guest_cpu",
    "resident_mean",
    "hypercalls",
)


def render(study: Study, figures: list[Figure] | None = None) -> str:
    """Return the page of a study; `figures` may be given where they were drawn already."""
    figures = draw(study) if figures is None else figures
    return assemble(
        "study.html",
        figures,
        kicker="tracekit report",
        heading="What enlightened memory would save"
        if study.rows is not None
        else "What this VM's memory did",
        name=plain(study.name),
        subject=subject(study),
        notices=notices(study),
        cards=_cards(study.rows),
        labels=[(name, LABELS[name]) for name in LABELS if _uses(study.rows, name)],
        ledger=_ledger(study.rows),
        missing=_missing(study, figures),
        assumptions=assumptions(study),
        provenance=provenance(study),
        costs=costs(study),
        losses=losses(study),
    )


def _uses(rows: pl.DataFrame | None, label: str) -> bool:
    return rows is not None and label in set(rows["label"])


def _cards(rows: pl.DataFrame | None) -> list[dict[str, Any]]:
    """Return the headline of each scenario, the one that surely saves most first."""
    if rows is None:
        return []
    found = [(scenario, headline(rows, scenario)) for scenario in scenarios(rows)]
    leading = [(scenario, entry) for scenario, entry in found if entry is not None]
    leading.sort(key=lambda pair: pair[1].rank)
    return [_card(rows, scenario, entry) for scenario, entry in leading]


def _card(rows: pl.DataFrame, scenario: str, entry: Entry) -> dict[str, Any]:
    amount, low, high = entry.amount
    of, interval = title(entry.metric), ""
    if amount is not None:
        of += f" {'saved' if entry.verb == 'saves' else 'more'}, of {human(entry.baseline, entry.unit)}"
        of += f" ({entry.share.lstrip('-')})" if entry.share else ""
        interval = entry.spread if entry.exact else f"{human(low, entry.unit)} to {human(high, entry.unit)}"
    others = [other for other in entries(rows, scenario) if other.metric in _BESIDE and other.saved]
    return {
        "scenario": plain(scenario, longest=80),
        # What the trace leaves open down to nothing is an upper bound, and must not be read as a promise.
        "up_to": "up to" if amount and not entry.certain else "",
        "value": human(amount, entry.unit),
        "of": of,
        "interval": interval,
        "label": entry.label,
        "others": [_beside(other) for other in others if other.metric != entry.metric],
    }


def _beside(entry: Entry) -> dict[str, str]:
    """Return a figure of the small print: less is a saving, more a cost."""
    amount, *_ = entry.amount
    share = f" ({entry.share.lstrip('-')})" if entry.share else ""
    sign = "-" if entry.verb == "saves" else "+"
    return {
        "metric": title(entry.metric),
        "change": f"{sign}{human(amount, entry.unit)}{share}",
        "label": entry.label,
    }


def _ledger(rows: pl.DataFrame | None) -> list[dict[str, Any]]:
    """Return the ledger of each scenario: the headline metrics, and apart from them all the others."""
    if rows is None:
        return []
    blocks = []
    for scenario in scenarios(rows):
        every = entries(rows, scenario, every=True)
        leading = entries(rows, scenario) or every
        blocks.append(
            {
                "scenario": plain(scenario, longest=120),
                "rows": [_ledger_row(entry) for entry in leading],
                "more": [_ledger_row(entry) for entry in every if entry not in leading],
            }
        )
    return blocks


def _ledger_row(entry: Entry) -> dict[str, str]:
    saved, interval = human_interval(entry.saved, entry.low, entry.high, entry.unit)
    return {
        "metric": plain(title(entry.metric)),
        "baseline": human(entry.baseline, entry.unit),
        "counterfactual": human(entry.counterfactual, entry.unit),
        "saved": saved,
        "interval": entry.spread if entry.exact else interval,
        "label": entry.label,
        "turn": "cost" if entry.saved is not None and entry.saved < 0 else "",
    }


_NEEDS: Final = {
    "savings": "savings: needs a replay (give --scenario, or a result instead of a trace)",
    "resident": "resident memory: the trace holds no RSS samples and the replay no curves",
    "stall": "stall by cause: no event in the trace has a latency",
    "latency": "fault latency: no event in the trace has a latency",
    "heat": "gfn x time: needs a trace with located events",
    "balloon": "balloon: nothing gave memory back",
    "tornado": "parameter sensitivity: the result holds none (tracekit sweep)",
    "miss-ratio": "miss-ratio curve: nothing was evicted, so nothing tells what more memory would do",
    "zeroing": "zeroing cost: no cost profile (tracekit calibrate)",
}


def _missing(study: Study, figures: list[Figure]) -> list[str]:
    """Say which charts are not there and what they would need: an absent chart must not look like a zero."""
    drawn = {figure.name for figure in figures}
    return [reason for name, reason in _NEEDS.items() if name not in drawn]
