"""By how much a new run may differ from what is predicted for it, by chance: learned from baselines alone.

Each seed's baseline is recorded more than once; how far these recordings lie apart is pooled over the seeds
of a case. No real run is looked at: what is measured never enters its own interval, nor another's.

Times rest on prices too, and each seed is calibrated anew: by how much more the predictions of seeds differ,
each in units of its baseline, than those of one seed do, is by how much prices drift from hour to hour.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from tracekit.lab.validate.check import Check
from tracekit.replay.uncertainty import UNKNOWN, Scatter, new_run_factor, scatter

__all__ = ["with_chance"]

MANY: Final = 5
"""With fewer degrees of freedom than this, a case borrows from all others that compare the same metric."""

_LIKE: Final = {"startup": "time"}
"""A baseline has no start-up work: that scatters as the guest's time does (assumed)."""


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
            runs = pooled(check, _LIKE.get(check.metric, check.metric), lambda one: one.befores)
            predictions = pooled(check, check.metric, lambda one: one.predictions)
            prices = _prices(groups[key[:3]])
            factors[key] = new_run_factor(runs, predictions, len(check.befores), prices=prices)
        factor = factors[key]
        found.append(replace(check, factor=None if math.isinf(factor) else factor))
    return found


def _prices(seeds: Sequence[Check]) -> Scatter:
    """Return how far the predictions of a case's seeds lie apart, each in units of its baseline."""
    if seeds[0].unit != "ns":
        return UNKNOWN
    found = scatter([[one.predicted / (one.before or 1.0) for one in seeds]])
    return found if found.dof >= MANY else UNKNOWN
