"""One picture of a report: the Altair chart, what it says in words, and the data behind it."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import altair as alt
import polars as pl
from altair.utils.schemapi import debug_mode

__all__ = ["EXPORT_SCALE", "INK", "PALETTE", "Figure", "inline", "save_figures", "theme"]

PALETTE: Final = 6
"""How many series get a colour of their own before the palette repeats (dashes tell the rest apart)."""

EXPORT_SCALE: Final = 2.0
"""Pixels per chart unit in PNG files."""

# Okabe & Ito's colour-blind-safe set (jfly.uni-koeln.de/color, 2008), reordered so that the first two
# differ most in lightness too; `dark` holds lighter tints of the same hues for a dark ground.
_COLOURS: Final = {
    "light": {
        "ink": "#1b1f24",
        "muted": "#59636e",
        "grid": "#e4e8ec",
        "series": ["#0072b2", "#d55e00", "#009e73", "#b0578d", "#e69f00", "#56b4e9"],
    },
    "dark": {
        "ink": "#e8edf2",
        "muted": "#9aa7b4",
        "grid": "#2c343d",
        "series": ["#5cb8f0", "#ff9057", "#3fd6a8", "#e7a3cb", "#f5c242", "#a9d9f7"],
    },
    # The page draws SVG, where a colour may be a CSS variable: one drawing serves light, dark and print.
    "page": {
        "ink": "var(--ink)",
        "muted": "var(--muted)",
        "grid": "var(--grid)",
        "series": [f"var(--series-{n})" for n in range(1, PALETTE + 1)],
    },
}

_TITLE_LETTERS: Final = 140
"""Letters in a line below a picture's title: what fits the charts' width."""

INK: Final = "ink"
"""The name of the style of baseline marks: text colour, so that it never looks like one of the scenarios."""


@dataclass(frozen=True)
class Figure:
    """A chart with its words.

    `says` is the one sentence a reader should take away, computed from the data; `alt_text` is what a
    screen reader says instead of the picture; `known_by` tells how the figures are known; `table` is
    what the chart draws, in rows.
    """

    name: str
    title: str
    says: str
    alt_text: str
    chart: alt.TopLevelMixin
    table: pl.DataFrame
    known_by: str = ""
    units: dict[str, str] = field(default_factory=dict)

    def spec(self) -> dict[str, Any]:
        """Return the Vega-Lite specification, data included, without colours of its own."""
        spec: dict[str, Any] = self.chart.to_dict()
        spec.pop("config", None)
        return {**spec, "description": self.alt_text}


def inline(data: pl.DataFrame) -> alt.InlineData:
    """Return rows as data inside the chart: a report must not lose them, however many there are.

    >>> inline(pl.DataFrame({"x": [1, 2]})).values
    [{'x': 1}, {'x': 2}]
    """
    # Altair would check every row against its schema, 150 us each; rows of a frame need no such check.
    with debug_mode(False):
        return alt.InlineData(values=data.to_dicts())


def theme(mode: str) -> dict[str, Any]:
    """Return the Vega-Lite config of a ground: light, dark, or page (the page's own CSS variables)."""
    colours = _COLOURS[mode]
    ink, muted, grid = colours["ink"], colours["muted"], colours["grid"]
    text = {"labelColor": muted, "titleColor": muted, "labelFontSize": 12, "titleFontSize": 12}
    return {
        "background": "transparent" if mode == "page" else {"light": "#ffffff", "dark": "#14181d"}[mode],
        "font": "system-ui, 'Segoe UI', 'Liberation Sans', Arial, sans-serif",
        "padding": 0 if mode == "page" else 12,
        "view": {"stroke": None},
        # category: one colour per series; ordinal: the same behind the baseline, which is drawn in ink.
        "range": {"category": colours["series"], "ordinal": [ink, *colours["series"]]},
        "axis": {
            **text,
            "titleFontWeight": "normal",
            "titlePadding": 8,
            "gridColor": grid,
            "domainColor": grid,
            "tickColor": grid,
            "labelLimit": 260,
        },
        "axisX": {"grid": False, "domainColor": muted, "tickColor": muted},
        "axisY": {"domain": False, "ticks": False, "labelPadding": 6},
        "legend": {
            **text,
            "titleFontWeight": "normal",
            "symbolStrokeWidth": 2,
            "labelLimit": 320,
            "symbolBaseFillColor": ink,
            "symbolBaseStrokeColor": ink,
        },
        "header": {**text, "labelFontSize": 13, "labelColor": ink},
        "title": {
            "color": ink,
            "fontSize": 13,
            "anchor": "start",
            "fontWeight": 600,
            "subtitleColor": muted,
            "subtitleFontSize": 12,
            "subtitlePadding": 4,
            "offset": 12,
        },
        "text": {"color": ink, "fontSize": 12},
        "rule": {"color": ink},
        "style": {INK: {"color": ink}},
    }


def save_figures(figures: list[Figure], folder: Path, *, mode: str = "light") -> list[Path]:
    """Write each figure as NAME.svg and NAME.png into `folder` (made if need be); return the paths."""
    import vl_convert

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for figure in figures:
        # On the page a heading and a sentence stand beside the chart; a picture has to say them itself.
        words = {"text": figure.title, "subtitle": textwrap.wrap(figure.says, _TITLE_LETTERS)}
        spec = {**figure.spec(), "title": words, "config": theme(mode)}
        picture = folder / f"{figure.name}.svg"
        picture.write_text(vl_convert.vegalite_to_svg(spec), encoding="utf-8")
        pixels = folder / f"{figure.name}.png"
        pixels.write_bytes(vl_convert.vegalite_to_png(spec, scale=EXPORT_SCALE))
        written += [picture, pixels]
    return written
