"""Three kinds of not knowing, kept apart: what the trace hides, what chance did, what we assumed.

They answer different questions and don't add up: a longer trace narrows the statistical interval and
leaves the identification band where it was; more accessed-bit samples do the reverse; and neither says
anything about a parameter that somebody chose.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Figure", "Identification", "Sensitivity", "Statistical"]


@dataclass(frozen=True)
class Identification:
    """The band of all values that are consistent with the trace; None = the trace sets no bound there.

    It comes from censoring (accesses to mapped pages are invisible), from open or closed loop, from the
    number of runnable threads; it has no level, because no chance is involved.
    """

    low: float | None
    high: float | None

    def __post_init__(self) -> None:
        _ordered(self.low, self.high)


@dataclass(frozen=True)
class Statistical:
    """A confidence interval: where the mean of many such recordings of the same workload lies.

    One other recording has as much chance of its own: about four of five fall into it, not 95 %.
    `level` is nominal (0.95 = 95 %), `units` the number of independent pieces it rests on (time blocks or
    VMs). Both ends are None where no interval can be stated honestly, and `note` says why.
    """

    low: float | None
    high: float | None
    level: float
    units: int
    note: str = ""

    def __post_init__(self) -> None:
        _ordered(self.low, self.high)


@dataclass(frozen=True)
class Sensitivity:
    """What one parameter alone makes of a value: at its own place, and at both ends of its range."""

    parameter: str
    at_low: float
    at_high: float
    value: float
    value_at_low: float
    value_at_high: float

    @property
    def swing(self) -> float:
        """How far apart the least and the largest of the three are, in the value's unit.

        A best place between the ends counts: both ends may be equally bad.
        """
        three = (self.value_at_low, self.value, self.value_at_high)
        return max(three) - min(three)


@dataclass(frozen=True)
class Figure:
    """A value with its three kinds of uncertainty side by side; there is no way to merge them.

    >>> figure = Figure(5.0, Identification(4.0, None), Statistical(4.8, 5.3, 0.95, units=40))
    >>> sorted(figure.to_json())
    ['identification', 'sensitivity', 'statistical', 'value']
    """

    value: float
    identification: Identification | None = None
    statistical: Statistical | None = None
    sensitivity: tuple[Sensitivity, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain dicts and lists, one key per kind of uncertainty."""
        return {
            "value": self.value,
            "identification": asdict(self.identification) if self.identification else None,
            "statistical": asdict(self.statistical) if self.statistical else None,
            "sensitivity": [asdict(one) for one in self.sensitivity],
        }


def _ordered(low: float | None, high: float | None) -> None:
    """Refuse an interval whose ends are swapped or not numbers: a sign was lost somewhere."""
    if any(end is not None and math.isnan(end) for end in (low, high)):
        raise ValueError("an interval's end is NaN; use None for unknown")
    if low is not None and high is not None and low > high:
        raise ValueError(f"the interval [{low}, {high}] is upside down")
