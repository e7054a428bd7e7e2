"""A comparison in the terminal: provenance, then differences, 80 columns, verdicts in words."""

from __future__ import annotations

from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tracekit.report.comparison import Comparison, Pair
from tracekit.report.comparison.differences import Difference
from tracekit.report.comparison.facts import Fact
from tracekit.report.tables import WIDTH
from tracekit.report.text import plain
from tracekit.report.units import human, human_interval

__all__ = ["comparison_table", "conclusion", "interval", "percent"]

_STYLES: Final = {"different": "bold red", "same": "green", "not shown": "dim"}


def comparison_table(found: Comparison) -> RenderableType:
    """Return a comparison as something rich can print, 80 columns wide."""
    parts: list[RenderableType] = [_provenance(found)]
    if found.forced:
        parts.append(Text(f"FORCED although {plain(found.forced, longest=600)}", style="bold red"))
    for pair in found.pairs:
        parts += [Text(""), *_pair(found, pair)]
    parts += [Text(""), Text(found.method, style="dim"), Text(conclusion(found), style="bold")]
    return Group(*parts)


def conclusion(found: Comparison) -> str:
    """Say in one sentence what came out."""
    every = [d for pair in found.pairs for d in pair.differences]
    different = [d for d in every if d.verdict == "different"]
    rule = f"by more than {100 * found.tolerance:g} %, and p <= {found.alpha:g} where tested"
    if not found.first:
        rule = f"in all of the interval, by more than {100 * found.tolerance:g} %"
    return f"{len(different)} of {len(every)} metrics differ ({rule})"


def _provenance(found: Comparison) -> RenderableType:
    same = [fact.name for fact in found.facts if fact.verdict == "same"]
    table = Table(box=None, width=WIDTH, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("what differs", no_wrap=True)
    for side in found.sides:
        table.add_column(Text(plain(side.name, longest=40)), ratio=1)
    for fact in found.facts:
        if fact.verdict != "same":
            name = f"{fact.name} !" if fact.verdict == "forbids" else fact.name
            table.add_row(Text(name), *(Text(_short(value)) for value in fact.values))
    said = Text(f"the same: {', '.join(same)}" if same else "nothing is the same", style="dim")
    return Group(table, said) if _differing(found.facts) else said


def _differing(facts: list[Fact]) -> bool:
    return any(fact.verdict != "same" for fact in facts)


def _short(value: str) -> str:
    return plain(value, longest=60) or "not known"


def _pair(found: Comparison, pair: Pair) -> list[RenderableType]:
    names = f"{plain(found.sides[0].name, longest=36)} -> {plain(pair.other.name, longest=36)}"
    table = Table(box=None, width=WIDTH, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("metric", ratio=1, overflow="fold")
    for name in ("first", "second", "change"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column(Text("[low, high]"), no_wrap=True)
    table.add_column("p", justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for one in pair.differences:
        table.add_row(
            Text(plain(one.metric)),
            human(one.first, one.unit),
            human(one.second, one.unit),
            percent(one),
            Text(interval(one), style="dim"),
            "" if one.p is None else f"{one.p:.2g}" if one.p >= 0.001 else "<.001",
            Text(one.verdict, style=_STYLES[one.verdict]),
        )
    return [Text(names, style="bold"), table]


def percent(one: Difference) -> str:
    """Return the change as a signed percentage; without a first side to relate to, as it is."""
    if one.relative is None:
        return human(one.difference, one.unit)
    share = 100 * one.relative
    return "0 %" if share == 0 else f"{share:+.1f} %" if abs(share) < 1000 else f"{share:+.2g} %"


def interval(one: Difference) -> str:
    """Return the interval of the change, in the unit of the change."""
    if one.low is None or one.high is None:
        return "exact" if one.counted else ""
    if not one.first:
        return human_interval(one.difference, one.low, one.high, one.unit)[1]
    ends = (100 * end / abs(one.first) for end in (one.low, one.high))
    return f"[{', '.join(f'{end:+.1f}' if end else '0' for end in ends)}]"
