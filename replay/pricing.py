"""Prices by fault class: what the trace recorded of other faults of the class, else the cost profile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tracekit.replay import events as ev
from tracekit.replay.amounts import Amount
from tracekit.replay.costs import Profile
from tracekit.replay.survey import Survey

__all__ = ["Prices", "class_name"]

TAKERS = ("ept", "host_minor", "host_major", "ept_major")
SIZES = ("4k", "4k", "2m", "1g")


def class_name(cls: int) -> str:
    """Return the name of a fault class, such as ept_4k or host_minor_2m (a size not known counts as 4k)."""
    return f"{TAKERS[cls // ev.LEVELS]}_{SIZES[cls % ev.LEVELS]}"


def _cost_name(cls: int) -> str:
    name = class_name(cls)
    return name if "major" not in name else name[: -len("4k")] + "4k"


@dataclass(frozen=True)
class Prices:
    """What one fault of each class costs (ns) that has no recorded latency, with its range."""

    amounts: tuple[Amount, ...]
    profile: Profile

    @classmethod
    def of(cls, survey: Survey, profile: Profile) -> Prices:
        """Take each class's mean from the trace where it has latencies, else the profile's cost.

        The range of a mean is the quartiles of its class (and the mean, if that lies outside them): other
        faults, so it is a price like any other. One fault alone has no quartiles: it takes the profile's
        range too. Inside a VMM the guest's faults are the host's: they cost what those do.
        """
        amounts = []
        for one in range(ev.CLASSES):
            mean = survey.mean_ns(one)
            cost = profile.costs[_cost_name(one)]
            if mean is None:
                amounts.append(Amount(cost.ns, cost.low, cost.high))
                continue
            low, high = survey.quartiles_ns(one)
            if survey.measured[one] == 1:
                low, high = min(low, cost.low), max(high, cost.high)
            ns = float(round(mean))
            amounts.append(Amount(ns, min(low, ns), max(high, ns)))
        if survey.inside_vmm:
            host, guest = ev.HOST_MINOR * ev.LEVELS, ev.EPT * ev.LEVELS
            if not survey.measured[host + 1]:  # the host's fault of 4 KiB names no level
                amounts[host + 1] = amounts[host]
            amounts[guest : guest + ev.LEVELS] = amounts[host : host + ev.LEVELS]
        return cls(tuple(amounts), profile)

    def with_swap_in(self, name: str, survey: Survey) -> Prices:
        """Return the prices with this cost for faults on swapped pages, unless the trace has such faults.

        The cost holds the guest's way out and back, which no recorded latency does: that is priced apart.
        """
        if survey.faults[ev.SWAPPED]:
            return self
        cost, way = self.profile.costs[name], self.profile.costs["exit"]
        found = (cost.ns - way.ns, cost.low - way.high, cost.high - way.low)
        amounts = list(self.amounts)
        amounts[ev.SWAPPED] = Amount(*(max(0.0, ns) for ns in found))
        return replace(self, amounts=tuple(amounts))

    def kernel(self, hypothesis: str) -> NDArray[np.int64]:
        """Return what a replay prices with: `nominal`, then a fault on a page that was backed ahead.

        The hypothesis `low` (of what is saved) takes the dearest such fault, `high` the cheapest.
        """
        cost = self.profile.costs["ept_backed_4k"]
        backed = {"low": cost.high, "high": cost.low}.get(hypothesis, cost.ns)
        return np.append(self.nominal(), round(backed))

    def nominal(self) -> NDArray[np.int64]:
        """Return the costs that the kernels use: whole ns by class."""
        return np.array([round(amount.value) for amount in self.amounts], np.int64)

    def named(self, counts: Mapping[str, float]) -> Amount:
        """Price counts of the profile's operations."""
        total = Amount.exact(0)
        for name, n in counts.items():
            cost = self.profile.costs[name]
            total = total.plus(Amount(cost.ns, cost.low, cost.high).times(n))
        return total
