"""Compares recordings or results: provenance first, then differences with intervals and a test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from tracekit.errors import UsageError
from tracekit.report.comparison.blocks import BLOCKS, Tally, tallies
from tracekit.report.comparison.differences import Difference, of_recordings, of_results
from tracekit.report.comparison.facts import Fact, facts_of
from tracekit.report.comparison.inference import enough_runs
from tracekit.report.comparison.sides import Side, open_sides
from tracekit.report.text import plain

__all__ = ["ALPHA", "TOLERANCE", "Comparison", "Pair", "compare"]

TOLERANCE: Final = 0.05
"""Differences up to this share of the first side are no difference, however sure they are."""

ALPHA: Final = 0.01
"""Adjusted p-values above this are no evidence of a difference."""


@dataclass(frozen=True)
class Pair:
    """The first side beside one other: `first` and `second` are their tallies (empty for results)."""

    other: Side
    differences: list[Difference]
    second: list[Tally]


@dataclass(frozen=True)
class Comparison:
    """What was compared with what, under which rules, and what came out.

    `forced` says what would have forbidden the comparison; `method` how differences were tested.
    """

    sides: list[Side]
    facts: list[Fact]
    pairs: list[Pair]
    first: list[Tally]
    tolerance: float
    alpha: float
    method: str
    forced: str

    @property
    def different(self) -> bool:
        """Whether any metric of any side differs from the first."""
        return any(d.verdict == "different" for pair in self.pairs for d in pair.differences)

    def document(self) -> dict[str, Any]:
        """Return everything as values for JSON."""
        return {
            "sides": [side.name for side in self.sides],
            "different": self.different,
            "tolerance": self.tolerance,
            "alpha": self.alpha,
            "method": self.method,
            "forced": self.forced,
            "facts": [
                {"fact": f.name, "values": list(f.values), "verdict": f.verdict, "why": f.why}
                for f in self.facts
            ],
            "differences": [
                {
                    "side": pair.other.name,
                    **{name: getattr(d, name) for name in _FIELDS},
                }
                for pair in self.pairs
                for d in pair.differences
            ],
        }


_FIELDS: Final = (
    "metric",
    "unit",
    "first",
    "second",
    "difference",
    "low",
    "high",
    "relative",
    "p",
    "verdict",
)


def compare(
    arguments: Sequence[str],
    *,
    force: bool = False,
    tolerance: float = TOLERANCE,
    alpha: float = ALPHA,
    seed: int = 0,
) -> Comparison:
    """Compare each further side with the first one.

    A side is a trace, a replay's result, or traces of repeated runs joined by commas. Differences of
    recordings are tested by permutation: over whole runs where there are enough to show anything at
    `alpha`, else (times only) over 24 blocks of equal progress. p-values are adjusted for their number.

    Raises UsageError where provenance forbids the comparison, unless `force`: then `forced` says why.
    """
    sides = open_sides(arguments)
    facts = facts_of(sides)
    forbidden = [f for f in facts if f.verdict == "forbids"]
    if forbidden and not force:
        first = forbidden[0]
        raise UsageError(
            f"not comparable: {first.name} differs ({_values(first)}): {first.why}",
            hint="tracekit compare --force marks the comparison instead of refusing it",
        )
    forced = "; ".join(f"{f.name} differs ({_values(f)}): {f.why}" for f in forbidden)
    first_tallies: list[Tally] = []
    pairs = []
    if sides[0].runs:
        first_tallies, *others = [tallies(side.runs) for side in sides]
        for side, second in zip(sides[1:], others, strict=True):
            found = of_recordings(first_tallies, second, alpha=alpha, seed=seed)
            pairs.append(Pair(side, [d.judged(tolerance, alpha) for d in found], second))
    else:
        for side in sides[1:]:
            found = of_results(sides[0], side)
            if not found:
                raise UsageError(
                    f"{plain(sides[0].name)} and {plain(side.name)} have no scenario in common",
                    hint="replay the same scenarios over both traces",
                )
            pairs.append(Pair(side, [d.judged(tolerance, alpha) for d in found], []))
    return Comparison(sides, facts, pairs, first_tallies, tolerance, alpha, _method(sides, alpha), forced)


def _values(fact: Fact) -> str:
    return plain(" | ".join(value or "not known" for value in fact.values), longest=160)


def _method(sides: list[Side], alpha: float) -> str:
    if not sides[0].runs:
        return "what each scenario saves; what the traces leave open counts as the same on both sides"
    if all(enough_runs(len(sides[0].runs), len(side.runs), alpha) for side in sides[1:]):
        return "permutation test over whole runs"
    return (
        f"counts as they are; times by a permutation test over {BLOCKS} blocks of equal progress, swapped in "
        "pairs: that says whether these recordings differ, not whether the next run would"
    )
