"""Writes the report: one HTML file that holds its charts, its data and its runtime, and loads nothing."""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from typing import Any, Final

import polars as pl

from tracekit.report.figure import Figure, theme
from tracekit.report.figures import draw
from tracekit.report.ledger import LABELS, Entry, entries, headline, scenarios, title
from tracekit.report.notices import assumptions, costs, losses, notices, provenance, subject
from tracekit.report.study import Study
from tracekit.report.text import plain
from tracekit.report.units import human, human_interval

__all__ = ["render"]

_TABLE_ROWS: Final = 60
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
    from jinja2 import Environment, StrictUndefined

    figures = draw(study) if figures is None else figures
    runtime, script = _runtime(), _asset("page.js")
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True).from_string(
        _asset("page.html")
    )
    return page.render(
        heading="What enlightened memory would save"
        if study.rows is not None
        else "What this VM's memory did",
        name=plain(study.name),
        subject=subject(study),
        notices=notices(study),
        cards=_cards(study.rows),
        labels=[(name, LABELS[name]) for name in LABELS if _uses(study.rows, name)],
        ledger=_ledger(study.rows),
        figures=[_words(figure) for figure in figures],
        missing=_missing(study, figures),
        assumptions=assumptions(study),
        provenance=provenance(study),
        costs=costs(study),
        losses=losses(study),
        version=version("tracekit"),
        style=_asset("page.css"),
        script_hashes=" ".join(f"'sha256-{_digest(text)}'" for text in (runtime, script)),
        figures_json=_inert_json(
            {"config": theme("page"), "figures": [_drawing(figure) for figure in figures]}
        ),
        runtime=runtime,
        script=script,
    )


def _asset(name: str) -> str:
    return (files("tracekit.report") / name).read_text(encoding="utf-8")


@cache
def _runtime() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script; a closing tag inside it would end the page's."""
    import vl_convert

    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return bundle.replace("</script", "<\\/script")


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _inert_json(value: Any) -> str:
    """Return JSON that no HTML parser can mistake for markup."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _drawing(figure: Figure) -> dict[str, Any]:
    spec = figure.spec()
    datasets = {name: _columns(rows) for name, rows in spec.pop("datasets", {}).items()}
    spec.pop("$schema", None)
    return {"name": figure.name, "spec": spec, "datasets": datasets}


def _columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Return rows as columns: each name once instead of once a row."""
    return {name: [row[name] for row in rows] for name in rows[0]} if rows else {}


def _words(figure: Figure) -> dict[str, Any]:
    table = figure.table.head(_TABLE_ROWS)
    return {
        "name": figure.name,
        "title": figure.title,
        "says": figure.says,
        "alt_text": figure.alt_text,
        "known_by": figure.known_by,
        "columns": [
            {"name": name.replace("_", " "), "number": dtype.is_numeric()}
            for name, dtype in table.schema.items()
        ],
        "rows": [
            [_cell(value, figure.units.get(name)) for name, value in row.items()]
            for row in table.iter_rows(named=True)
        ],
        "more": max(0, figure.table.height - _TABLE_ROWS),
    }


def _cell(value: object, unit: str | None) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "unknown" if value is None else plain(value)
    return human(value, unit or "count")


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
    "miss-ratio": "miss-ratio curve: the result holds none",
    "zeroing": "zeroing cost: no cost profile of this host (tracekit calibrate)",
}


def _missing(study: Study, figures: list[Figure]) -> list[str]:
    """Say which charts are not there and what they would need: an absent chart must not look like a zero."""
    drawn = {figure.name for figure in figures}
    return [reason for name, reason in _NEEDS.items() if name not in drawn]
