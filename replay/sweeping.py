"""One scenario, many parameter values: a grid, where it starts to pay, and which parameter matters most."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from tracekit.errors import UsageError
from tracekit.replay.ledger import Figure
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

T = TypeVar("T")

_ENDS: Final[tuple[Literal["value", "low", "high"], ...]] = ("value", "low", "high")
Setting = tuple[tuple[str, str, object], ...]
"""All parameters of a scenario. Its name shows six digits: two settings may be called the same."""


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
        result = self.room.result(_distinct(settings), jobs=self.jobs, bootstrap=bootstrap)
        self._insist_on_metric(result.rows["metric"].unique().to_list())
        return result

    def break_even(self, *, grid: int = 33) -> list[BreakEven]:
        """Find for each varied range, with all else as in the scenario, where the saving crosses zero.

        Three answers each: of its value, and of both ends of its interval. Where only the high end is above
        zero, this trace does not say whether it pays.
        """
        return [answer for one in self._parameters() for answer in self._crossings(one, grid)]

    def _crossings(self, parameter: Parameter, grid: int) -> list[BreakEven]:
        known: dict[Setting, tuple[float, float, float]] = {}

        def saved(end: int) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
            def of(values: NDArray[np.float64]) -> NDArray[np.float64]:
                scenarios = self._scenarios([parameter], values[:, None])
                known.update(self._each(self._bounds, [one for one in scenarios if _of(one) not in known]))
                return np.array([known[_of(one)][end] for one in scenarios])

            return of

        found = [replace(break_even(saved(k), parameter, grid=grid), of=end) for k, end in enumerate(_ENDS)]
        # A parameter in whole numbers has fewer settings than the grid has points.
        looked_at = parameter.at(np.linspace(0.0, 1.0, grid))
        different = len(_distinct(self._scenarios([parameter], looked_at[:, None])))
        return [replace(one, grid=different) for one in found]

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
        scenarios = self._scenarios(parameters, rows)
        values = self._each(self._values, scenarios)
        return np.array([values[_of(one)] for one in scenarios])

    def _scenarios(self, parameters: Sequence[Parameter], rows: NDArray[np.float64]) -> list[Scenario]:
        names = [one.name for one in parameters]
        return [with_parameters(self.scenario, dict(zip(names, row, strict=True))) for row in rows.tolist()]

    def _each(
        self, ask: Callable[[Sequence[Scenario]], Iterable[T]], scenarios: Sequence[Scenario]
    ) -> dict[Setting, T]:
        """Return by setting what `ask` says of each scenario, `jobs` at a time."""
        distinct = _distinct(scenarios)
        shares = [share for k in range(self.jobs) if (share := distinct[k :: self.jobs])]
        values: dict[Setting, T] = {}
        with ThreadPoolExecutor(self.jobs) as pool:
            for share, found in zip(shares, pool.map(ask, shares), strict=True):
                values.update(zip(map(_of, share), found, strict=True))
        return values

    def _values(self, scenarios: Sequence[Scenario]) -> Iterator[float]:
        """Yield what each scenario saves."""
        asked = [(self.room.contexts(one), self.room.closed) for one in scenarios]
        for figures in self.room.all_of(asked):
            yield self._figure(figures).saved.value

    def _bounds(self, scenarios: Sequence[Scenario]) -> Iterator[tuple[float, float, float]]:
        """Yield what each scenario saves, and the ends of its interval."""
        for figures in self.room.figures_of([self.room.contexts(one) for one in scenarios], {}):
            saved = self._figure(figures).saved
            yield saved.value, saved.low, saved.high

    def _figure(self, figures: Mapping[str, Figure]) -> Figure:
        self._insist_on_metric(figures)
        return figures[self.metric]

    def _insist_on_metric(self, known: Iterable[str]) -> None:
        names = list(known)
        if self.metric not in names:
            raise UsageError(
                f"this scenario has no metric {self.metric}", hint=f"--metric {nearest(self.metric, names)}"
            )


def _of(scenario: Scenario) -> Setting:
    return tuple((owner, name, value) for owner, of in scenario.params.items() for name, value in of.items())


def _distinct(scenarios: Iterable[Scenario]) -> list[Scenario]:
    """Return each setting once: whole-number parameters make many rows the same scenario."""
    return list({_of(one): one for one in scenarios}.values())
