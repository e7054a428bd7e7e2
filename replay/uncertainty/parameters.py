"""The parameters of a sensitivity analysis: names, ranges, and how a range is walked."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tracekit.errors import FailedError, UsageError

__all__ = ["Evaluate", "Parameter", "Scale", "evaluate_rows", "rows_at"]

Scale = Literal["lin", "log"]

Evaluate = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Takes a matrix with one row per setting and one column per parameter; returns one value per row."""


@dataclass(frozen=True)
class Parameter:
    """One parameter: its range, how the range is walked, and the value it has when nobody varies it.

    `nominal` is the middle of the range on its scale unless given.

    >>> Parameter("lead_ms", 1, 100, "log").nominal_value
    10.0
    """

    name: str
    low: float
    high: float
    scale: Scale = "lin"
    nominal: float | None = None

    def __post_init__(self) -> None:
        """Raise UsageError for a range that can't be walked."""
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise UsageError(f"{self.name}: the range {self.low:g}:{self.high:g} is empty or not finite")
        if self.scale == "log" and self.low <= 0:
            raise UsageError(
                f"{self.name}: a log range must start above 0, not at {self.low:g}",
                hint=f"{self.name}={self.low:g}:{self.high:g}:lin",
            )
        if self.nominal is not None and not self.low <= self.nominal <= self.high:
            raise UsageError(
                f"{self.name}: its own value {self.nominal:g} is outside {self.low:g}:{self.high:g}"
            )

    @property
    def nominal_value(self) -> float:
        """The parameter's own value."""
        return float(self.at(np.array(0.5))) if self.nominal is None else self.nominal

    def at(self, share: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the values at these shares (0 … 1) of the way along the range, on its scale."""
        if self.scale == "log":
            values = np.power(10.0, math.log10(self.low) * (1 - share) + math.log10(self.high) * share)
        else:
            values = self.low * (1 - share) + self.high * share
        return np.clip(values, self.low, self.high)

    def grid(self, count: int) -> NDArray[np.float64]:
        """Return `count` values from low to high, both included exactly."""
        values = self.at(np.linspace(0.0, 1.0, count))
        values[0], values[-1] = self.low, self.high
        return values


def rows_at(parameters: Sequence[Parameter], shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the matrix of settings for a matrix of shares (rows x parameters)."""
    columns = [parameter.at(shares[:, i]) for i, parameter in enumerate(parameters)]
    return np.stack(columns, axis=1) if columns else np.empty((len(shares), 0))


def evaluate_rows(evaluate: Evaluate, rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return one finite value per row, all evaluated in one call.

    Raises FailedError naming the first row that has no finite value.
    """
    values = np.asarray(evaluate(rows), np.float64)
    if values.shape != (len(rows),):
        raise ValueError(f"evaluate gave {values.shape} for {len(rows)} rows")
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise FailedError(f"no finite value at {', '.join(f'{x:g}' for x in rows[bad[0]])}")
    return values
