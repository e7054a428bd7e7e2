"""Prediction against measurement: one check for each metric of a case, and what many of them say."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tracekit.lab.validate.case import GOALS, UNITS, Case, Prediction, Recording
from tracekit.lab.validate.curves import resident_at
from tracekit.replay import Result

__all__ = ["Check", "Summary", "check_all", "guest_time", "measured", "predicted", "summarise"]


@dataclass(frozen=True)
class Check:
    """One metric of one real run: predicted [low, high] and measured; an end that is None is not bounded.

    The baseline was recorded once or more (`befores`), and each recording predicts the real run
    (`predictions`): `before`, `predicted`, `low` and `high` are means over these. `factor` is by how much a
    new run may differ by chance (`tracekit.lab.validate.chance`; None: unknown). `error` is
    |predicted - measured| / measured (where nothing is left to measure: / baseline).
    """

    mechanism: str
    case: str
    scenario: str
    seed: int
    metric: str
    unit: str
    before: float
    predicted: float
    low: float | None
    high: float | None
    measured: float
    emulated: bool
    bound_only: bool
    befores: tuple[float, ...] = ()
    predictions: tuple[float, ...] = ()
    factor: float | None = None

    @property
    def error(self) -> float | None:
        """Return the point error as a fraction of what was measured; None: there is no point to judge."""
        if self.bound_only:
            return None
        scale = abs(self.measured or self.before)
        if scale:
            return abs(self.predicted - self.measured) / scale
        return 0.0 if self.predicted == 0 else None

    @property
    def held(self) -> bool:
        """Say whether the band holds what was measured: all that the recorded runs are consistent with."""
        return self._within(1.0)

    @property
    def held_new_run(self) -> bool:
        """Say whether what a new run may take holds what was measured; where chance is unknown: the band."""
        return self._within(self.factor or 1.0)

    @property
    def new_run(self) -> tuple[float | None, float | None]:
        """Return what a new run may take: the band with its ends moved by chance."""
        factor = self.factor or 1.0
        low, high = self.low, self.high
        return None if low is None else low / factor, None if high is None else high * factor

    def _within(self, factor: float) -> bool:
        slack = 1e-9 * abs(self.measured)  # sums of floats; nothing else
        return (self.low is None or self.low / factor - slack <= self.measured) and (
            self.high is None or self.measured <= self.high * factor + slack
        )

    def to_json(self) -> dict[str, Any]:
        """Return the check with its verdict, JSON-ready."""
        verdict = {"error": self.error, "held": self.held, "held_new_run": self.held_new_run}
        return {**asdict(self), "new_run": list(self.new_run), **verdict}


@dataclass(frozen=True)
class Summary:
    """One metric of one case over all its runs: medians, the point errors, how often the intervals held.

    `held` counts the runs in the band, `held_new_run` those in what a new run may take. `reached`: the median
    error is within the goal, and the second held in 90 % of the runs or more.
    """

    mechanism: str
    case: str
    metric: str
    unit: str
    runs: int
    before: float
    predicted: float
    low: float | None
    high: float | None
    measured: float
    error: float | None
    worst_error: float | None
    held: int
    factor: float | None
    held_new_run: int
    goal: float
    reached: bool
    emulated: bool

    def to_json(self) -> dict[str, Any]:
        """Return the summary as a JSON-ready document."""
        return asdict(self)


def guest_time(recording: Recording) -> float:
    """Return how long a small guest's phases took, ns: the slowest vCPU's, without its waits for a CPU."""
    return float(
        max(
            sum(phase["elapsed_ns"] - phase["waited_ns"] for phase in vcpu["phases"].values())
            for vcpu in recording.account["vcpus"]
        )
    )


def measured(case: Case, recording: Recording, ledger: Result) -> dict[str, float]:
    """Return the metrics of a recording: `ledger` is its own, with nothing enabled."""
    found = {row["metric"]: row["baseline"] for row in ledger.rows.iter_rows(named=True)}
    found["resident_end"] = resident_at(ledger)[0]
    account = recording.account
    if "vcpus" in account:
        found["time"] = guest_time(recording)
        found["startup"] = account["prealloc_ns"] + account.get("pre_fault_ns", 0)
    found["exits"] = found.get("exits", 0.0) + _calls(recording)
    return {**found, **case.measure(recording, ledger)}


def _calls(recording: Recording) -> float:
    """Return how often a small guest called through a port: exits that no probe sees."""
    calls = recording.account.get("calls", {})
    return float(sum(n for name, n in calls.items() if name.startswith("call_")))


def predicted(result: Result, recording: Recording, baseline: Mapping[str, float]) -> Prediction:
    """Return (value, low, high) of what the scenario leaves of each metric of the recorded baseline.

    `time` is the baseline's own, less what the critical path gains without the start-up work (which is
    compared by itself): the guest's phases begin after that.
    """
    figures = {row["metric"]: row for row in result.rows.iter_rows(named=True)}
    found = {
        name: (
            row["counterfactual"],
            None if row["high"] is None else row["baseline"] - row["high"],
            None if row["low"] is None else row["baseline"] - row["low"],
        )
        for name, row in figures.items()
    }
    value, low, high = found.get("exits", (0.0, 0.0, 0.0))  # an emulated guest has none
    calls = _calls(recording)  # the scenario adds its own, and takes none of these away
    found["exits"] = (
        value + calls,
        None if low is None else low + calls,
        None if high is None else high + calls,
    )
    found["resident_end"] = resident_at(result)
    if "time" in baseline and "critical_path" in figures:
        path, startup = figures["critical_path"], figures.get("startup", {"saved": 0, "low": 0, "high": 0})
        at = {
            end: None if path[end] is None else baseline["time"] - (path[end] - startup[end])
            for end in ("saved", "low", "high")
        }
        # No run takes less than no time, however much a price leaves open.
        value, low, high = (
            None if one is None else max(one, 0.0) for one in (at["saved"], at["high"], at["low"])
        )
        found["time"] = (value or 0.0, low, high)
    return found


def check_all(
    case: Case,
    scenario: str,
    seed: int,
    *,
    predictions: Sequence[Prediction],
    befores: Sequence[Mapping[str, float]],
    after: Mapping[str, float],
) -> list[Check]:
    """Return a check for each metric that the case compares; `KeyError` would be a case's mistake.

    Each recorded baseline gives one of `befores` and of `predictions`.
    """
    found = []
    for metric in case.compare:
        values, lows, highs = zip(*(one[metric] for one in predictions), strict=True)
        measures = tuple(one.get(metric, 0.0) for one in befores)
        found.append(
            Check(
                case.mechanism,
                case.name,
                scenario,
                seed,
                metric,
                UNITS[metric],
                statistics.fmean(measures),
                statistics.fmean(values),
                _mean(lows),
                _mean(highs),
                after[metric],
                case.emulated and UNITS[metric] == "ns",
                case.bound_only,
                measures,
                tuple(values),
            )
        )
    return found


def summarise(checks: Sequence[Check]) -> list[Summary]:
    """Return one summary for each metric of each case, in the order of the checks."""
    groups: dict[tuple[str, str, str], list[Check]] = {}
    for check in checks:
        groups.setdefault((check.mechanism, check.case, check.metric), []).append(check)
    return [_summary(group) for group in groups.values()]


def _summary(group: Sequence[Check]) -> Summary:
    first = group[0]
    errors = [math.inf if one.error is None else one.error for one in group]
    error, worst = statistics.median(errors), max(errors)
    held = sum(one.held for one in group)
    factors = [one.factor for one in group if one.factor is not None]
    held_new_run = sum(one.held_new_run for one in group)
    goal = GOALS[first.metric]
    exact = first.bound_only or error <= goal
    return Summary(
        first.mechanism,
        first.case,
        first.metric,
        first.unit,
        len(group),
        statistics.median(one.before for one in group),
        statistics.median(one.predicted for one in group),
        _median([one.low for one in group]),
        _median([one.high for one in group]),
        statistics.median(one.measured for one in group),
        None if math.isinf(error) else error,
        None if math.isinf(worst) else worst,
        held,
        statistics.median(factors) if factors else None,
        held_new_run,
        goal,
        exact and held_new_run >= 0.9 * len(group),
        first.emulated,
    )


def _mean(ends: Sequence[float | None]) -> float | None:
    known = [end for end in ends if end is not None]
    return statistics.fmean(known) if len(known) == len(ends) else None


def _median(ends: Sequence[float | None]) -> float | None:
    known = [end for end in ends if end is not None]
    return statistics.median(known) if len(known) == len(ends) else None
