"""Where a mechanism starts to pay: the parameter values at which its saving crosses zero."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from tracekit.replay.uncertainty.parameters import Parameter, evaluate_rows

__all__ = ["BreakEven", "Crossing", "break_even"]

_TOLERANCE: Final = 1e-6
"""Share of the range (on its scale) to which a crossing is located."""

_UNBOUNDED: Final = 1e150
"""What stands for an end that the trace does not bound while its crossings are sought."""


@dataclass(frozen=True)
class Crossing:
    """A parameter value at which paying begins (`pays_above`) or ends."""

    at: float
    pays_above: bool


@dataclass(frozen=True)
class BreakEven:
    """Where in [low, high] of `parameter` the saving is above zero; no crossing is an answer too.

    `lowest`, `highest`: the smallest and largest saving on the grid of `grid` different settings (None: not
    bounded). Two crossings closer together than a grid step can stay unseen. `of` says which saving it is:
    its `value`, or the `low` or `high` end of its interval.
    """

    parameter: str
    low: float
    high: float
    grid: int
    crossings: tuple[Crossing, ...]
    lowest: float | None
    highest: float | None
    of: Literal["value", "low", "high"] = "value"

    def sentence(self) -> str:
        """Say in words where it pays; by the low end of its interval surely, by the high end at best."""
        return {"value": "", "low": "surely ", "high": "at best "}[self.of] + self._where()

    def _where(self) -> str:
        where = f"between {self.low:g} and {self.high:g}"
        if not self.crossings:
            at = f"of {self.grid} values of {self.parameter} {where}"
            # An end without a bound is the worst one for `low`, the best one for `high`.
            if self.of == "high" if self.highest is None else self.highest > 0:
                return f"pays{' or is even' if self.lowest == 0 else ''} at each {at}"
            # That a low end is zero does not say that nothing is saved.
            even = self.lowest == 0 and self.of != "low"
            return f"neither saves nor costs at any {at}" if even else f"pays at none {at}"
        if len(self.crossings) == 1:
            (one,) = self.crossings
            return (
                f"pays if {self.parameter} {'>' if one.pays_above else '<'} {self._shown(one.at)} ({where})"
            )
        ends = [self.low] if not self.crossings[0].pays_above else []
        ends += [one.at for one in self.crossings]
        ends += [self.high] if self.crossings[-1].pays_above else []
        spans = [f"{self._shown(a)} … {self._shown(b)}" for a, b in zip(ends[::2], ends[1::2], strict=True)]
        return f"pays if {self.parameter} is in {' or '.join(spans)} ({where})"

    def _shown(self, at: float) -> str:
        """Show a place with three digits, or as many as tell it from others of a narrow range."""
        narrow = abs(at) / (self.high - self.low)
        return f"{at:.{3 + max(0, math.ceil(math.log10(narrow))) if narrow > 0 else 3}g}"


def break_even(
    saving: Callable[[NDArray[np.float64]], NDArray[np.float64]], parameter: Parameter, *, grid: int = 33
) -> BreakEven:
    """Find all parameter values at which `saving` begins or ceases to be above zero.

    `saving` takes an array of parameter values and returns one saving each: first the whole grid in one
    call, then all crossings together, a call per step (scipy.optimize.elementwise.find_root, Chandrupatla's
    method), until each is known to a millionth of the range. A saving that jumps over zero has its crossing
    at the jump, and one that leaves a plateau of zero at its end. A saving may be infinite (not bounded).
    Raises FailedError for one that isn't a number.

    >>> break_even(lambda lead: lead - 3.1, Parameter("lead_ms", 1, 100, "log")).sentence()
    'pays if lead_ms > 3.1 (between 1 and 100)'
    >>> break_even(lambda lead: lead + 1, Parameter("lead_ms", 1, 100)).sentence()
    'pays at each of 33 values of lead_ms between 1 and 100'
    """

    def at_shares(shares: NDArray[np.float64]) -> NDArray[np.float64]:
        flat = parameter.at(np.ravel(shares))
        found = evaluate_rows(
            lambda rows: np.clip(saving(rows[:, 0]), -_UNBOUNDED, _UNBOUNDED), flat[:, None]
        )
        return found.reshape(np.shape(shares))

    shares = np.linspace(0.0, 1.0, grid)
    values = at_shares(shares)
    pays = values > 0
    # One grid point that only touches zero from above doesn't stop it from paying.
    pays[1:-1] |= (values[1:-1] == 0) & pays[:-2] & pays[2:]
    edges = np.flatnonzero(pays[1:] != pays[:-1])
    found = _locate(at_shares, shares[edges], shares[edges + 1])
    crossings = [
        Crossing(at, pays_above=bool(pays[edge + 1]))
        for at, edge in zip(parameter.at(found).tolist(), edges, strict=True)
    ]
    return BreakEven(
        parameter=parameter.name,
        low=parameter.low,
        high=parameter.high,
        grid=grid,
        crossings=tuple(crossings),
        lowest=_bounded(float(values.min())),
        highest=_bounded(float(values.max())),
    )


def _bounded(saving: float) -> float | None:
    return None if abs(saving) >= _UNBOUNDED else saving


def _locate(
    at_shares: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return one crossing per bracket of shares, all refined together."""
    if not len(low):
        return np.empty(0)
    from scipy.optimize import elementwise

    def signed(shares: NDArray[np.float64]) -> NDArray[np.float64]:
        values = at_shares(shares)
        return np.where(values == 0, -np.finfo(np.float64).tiny, values)  # zero doesn't pay

    result = elementwise.find_root(
        signed, (low, high), tolerances={"xatol": _TOLERANCE, "xrtol": 0.0, "fatol": 0.0, "frtol": 0.0}
    )
    return np.asarray(result.x, np.float64)
