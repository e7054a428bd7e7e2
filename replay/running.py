"""Runs scenarios over a trace and lays the results out as tidy rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import polars as pl

from tracekit.errors import UsageError
from tracekit.replay.chain import Chain, chain_of
from tracekit.replay.chance import CHANCE, chance_rows, window_ends
from tracekit.replay.costs import Profile, load_profile
from tracekit.replay.curves import BASELINE, banded, resident_curve
from tracekit.replay.ledger import Figure, Ledger, unit_of, widened
from tracekit.replay.losses import with_losses
from tracekit.replay.mechanisms import Context, Mechanism, known_mechanisms
from tracekit.replay.parts import Phase, parse_phases, phase_figures, vcpu_figures
from tracekit.replay.pricing import Prices
from tracekit.replay.residency import Residency
from tracekit.replay.result import Result, Row, notes, provenance
from tracekit.replay.sampled import Sample, require_local, sample_of
from tracekit.replay.scenarios import Scenario, parse_scenario
from tracekit.replay.state import Replay, Setting
from tracekit.replay.survey import Survey, survey
from tracekit.replay.timeline import Timeline, TraceLike

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Room", "run"]

T = TypeVar("T")

NONE, ALL = "none", "all"
"""The names in the `mechanism` column for the baseline and for a whole combination."""

WITHOUT = "without "
"""Before a mechanism's name in that column: what the combination would lose without it."""

REFAULTS_MOVE = ("faults", "exits", "refaults", "stall", "critical_path", "host_cpu")
"""Metrics (their beginnings) that have no bound where the refaults have none."""


def run(
    trace: TraceLike,
    scenarios: Iterable[str | Scenario],
    *,
    profile: str | Path | Profile | None = None,
    seed: int = 0,
    mechanisms: Sequence[Mechanism] = (),
    closed_loop: bool = True,
    plain: bool | None = None,
    jobs: int = 1,
    phases: Iterable[str] = (),
    bootstrap: int = 0,
) -> Result:
    """Replay a trace through scenarios; return tidy rows and where they come from.

    `scenarios`: lines such as `hot_hint,policy=oracle,lead_ms=5` or `zeroing+hot_hint`, or `Scenario`s.
    `profile`: a cost profile (name, TOML file, or loaded). `mechanisms`: your own, usable by name.
    `closed_loop=False` keeps every event at its recorded time. `plain=True` runs uncompiled. `jobs`
    scenarios run at the same time (threads; the rows are the same for any number). `phases`: stretches of
    the trace that get rows of their own, `boot=0:ready` (`tracekit.replay.parts.parse_phases`). `bootstrap`:
    resamples for confidence intervals in columns of their own (`tracekit.replay.chance`); 0 = none.

    Raises UsageError for an unknown scenario or parameter, FailedError for a trace that can't be replayed.
    """
    chosen = [parse_scenario(s, mechanisms) if isinstance(s, str) else s for s in scenarios]
    if not chosen:
        raise UsageError("no scenario given", hint="--scenario zeroing")
    names = [scenario.name for scenario in chosen]
    if len(set(names)) != len(names):
        raise UsageError("a scenario is given twice; names must differ")
    room = Room.of(
        trace,
        {m.name: m for s in chosen for m in s.mechanisms}.values(),
        profile=profile,
        seed=seed,
        closed_loop=closed_loop,
        plain=plain,
        phases=phases,
    )
    return room.result(chosen, jobs=jobs, bootstrap=bootstrap)


@dataclass(frozen=True)
class Room:
    """What all scenarios over one trace share: its events as kernels read them, prices, the kernel."""

    trace: TraceLike
    timeline: Timeline
    facts: Survey
    profile: Profile
    prices: Prices
    chain: Chain
    seed: int
    closed: bool
    plain: bool | None
    sample: Sample | None = None
    phases: Sequence[Phase] = ()
    curves: dict[str, pl.DataFrame] = field(default_factory=dict)
    before: list[Residency] = field(default_factory=list)
    """Resident memory of the recorded run, once a pass has found it."""

    @classmethod
    def of(
        cls,
        trace: TraceLike,
        mechanisms: Iterable[Mechanism] = (),
        *,
        profile: str | Path | Profile | None = None,
        seed: int = 0,
        closed_loop: bool = True,
        plain: bool | None = None,
        phases: Iterable[str] = (),
    ) -> Room:
        """Read a trace for replaying; `mechanisms` are those that scenarios use beside the known ones.

        Raises UsageError for a phase that the trace does not have.
        """
        profile = profile if isinstance(profile, Profile) else load_profile(profile)
        timeline = Timeline(trace)
        facts = survey(timeline)
        # One kernel holds every mechanism: whatever is on, it is compiled once and then found on disk.
        chain = chain_of({**known_mechanisms(), **{m.name: m for m in mechanisms}}.values())
        prices = Prices.of(facts, profile)
        parts = parse_phases(phases, trace, timeline.start_ns, timeline.span_ns)
        sample = sample_of(timeline)
        return cls(trace, timeline, facts, profile, prices, chain, seed, closed_loop, plain, sample, parts)

    def result(
        self, scenarios: Sequence[Scenario], *, jobs: int = 1, bootstrap: int = 0, steps: bool = True
    ) -> Result:
        """Replay scenarios, `jobs` at the same time; rows stand in the order of the scenarios.

        Without `steps` a combination has rows as a whole only, for a share of the time. `bootstrap` resamples
        give the rows the columns of `tracekit.replay.chance`.
        """
        if bootstrap and self.sample is not None:
            raise UsageError("a bootstrap over time says nothing of which blocks a sample holds")
        found = _each(lambda one: self.rows(one, steps=steps), scenarios, jobs)
        chances = _each(lambda one: self.chances(one, bootstrap), scenarios if bootstrap else [], jobs)
        names = [BASELINE, *(scenario.name for scenario in scenarios)]
        curves = [self.curves[name] for name in names if name in self.curves]
        about = provenance(self.trace, self.timeline, self.facts, scenarios, self.profile, self.seed)
        if self.sample is not None:
            about["sampling"] = self.sample.about()
            about["notes"].append(self.sample.note())
        result = Result.of([row for rows in found for row in rows], about, curves)
        if not bootstrap:
            return result
        columns = pl.DataFrame([row for rows in chances for row in rows], schema=CHANCE)
        keys = ["scenario", "mechanism", "metric"]
        return replace(result, rows=result.rows.join(columns, on=keys, how="left", maintain_order="left"))

    def notes(self) -> list[str]:
        """Return what a reader of any figure must know about this trace."""
        own = [] if self.sample is None else [self.sample.note()]
        return [*notes(self.trace, self.timeline, self.facts), *own]

    @property
    def known(self) -> Mapping[str, Mechanism]:
        """Return the mechanisms of the chain by name."""
        return {m.name: m for m in self.chain.mechanisms}

    def context(self, scenario: Scenario, mechanism: Mechanism) -> Context:
        """Return what the mechanism's setup may look at."""
        params = scenario.params[mechanism.name]
        return Context(self.timeline, self.facts, self.profile, params, "point", self.seed)

    def figures(self, contexts: Mapping[str, Context], *, curve: str = "") -> dict[str, Figure]:
        """Return the figures with these mechanisms on, under every hypothesis that the trace leaves.

        `curve` names the scenario whose resident curves are to be kept.
        """
        kept: list[tuple[pl.DataFrame, pl.DataFrame]] = []
        asked = [(contexts, self.closed)]
        if any(self.known[name].bounded(context) for name, context in contexts.items()):
            for end in ("low", "high"):
                assumed = {name: replace(c, hypothesis=end) for name, c in contexts.items()}
                asked.append((assumed, self.closed))
        if contexts:
            # Some of the guest's work follows its stalls, some a clock of its own: the truth lies between.
            asked.append((contexts, not self.closed))
        point, *others = self.all_of(asked, curves=kept if curve else None)
        if kept:
            self._keep(curve, kept)
        figures = {
            name: widened(figure, [other[name] for other in others if name in other])
            for name, figure in point.items()
        }
        if any(self.known[name].open_below(context) for name, context in contexts.items()):
            figures = {
                name: replace(figure, saved=figure.saved._replace(low=-np.inf))
                if name.startswith(REFAULTS_MOVE)
                else figure
                for name, figure in figures.items()
            }
        return figures

    def _keep(self, scenario: str, curves: Sequence[tuple[pl.DataFrame, pl.DataFrame]]) -> None:
        """Keep the curves of a scenario and of the recorded run, each with what the trace leaves open."""
        earlier, lost = self.facts.earlier_bytes, self.timeline.trace.lost
        scale = 1.0 if self.sample is None else self.sample.memory_scale
        for name, mine in zip((BASELINE, scenario), zip(*curves, strict=True), strict=True):
            self.curves[name] = banded(name, mine, earlier_bytes=earlier, lost=lost, scale=scale)

    def all_of(
        self,
        asked: Sequence[tuple[Mapping[str, Context], bool]],
        *,
        curves: list[tuple[pl.DataFrame, pl.DataFrame]] | None = None,
    ) -> list[dict[str, Figure]]:
        """Replay for each of these contexts, in a closed loop or not; return the figures of each.

        They share their passes over the events. `curves` gets resident memory over time of each, as recorded
        and as replayed.
        """
        settings = []
        for contexts, closed in asked:
            hypothesis = next((context.hypothesis for context in contexts.values()), "point")
            around = self.timeline.mapped_around if hypothesis != "low" else 1
            settings.append(Setting(contexts, self.prices.kernel(hypothesis), closed, around))
        first = not self.before
        if first:
            # The recorded run is a replay with nothing on; it shares the first pass.
            settings.insert(0, Setting({}, self.prices.kernel("point")))
        ends = [t for phase in self.phases for t in (phase.start_ns, phase.end_ns)]
        replays = iter(Replay.run_all(self.timeline, self.chain, settings, plain=self.plain, at=ends))
        if first:
            self.before.append(Residency.of(next(replays).world))
        found = []
        for (contexts, _), replay in zip(asked, replays, strict=True):
            if curves is not None:
                both = self.before[0], Residency.of(replay.world)
                curves.append(
                    (resident_curve(both[0], self.timeline), resident_curve(both[1], self.timeline))
                )
            found.append(self._figures_of(replay, contexts))
        return found

    def _figures_of(self, replay: Replay, contexts: Mapping[str, Context]) -> dict[str, Figure]:
        before, mechanisms = self.before[0], self.chain.mechanisms
        ledger = Ledger(replay, before, self.timeline, self.facts, mechanisms, contexts, self.prices)
        figures = ledger.figures()
        figures |= {**phase_figures(ledger, self.phases), **vcpu_figures(ledger, figures)}
        figures = with_losses(figures, self.timeline.trace.lost, changed=bool(contexts))
        return figures if self.sample is None else self.sample.scaled(figures)

    def chances(self, scenario: Scenario, resamples: int) -> list[dict[str, Any]]:
        """Replay once more, window by window, and bootstrap what the windows save."""
        contexts = {m.name: self.context(scenario, m) for m in scenario.mechanisms}
        mechanism = ALL if len(contexts) > 1 else next(iter(contexts), NONE)
        costs = self.prices.kernel("point")
        ends = window_ends(max(self.timeline.span_ns, 1))
        replay = Replay.run(
            self.timeline, self.chain, contexts, costs, closed=self.closed, plain=self.plain, at=ends
        )
        return chance_rows(
            scenario.name,
            mechanism,
            replay.stands,
            self.prices.nominal(),
            resamples=resamples,
            seed=self.seed,
        )

    def rows(self, scenario: Scenario, *, steps: bool = True) -> list[Row]:
        """Return the rows of a scenario: of its one mechanism; or of all, each step, without each."""
        chosen = [m for m in self.chain.mechanisms if m in scenario.mechanisms]
        contexts = {m.name: self.context(scenario, m) for m in chosen}
        if self.sample is not None:
            require_local(chosen, contexts)
        whole = self.figures(contexts, curve=scenario.name)
        if len(chosen) <= 1:
            return _rows(scenario.name, chosen[0].name if chosen else NONE, whole)
        rows = _rows(scenario.name, ALL, whole)
        if not steps:
            return rows
        every = frozenset(contexts)
        known: dict[frozenset[str], Mapping[str, Figure]] = {frozenset(): {}, every: whole}

        def with_these(names: Iterable[str]) -> Mapping[str, Figure]:
            these = frozenset(names)
            if these not in known:
                known[these] = self.figures({m.name: contexts[m.name] for m in chosen if m.name in these})
            return known[these]

        names = [m.name for m in chosen]
        for k, name in enumerate(names):
            rows += _rows(scenario.name, name, _step(with_these(names[:k]), with_these(names[: k + 1])))
        for name in names:
            rows += _rows(scenario.name, f"{WITHOUT}{name}", _step(with_these(every - {name}), whole))
        return rows


def _each(work: Callable[[Scenario], list[T]], scenarios: Sequence[Scenario], jobs: int) -> list[list[T]]:
    if jobs == 1:
        return [work(scenario) for scenario in scenarios]
    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(work, scenarios))


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
    return float(value) + 0.0 if np.isfinite(value) else None
