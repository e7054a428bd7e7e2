"""What `tracekit datasets list` and `show` print, as JSON values and as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tracekit.datasets.catalog import card, cards
from tracekit.datasets.making import PREFIX, describe_generator
from tracekit.datasets.synthetic import GENERATORS

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

__all__ = ["describe", "details", "rows", "table"]


def rows() -> list[dict[str, Any]]:
    """Return one row per dataset: name, source, about, and for bundled ones events, size and path.

    >>> sorted({row["source"] for row in rows()} - {"recorded"})
    ['synthetic']
    """
    bundled = [
        {
            "name": item.name,
            "source": item.source,
            "about": item.title,
            "events": item.events,
            "size_bytes": item.size_bytes,
            "path": str(item.path),
        }
        for item in cards()
    ]
    made = [
        {"name": PREFIX + name, "source": "synthetic", "about": kind.ABOUT}
        for name, kind in GENERATORS.items()
    ]
    return bundled + made


def describe(name: str) -> dict[str, Any]:
    """Return a card or a generator's parameters as JSON values; UsageError if there is no such name."""
    return describe_generator(name) if name.startswith(PREFIX) else card(name).to_json()


def table() -> Table:
    """Return the list as a rich table."""
    from rich.table import Table

    out = Table("name", "what", "events", box=None, pad_edge=False)
    out.columns[2].justify = "right"
    out.columns[0].no_wrap = True
    for row in rows():
        out.add_row(row["name"], row["about"], f"{row['events']:,}" if "events" in row else "any")
    return out


def details(name: str) -> RenderableType:
    """Return one dataset's card or parameters as a rich table."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    facts = describe(name)
    parameters = facts.pop("parameters", [])
    documentation = facts.pop("documentation", "")
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    for key, value in facts.items():
        text = (
            "\n".join(value)
            if isinstance(value, list)
            else f"{value:,}"
            if isinstance(value, int)
            else str(value)
        )
        grid.add_row(key.replace("_", " "), text)
    parts: list[RenderableType] = [grid]
    if documentation:
        parts += [Text(""), Text(" ".join(documentation.split()))]
    if parameters:
        listing = Table("parameter", "default", "meaning", box=None, pad_edge=False)
        for row in parameters:
            listing.add_row(row["name"], f"{row['default']:g}", row["about"])
        parts += [Text(""), listing]
    return Group(*parts)
