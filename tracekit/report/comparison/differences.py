"""What differs between two sides: each metric with both values, an interval, a test and a verdict."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import numpy as np

from tracekit.report.comparison import inference
from tracekit.report.comparison.blocks import BINS, BLOCKS, GIVEN_BACK, Floats, Tally
from tracekit.report.comparison.inference import Inference, Sample, Statistic
from tracekit.report.comparison.sides import Side
from tracekit.report.ledger import Entry, entries, scenarios, title
from tracekit.trace.schema import PAGE_BYTES

__all__ = ["Difference", "of_recordings", "of_results"]

FEWEST_TIMED: Final = 10 * BLOCKS
"""Fewest timed faults on either side for their times to be compared."""

_ENOUGH_FOR: Final = {0.5: FEWEST_TIMED, 0.99: 1000}


@dataclass(frozen=True)
class Difference:
    """One metric on both sides; `low` and `high` bound `difference` (second - first), null = not known.

    `p` is adjusted for the number of tests (null = not tested, as counts of single recordings). `verdict`:
    different; same (the whole interval is within the tolerance); not shown (neither can be said).
    `counted`: both values are exact counts, and there is no interval.
    """

    metric: str
    unit: str
    first: float | None
    second: float | None
    low: float | None
    high: float | None
    p: float | None
    counted: bool = False
    verdict: str = "not shown"

    @property
    def difference(self) -> float | None:
        """Second minus first."""
        return None if self.first is None or self.second is None else self.second - self.first

    @property
    def relative(self) -> float | None:
        """The difference as a share of the first side; null where that is zero."""
        return None if self.difference is None or not self.first else self.difference / abs(self.first)

    def judged(self, tolerance: float, alpha: float) -> Difference:
        """Return it with its verdict."""
        if self.difference is None or self.first is None:
            return self
        room = tolerance * abs(self.first)
        low, high = self.low, self.high
        if low is None or high is None:
            # A count of a recording is exact; a saving without bounds shows nothing.
            sure = "different" if abs(self.difference) > room else "same"
            return replace(self, verdict=sure if self.counted else "not shown")
        significant = low > 0 or high < 0 if self.p is None else self.p <= alpha
        if significant and abs(self.difference) > room:
            return replace(self, verdict="different")
        return replace(self, verdict="same" if -room <= low and high <= room else "not shown")


def of_recordings(first: list[Tally], second: list[Tally], *, alpha: float, seed: int) -> list[Difference]:
    """Return the differences between two sides of recordings.

    With enough runs a side everything is tested over runs. Else counts stand as they are (they are exact
    for these recordings, and nothing tells how they vary), and times are tested over blocks of progress.
    """
    by_run = inference.enough_runs(len(first), len(second), alpha)
    found: list[Difference] = []
    for question in _questions(first, second, by_run):
        answer = None if question.sample is None else _infer(question, seed)
        if answer is None:
            exact = (*question.values, None, None, None)
            found.append(Difference(question.metric, question.unit, *exact, counted=True))
        else:
            ends = (answer.first, answer.second, answer.low, answer.high, answer.p)
            found.append(Difference(question.metric, question.unit, *ends))
    p_values = iter(inference.adjusted([one.p for one in found if one.p is not None]))
    return [one if one.p is None else replace(one, p=next(p_values)) for one in found]


class _Question(NamedTuple):
    """One metric to compare: its units on both sides, or (sample None) only the two values."""

    metric: str
    unit: str
    values: tuple[float, float]
    sample: Sample | None
    statistic: Statistic


def _infer(question: _Question, seed: int) -> Inference | None:
    assert question.sample is not None
    return inference.infer(question.sample, question.statistic, seed=seed)


def _questions(first: list[Tally], second: list[Tally], by_run: bool) -> Iterator[_Question]:
    classes = sorted({name for tally in (*first, *second) for name in tally.events})
    groups = [("faults", classes), *((name, [name]) for name in classes if len(classes) > 1)]
    for words, names in groups:
        events = _counts(first, "events", names), _counts(second, "events", names)
        yield _counted(words, "count", events, by_run)
        yield from _timed(words, first, second, names, by_run)
    touched = _counts(first, "pages", classes, PAGE_BYTES), _counts(second, "pages", classes, PAGE_BYTES)
    yield _counted("memory faulted in", "bytes", touched, by_run)
    returned = tuple([PAGE_BYTES * tally.given_back for tally in side] for side in (first, second))
    if any(map(any, returned)):
        yield _counted(GIVEN_BACK, "bytes", (returned[0], returned[1]), by_run)


def _counts(side: list[Tally], column: str, names: list[str], factor: int = 1) -> list[float]:
    return [factor * sum(getattr(tally, column).get(name, 0.0) for name in names) for tally in side]


def _counted(metric: str, unit: str, sides: tuple[list[float], list[float]], by_run: bool) -> _Question:
    first, second = sides
    sample = Sample(np.array([first]).T, np.array([second]).T, paired=False) if by_run else None
    values = (sum(first) / len(first), sum(second) / len(second))
    return _Question(metric, unit, values, sample, inference.mean)


def _timed(
    words: str, first: list[Tally], second: list[Tally], names: list[str], by_run: bool
) -> Iterator[_Question]:
    """Yield stall and latency quantiles of some classes together."""
    stall, counts = (
        Sample(_stacked(first, column, names, by_run), _stacked(second, column, names, by_run), not by_run)
        for column in ("stall_ns", "latency")
    )
    fewest = min(counts.first.sum(), counts.second.sum())
    if fewest < FEWEST_TIMED:
        return
    sums = inference.mean if by_run else inference.total
    nothing = (0.0, 0.0)
    yield _Question(f"stall, {words}", "ns", nothing, stall, sums)
    for share, needed in _ENOUGH_FOR.items():
        if fewest >= needed:
            quantile = inference.upper_quantile(share)
            yield _Question(f"p{100 * share:g}, {words}", "ns", nothing, counts, quantile)


def _stacked(side: list[Tally], column: str, names: list[str], by_run: bool) -> Floats:
    """Return one row per run (its sum over blocks), or one per block (its mean over runs)."""
    width = BINS if column == "latency" else 1
    table = np.zeros((len(side), BLOCKS, width))
    for run, tally in enumerate(side):
        for name in names:
            if name in tally.events:
                table[run] += getattr(tally, column)[name].reshape(BLOCKS, width)
    rows: Floats = table.sum(axis=1) if by_run else table.mean(axis=0)
    return rows


def of_results(first: Side, second: Side) -> list[Difference]:
    """Return the differences between two results: what is saved in each scenario that both have.

    There is nothing to resample. What the trace leaves open is taken to be the same on both sides, so that
    the change of the lowest, the stated and the highest saving together bound the difference.
    """
    if first.study is None or second.study is None or first.study.rows is None or second.study.rows is None:
        return []
    ours, theirs = first.study.rows, second.study.rows
    found: list[Difference] = []
    for scenario in scenarios(ours):
        others = {entry.metric: entry for entry in entries(theirs, scenario, every=True)}
        for entry in entries(ours, scenario):
            if entry.metric in others:
                found.append(_of_entries(scenario, entry, others[entry.metric]))
    return found


def _of_entries(scenario: str, first: Entry, second: Entry) -> Difference:
    ends = [(first.low, second.low), (first.saved, second.saved), (first.high, second.high)]
    changes = [after - before for before, after in ends if before is not None and after is not None]
    low, high = (min(changes), max(changes)) if len(changes) == len(ends) else (None, None)
    metric = f"{scenario}: {title(first.metric)}"
    return Difference(metric, first.unit, first.saved, second.saved, low, high, None)
