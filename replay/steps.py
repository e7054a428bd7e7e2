"""The rows of a scenario: of its one mechanism; or of all of them, of each step, and without each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from tracekit.replay.ledger import Figure, unit_of, with_all
from tracekit.replay.result import Row

__all__ = ["name_of", "rows_of", "sets_of"]

NONE: Final = "none"
ALL: Final = "all"
"""The names in the `mechanism` column for the baseline and for a whole combination."""

WITHOUT: Final = "without "
"""Before a mechanism's name in that column: what the combination would lose without it."""

Figures = Mapping[str, Figure]


def name_of(names: Sequence[str]) -> str:
    """Return what the rows of all these mechanisms together are named.

    >>> name_of([]), name_of(["zeroing"]), name_of(["zeroing", "prealloc"])
    ('none', 'zeroing', 'all')
    """
    return ALL if len(names) > 1 else next(iter(names), NONE)


def sets_of(names: Sequence[str], *, steps: bool) -> list[frozenset[str]]:
    """Return which sets of mechanisms are to be replayed for the rows, the whole first.

    >>> [sorted(one) for one in sets_of(["a", "b", "c"], steps=True)]
    [['a', 'b', 'c'], ['a'], ['a', 'b'], ['b', 'c'], ['a', 'c']]
    """
    every = frozenset(names)
    sets = [every]
    if steps and len(names) > 1:
        sets += [frozenset(names[:k]) for k in range(1, len(names))]
        sets += [every - {name} for name in names]
    return list(dict.fromkeys(sets))


def rows_of(scenario: str, names: Sequence[str], found: Mapping[frozenset[str], Figures]) -> list[Row]:
    """Return the rows of a scenario from the figures of `sets_of` its mechanisms."""
    found = {these: with_all(mine, list(found.values())) for these, mine in found.items()}
    whole = found[frozenset(names)]
    rows = _rows(scenario, name_of(names), whole)
    if len(found) == 1:
        return rows
    found = {**found, frozenset(): {}}
    for k, name in enumerate(names):
        step = _step(found[frozenset(names[:k])], found[frozenset(names[: k + 1])])
        rows += _rows(scenario, name, step)
    for name in names:
        rows += _rows(scenario, f"{WITHOUT}{name}", _step(found[frozenset(names) - {name}], whole))
    return rows


def _step(before: Mapping[str, Figure], after: Mapping[str, Figure]) -> dict[str, Figure]:
    """Return what one more mechanism changed, after the others."""
    steps = {}
    for name, figure in after.items():
        if name not in before:
            steps[name] = figure
            continue
        earlier = before[name]
        ends = sorted((figure.saved.low - earlier.saved.low, figure.saved.high - earlier.saved.high))
        value = figure.saved.value - earlier.saved.value
        saved = figure.saved._replace(value=value, low=min(ends[0], value), high=max(ends[1], value))
        steps[name] = Figure(earlier.counterfactual, figure.counterfactual, saved, figure.label)
    return steps


def _rows(scenario: str, mechanism: str, figures: Mapping[str, Figure]) -> list[Row]:
    return [
        Row(
            scenario,
            mechanism,
            metric,
            unit_of(metric),
            _number(figure.baseline),
            _number(figure.counterfactual),
            _number(figure.saved.value),
            _number(figure.saved.low),
            _number(figure.saved.high),
            figure.label,
        )
        for metric, figure in figures.items()
    ]


def _number(value: float) -> float | None:
    return float(value) + 0.0 if math.isfinite(value) else None
