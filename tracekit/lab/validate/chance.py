"""By how much a new run may differ from what is predicted for it, by chance: learned from baselines alone.

Each seed's baseline is recorded more than once; how far these recordings lie apart is pooled over the seeds
of a case. No real run is looked at: what is measured never enters its own interval, nor another's.

A baseline has no start-up work. But each seed is calibrated anew, and its price is what the same work took at
that time: how far these lie apart is how far a run may lie from a price.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from tracekit.lab.validate.check import Check
from tracekit.replay.uncertainty import Scatter, new_run_factor, scatter

__all__ = ["with_chance"]

MANY: Final = 5
"""With fewer degrees of freedom than this, a case borrows from all others that compare the same metric."""

_LIKE: Final = {"startup": "time"}
"""With few calibrations, or one for all seeds, start-up work scatters as the guest's time does (assumed)."""


def with_chance(checks: Sequence[Check]) -> list[Check]:
    """Return the checks, each with the factor that chance leaves open in its metric."""
    groups: dict[tuple[str, str, str], list[Check]] = {}
    metrics: dict[str, list[Check]] = {}
    for check in checks:
        groups.setdefault((check.mechanism, check.case, check.metric), []).append(check)
        metrics.setdefault(check.metric, []).append(check)

    def pooled(check: Check, metric: str, values: Callable[[Check], tuple[float, ...]]) -> Scatter:
        own = scatter(map(values, groups.get((check.mechanism, check.case, metric), [])))
        return own if own.dof >= MANY else scatter(map(values, metrics.get(metric, [])))

    factors: dict[tuple[str, str, str, int], float] = {}
    found = []
    for check in checks:
        key = check.mechanism, check.case, check.metric, len(check.befores)
        if key not in factors:
            by_price = [one.predicted for one in groups[key[:3]]]
            prices = scatter([by_price])
            if check.metric in _LIKE and prices.dof >= MANY and len(set(by_price)) > 1:
                factors[key] = new_run_factor(prices, prices, 1)
            else:
                runs = pooled(check, _LIKE.get(check.metric, check.metric), lambda one: one.befores)
                predictions = pooled(check, check.metric, lambda one: one.predictions)
                factors[key] = new_run_factor(runs, predictions, len(check.befores))
        factor = factors[key]
        found.append(replace(check, factor=None if math.isinf(factor) else factor))
    return found
