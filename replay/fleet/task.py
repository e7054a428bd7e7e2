"""What a worker does: one trace through all scenarios that are not done yet, then one file is replaced."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracekit.errors import DamagedError, TracekitError
from tracekit.replay.fleet.places import Place, local_copy
from tracekit.replay.fleet.store import Part, Store
from tracekit.trace.fingerprint import fingerprint

if TYPE_CHECKING:
    from tracekit.replay.costs import Profile
    from tracekit.replay.scenarios import Scenario

__all__ = ["Outcome", "Question", "replay_trace"]


@dataclass(frozen=True)
class Question:
    """What every trace is asked: scenarios, cost profile, seed, and whether time is closed-loop."""

    scenarios: tuple[Scenario, ...]
    profile: Profile
    seed: int = 0
    closed_loop: bool = True

    @property
    def terms(self) -> str:
        """The content hash of what all scenarios share: different terms don't belong together."""
        return _hash(
            {
                "costs": {name: [c.ns, c.low, c.high] for name, c in self.profile.costs.items()},
                "seed": self.seed,
                "closed_loop": self.closed_loop,
                "tracekit": version("tracekit"),
            }
        )

    def pair(self, trace: str, scenario: Scenario) -> str:
        """Return the content hash of a trace (its fingerprint) with a scenario: equal means done already."""
        return _hash(
            {
                "trace": trace,
                "terms": self.terms,
                "scenario": scenario.name,
                "mechanisms": [m.name for m in scenario.mechanisms],
                "params": {name: dict(values) for name, values in scenario.params.items()},
            }
        )


def _hash(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Outcome:
    """What became of one trace: `replayed` scenarios, `kept` ones from an earlier run, or an `error`."""

    place: Place
    replayed: int = 0
    kept: int = 0
    events: int = 0
    seconds: float = 0.0
    error: str = ""


def replay_trace(place: Place, question: Question, results: str) -> Outcome:
    """Replay one trace and keep the results; never raises for a trace that is bad.

    The trace's file in the store is replaced as a whole, so running a task twice (a worker was killed)
    leaves what running it once leaves.
    """
    started = time.perf_counter()
    try:
        with local_copy(place.url) as trace:
            outcome = _replay(trace, place, question, Store(results))
    except TracekitError as error:
        return Outcome(place, seconds=time.perf_counter() - started, error=error.message)
    except Exception as error:  # a worker must survive whatever a trace holds
        return Outcome(place, seconds=time.perf_counter() - started, error=f"{type(error).__name__}: {error}")
    return Outcome(**{**vars(outcome), "seconds": time.perf_counter() - started})


def _replay(trace: Path, place: Place, question: Question, store: Store) -> Outcome:
    from tracekit.replay.running import run
    from tracekit.trace import open_trace

    mark, terms = fingerprint(trace), question.terms
    pairs = {scenario.name: question.pair(mark, scenario) for scenario in question.scenarios}
    kept = store.read(place).still_true(mark, terms, pairs)
    missing = [scenario for scenario in question.scenarios if pairs[scenario.name] not in kept.pairs]
    opened = open_trace(trace)
    if not missing:
        return Outcome(place, kept=len(pairs), events=opened.rows)
    if not opened.rows:
        raise DamagedError("it holds no events")
    result = run(
        opened, missing, profile=question.profile, seed=question.seed, closed_loop=question.closed_loop
    )
    store.write(place, kept.with_new(Part.of(place.name, mark, terms, result, pairs)))
    return Outcome(place, replayed=len(missing), kept=len(pairs) - len(missing), events=opened.rows)


def summarised(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return what a fleet run did, in figures."""
    return {
        "traces": len(outcomes),
        "replayed": sum(one.replayed for one in outcomes),
        "kept": sum(one.kept for one in outcomes),
        "events": sum(one.events for one in outcomes),
        "failed": [
            {"trace": one.place.name, "url": one.place.url, "error": one.error}
            for one in outcomes
            if one.error
        ],
    }
