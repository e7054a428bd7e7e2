"""Puts a page together: one HTML file that holds its charts, its data and its runtime, and loads nothing."""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from typing import Any, Final

from tracekit.report.figure import Figure, theme
from tracekit.report.text import plain
from tracekit.report.units import human

__all__ = ["assemble", "cell"]

_TABLE_ROWS: Final = 60


def assemble(template: str, figures: list[Figure], **context: Any) -> str:
    """Return the page of a template (its file name here) with these figures; `context` fills the template."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    runtime, script = _runtime(), _asset("page.js")
    templates = Environment(
        loader=PackageLoader("tracekit.report.page", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    return templates.get_template(template).render(
        figures=[_words(figure) for figure in figures],
        version=version("tracekit"),
        style=_asset("page.css"),
        script_hashes=" ".join(f"'sha256-{_digest(text)}'" for text in (runtime, script)),
        figures_json=_inert_json(
            {"config": theme("page"), "figures": [_drawing(figure) for figure in figures]}
        ),
        runtime=runtime,
        script=script,
        **context,
    )


def _asset(name: str) -> str:
    return (files("tracekit.report.page") / name).read_text(encoding="utf-8")


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
            [cell(value, figure.units.get(name)) for name, value in row.items()]
            for row in table.iter_rows(named=True)
        ],
        "more": max(0, figure.table.height - _TABLE_ROWS),
    }


def cell(value: object, unit: str | None) -> str:
    """Return a value of a table as words."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "unknown" if value is None else plain(value)
    return human(value, unit or "count")
