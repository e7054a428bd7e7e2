"""Runs scenarios over a trace and lays the results out as tidy rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import polars as pl

from tracekit.errors import UsageError
from tracekit.replay.chain import Chain, chain_of
from tracekit.replay.chance import CHANCE, FEWEST_RESAMPLES, chance_rows, window_ends
from tracekit.replay.costs import Profile, load_profile
from tracekit.replay.curves import BASELINE, banded, resident_curve
from tracekit.replay.ledger import Figure, Ledger, widened, with_all
from tracekit.replay.losses import Missing, with_losses
from tracekit.replay.mechanisms import Context, Mechanism, known_mechanisms
from tracekit.replay.parts import Phase, parse_phases, phase_figures, vcpu_figures
from tracekit.replay.pricing import Prices
from tracekit.replay.residency import Residency
from tracekit.replay.result import Result, Row, notes, provenance
from tracekit.replay.sampled import Sample, require_local, sample_of
from tracekit.replay.scenarios import Scenario, parse_scenario
from tracekit.replay.state import Replay, Setting
from tracekit.replay.steps import name_of, rows_of, sets_of
from tracekit.replay.survey import Survey, survey
from tracekit.replay.timeline import Timeline, TraceLike

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Room", "run"]

S = TypeVar("S")
T = TypeVar("T")

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
        given = [scenario.name for scenario in scenarios]
        if twice := [name for name in dict.fromkeys(given) if given.count(name) > 1]:
            raise UsageError(f"a scenario is given twice: {twice[0]}", hint="names must differ")
        if 0 < bootstrap < FEWEST_RESAMPLES:
            raise UsageError(
                f"{bootstrap} resamples are too few for a 95 % interval: {FEWEST_RESAMPLES} are the fewest",
                hint="--bootstrap 1999",
            )
        if bootstrap and self.sample is not None:
            raise UsageError("a bootstrap over time says nothing of which blocks a sample holds")
        shares = [scenarios[k::jobs] for k in range(min(jobs, len(scenarios)))]
        by_share = _each(lambda some: self.rows(some, steps=steps), shares, jobs)
        found = [by_share[k % jobs][k // jobs] for k in range(len(scenarios))]
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

    @cached_property
    def missing(self) -> Missing:
        """What the trace does not hold."""
        return Missing.of(self.trace)

    def context(self, scenario: Scenario, mechanism: Mechanism) -> Context:
        """Return what the mechanism's setup may look at."""
        params = scenario.params[mechanism.name]
        return Context(self.timeline, self.facts, self.profile, params, "point", self.seed)

    def contexts(self, scenario: Scenario) -> dict[str, Context]:
        """Return the contexts of a scenario's mechanisms, in the order of the chain."""
        return {m.name: self.context(scenario, m) for m in self.chain.mechanisms if m in scenario.mechanisms}

    def figures_of(
        self, wanted: Sequence[Mapping[str, Context]], curves: Mapping[int, Sequence[str]]
    ) -> list[dict[str, Figure]]:
        """Return the figures with each of these sets of mechanisms on, under every hypothesis that is left.

        `curves`: by number of a set, the scenarios whose resident curves are to be kept.
        """
        asked = [self._hypotheses(contexts) for contexts in wanted]
        resident: list[Residency] = []
        found = iter(self.all_of([one for some in asked for one in some], resident=resident))
        figures, done = [], 0
        for k, (contexts, some) in enumerate(zip(wanted, asked, strict=True)):
            figures.append(self._widest(contexts, [next(found) for _ in some]))
            for scenario in curves.get(k, ()):
                self._keep(scenario, resident[done : done + len(some)])
            done += len(some)
        return figures

    def _hypotheses(self, contexts: Mapping[str, Context]) -> list[tuple[Mapping[str, Context], bool]]:
        """Return what to replay for a set: contexts, and whether in a closed loop; the point first."""
        ends = [contexts]
        if any(self.known[name].bounded(context) for name, context in contexts.items()):
            for end in ("low", "high"):
                ends.append({name: replace(c, hypothesis=end) for name, c in contexts.items()})
        # Some of the guest's work follows its stalls, some a clock of its own: the truth lies between,
        # whatever else the trace leaves open.
        loops = [self.closed, not self.closed] if contexts else [self.closed]
        return [(one, closed) for closed in loops for one in ends]

    def _widest(
        self, contexts: Mapping[str, Context], found: Sequence[dict[str, Figure]]
    ) -> dict[str, Figure]:
        """Return the figures of the first, with intervals that hold those of all."""
        point, *others = (with_all(one, found) for one in found)
        figures = {name: widened(figure, [other[name] for other in others]) for name, figure in point.items()}
        if any(self.known[name].open_below(context) for name, context in contexts.items()):
            figures = {
                name: replace(figure, saved=figure.saved._replace(low=-np.inf))
                if name.startswith(REFAULTS_MOVE)
                else figure
                for name, figure in figures.items()
            }
        return figures

    def _keep(self, scenario: str, resident: Sequence[Residency]) -> None:
        """Keep the curves of a scenario and of the recorded run, each with what the trace leaves open."""
        earlier, lost = self.facts.earlier_bytes, self.missing.that_matter(moved=True)
        scale = 1.0 if self.sample is None else self.sample.memory_scale
        for name, some in ((BASELINE, self.before), (scenario, resident)):
            mine = [resident_curve(one, self.timeline) for one in some]
            self.curves[name] = banded(name, mine, earlier_bytes=earlier, lost=lost, scale=scale)

    def all_of(
        self,
        asked: Sequence[tuple[Mapping[str, Context], bool]],
        *,
        resident: list[Residency] | None = None,
    ) -> list[dict[str, Figure]]:
        """Replay for each of these contexts, in a closed loop or not; return the figures of each.

        They share their passes over the events. `resident` gets resident memory over time of each.
        """
        settings = []
        for contexts, closed in asked:
            hypothesis = next((context.hypothesis for context in contexts.values()), "point")
            around = self.timeline.mapped_around if hypothesis != "low" else 1
            settings.append(Setting(contexts, self.prices_for(contexts).kernel(hypothesis), closed, around))
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
            if resident is not None:
                resident.append(Residency.of(replay.world))
            found.append(self._figures_of(replay, contexts))
        return found

    def prices_for(self, contexts: Mapping[str, Context]) -> Prices:
        """Return the prices where these are on: a mechanism may say where swapped pages are."""
        for name, context in contexts.items():
            if cost := self.known[name].refault_cost:
                return self.prices.with_swap_in(cost(context), self.facts)
        return self.prices

    def _figures_of(self, replay: Replay, contexts: Mapping[str, Context]) -> dict[str, Figure]:
        before, mechanisms = self.before[0], self.chain.mechanisms
        prices = self.prices_for(contexts)
        ledger = Ledger(replay, before, self.timeline, self.facts, mechanisms, contexts, prices)
        figures = ledger.figures()
        figures |= {**phase_figures(ledger, self.phases), **vcpu_figures(ledger, figures)}
        moved = any(self.known[name].moves_pages for name in contexts)
        figures = with_losses(figures, self.missing, changed=bool(contexts), moved=moved)
        return figures if self.sample is None else self.sample.scaled(figures)

    def chances(self, scenario: Scenario, resamples: int) -> list[dict[str, Any]]:
        """Replay once more, window by window, and bootstrap what the windows save."""
        contexts = self.contexts(scenario)
        mechanism = name_of(list(contexts))
        prices = self.prices_for(contexts)
        costs = prices.kernel("point")
        ends = window_ends(max(self.timeline.span_ns, 1))
        replay = Replay.run(
            self.timeline,
            self.chain,
            contexts,
            costs,
            around=self.timeline.mapped_around,
            closed=self.closed,
            plain=self.plain,
            at=ends,
        )
        return chance_rows(
            scenario.name,
            mechanism,
            replay,
            prices.nominal(),
            resamples=resamples,
            seed=self.seed,
        )

    def rows(self, scenarios: Sequence[Scenario], *, steps: bool = True) -> list[list[Row]]:
        """Return the rows of each scenario; whatever several need is replayed once."""
        numbers: dict[Any, int] = {}
        wanted: list[Mapping[str, Context]] = []
        curves: dict[int, list[str]] = {}
        places: list[tuple[list[str], dict[frozenset[str], int]]] = []
        for scenario in scenarios:
            contexts = self.contexts(scenario)
            if self.sample is not None:
                require_local([self.known[name] for name in contexts], contexts)
            place = {}
            for these in sets_of(list(contexts), steps=steps):
                mine = {name: context for name, context in contexts.items() if name in these}
                key = tuple((name, tuple(context.params.items())) for name, context in mine.items())
                place[these] = numbers.setdefault(key, len(wanted))
                if place[these] == len(wanted):
                    wanted.append(mine)
            places.append((list(contexts), place))
            curves.setdefault(place[frozenset(contexts)], []).append(scenario.name)
        figures = self.figures_of(wanted, curves)
        return [
            rows_of(scenario.name, names, {these: figures[k] for these, k in place.items()})
            for scenario, (names, place) in zip(scenarios, places, strict=True)
        ]


def _each(work: Callable[[S], list[T]], items: Sequence[S], jobs: int) -> list[list[T]]:
    if jobs == 1:
        return [work(item) for item in items]
    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(work, items))
