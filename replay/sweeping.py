"""One scenario, many parameter values: a grid, where it starts to pay, and which parameter matters most."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tracekit.errors import UsageError
from tracekit.replay.mechanisms import known_mechanisms
from tracekit.replay.result import Result
from tracekit.replay.running import Room
from tracekit.replay.scenarios import Scenario, read_scenarios, with_parameters
from tracekit.replay.toml_lines import nearest
from tracekit.replay.uncertainty import (
    BreakEven,
    Parameter,
    Sensitivity,
    Share,
    Variation,
    break_even,
    generator,
    points,
    sobol,
    tornado,
)

__all__ = ["Sweep", "scenario_to_vary"]


def scenario_to_vary(text: str, variations: Sequence[Variation], settings: Mapping[str, str]) -> Scenario:
    """Read the scenario of a sweep: one line or a file of one, with `settings`.

    A parameter that must be given may be one that is varied: then its first value stands for it.
    """
    required = {(m.name, p.name) for m in known_mechanisms().values() for p in m.params if p.required}
    names = {name for owner, short in required for name in (short, f"{owner}.{short}")}
    lacking = {one.name: f"{one.values[0]}" for one in variations if one.name in names - settings.keys()}
    try:
        found = read_scenarios([text], settings=settings)
    except UsageError:
        if not lacking:
            raise
        found = read_scenarios([text], settings={**lacking, **settings})
    if len(found) != 1:
        raise UsageError(f"{text} holds {len(found)} scenarios; a sweep varies one", hint="-s NAME")
    return found[0]


@dataclass(frozen=True)
class Sweep:
    """A scenario whose parameters are varied over one trace; `metric` is what answers are about.

    The value of a setting is what the scenario saves of `metric` as a whole. Settings are evaluated `jobs`
    at a time; every answer is the same for any number of jobs, and repeats for the same seed.
    """

    room: Room
    scenario: Scenario
    variations: Sequence[Variation]
    metric: str = "stall"
    jobs: int = 1

    def grid(self, *, bootstrap: int = 0) -> Result:
        """Replay every combination of the values; each is a scenario of its own, named by its values.

        `bootstrap`: resamples for confidence intervals in columns of their own.
        """
        settings = [with_parameters(self.scenario, point) for point in points(self.variations)]
        result = self.room.result(
            list({one.name: one for one in settings}.values()), jobs=self.jobs, bootstrap=bootstrap
        )
        self._insist_on_metric(result.rows["metric"].unique().to_list())
        return result

    def break_even(self, *, grid: int = 33) -> list[BreakEven]:
        """Find for each varied range, with all else as in the scenario, where the saving crosses zero."""
        return [
            break_even(lambda values, one=one: self._saved([one], values[:, None]), one, grid=grid)  # type: ignore[misc]
            for one in self._parameters()
        ]

    def tornado(self) -> list[Sensitivity]:
        """Return how far each range moves the saving by itself, the widest first."""
        parameters = self._parameters()
        return tornado(lambda rows: self._saved(parameters, rows), parameters)

    def outside(self) -> list[str]:
        """Say for which ranges the tornado can't start from the scenario's own value."""
        said = []
        for one in self._parameters():
            now = self._current(one.name)
            if one.nominal is None and isinstance(now, int | float):
                said.append(
                    f"{one.name} = {now:g} of the scenario is outside of the range: {one.nominal_value:g} "
                    "stands for it"
                )
        return said

    def sobol(self, n: int) -> list[Share]:
        """Return each range's share of the saving's variance, from n (d + 2) replays."""
        parameters = self._parameters()
        rng = generator(self.room.seed, "sweep", "sobol")
        return sobol(lambda rows: self._saved(parameters, rows), parameters, n=n, rng=rng)

    def _parameters(self) -> list[Parameter]:
        """Return the ranges; a parameter's own value is the scenario's where that is within the range."""
        found = []
        for variation in self.variations:
            one = variation.parameter
            now = self._current(one.name)
            own = float(now) if isinstance(now, int | float) and one.low <= now <= one.high else None
            found.append(Parameter(one.name, one.low, one.high, one.scale, own))
        return found

    def _current(self, name: str) -> object:
        owner, _, short = name.rpartition(".")
        for mechanism, params in self.scenario.params.items():
            if short in params and owner in ("", mechanism):
                return params[short]
        return None

    def _saved(self, parameters: Sequence[Parameter], rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return what is saved of the metric at each row of parameter values."""
        names = [one.name for one in parameters]
        scenarios = [
            with_parameters(self.scenario, dict(zip(names, row, strict=True))) for row in rows.tolist()
        ]
        # Whole-number parameters make many rows the same scenario: each is replayed once.
        distinct = list({one.name: one for one in scenarios}.values())
        values: dict[str, float] = {}
        with ThreadPoolExecutor(self.jobs) as pool:
            for found in pool.map(self._some, [distinct[k :: self.jobs] for k in range(self.jobs)]):
                values.update(found)
        return np.array([values[one.name] for one in scenarios])

    def _some(self, scenarios: Sequence[Scenario]) -> dict[str, float]:
        """Return what each scenario saves, by name."""
        asked = [
            ({m.name: self.room.context(one, m) for m in one.mechanisms}, self.room.closed)
            for one in scenarios
        ]
        values = {}
        for scenario, figures in zip(scenarios, self.room.all_of(asked), strict=True):
            self._insist_on_metric(figures)
            values[scenario.name] = figures[self.metric].saved.value
        return values

    def _insist_on_metric(self, known: Iterable[str]) -> None:
        names = list(known)
        if self.metric not in names:
            raise UsageError(
                f"this scenario has no metric {self.metric}", hint=f"--metric {nearest(self.metric, names)}"
            )
