"""A figure with its interval: arithmetic that keeps low <= value <= high."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Amount"]


class Amount(NamedTuple):
    """A value and the interval that holds it.

    >>> Amount(5.0, 4.0, 6.0).minus(Amount(1.0, 0.0, 3.0))
    Amount(value=4.0, low=1.0, high=6.0)
    """

    value: float
    low: float
    high: float

    @classmethod
    def exact(cls, value: float) -> Amount:
        """Return an amount without an interval."""
        return cls(float(value), float(value), float(value))

    def plus(self, other: Amount) -> Amount:
        """Return the sum."""
        return Amount(self.value + other.value, self.low + other.low, self.high + other.high)

    def minus(self, other: Amount) -> Amount:
        """Return the difference of two independent amounts."""
        return Amount(self.value - other.value, self.low - other.high, self.high - other.low)

    def times(self, factor: float) -> Amount:
        """Return the amount times a number of either sign."""
        ends = sorted((self.low * factor, self.high * factor))
        return Amount(self.value * factor, ends[0], ends[1])

    def hull(self, other: Amount) -> Amount:
        """Return this value with the smallest interval that holds both."""
        return Amount(
            self.value,
            min(self.low, other.low, other.value),
            max(self.high, other.high, other.value),
        )
