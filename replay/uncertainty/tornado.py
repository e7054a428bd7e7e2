"""One parameter at a time: 2 d + 1 evaluations say which parameter moves the answer most."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tracekit.replay.uncertainty.answers import Sensitivity
from tracekit.replay.uncertainty.parameters import Evaluate, Parameter, evaluate_rows

__all__ = ["swing_rows", "tornado"]


def tornado(evaluate: Evaluate, parameters: Sequence[Parameter]) -> list[Sensitivity]:
    """Return each parameter's swing with all others at their own values, the widest first.

    One call of `evaluate` with 2 d + 1 rows. It sees no interactions: where Sobol's total index of a
    parameter is much above its first-order one, the swing tells only part. Raises FailedError for a value
    that isn't finite.

    >>> found = tornado(lambda x: x[:, 0] + 10 * x[:, 1], [Parameter("a", 0, 4), Parameter("b", 0, 1)])
    >>> [(one.parameter, one.value_at_low, one.value, one.value_at_high) for one in found]
    [('b', 2.0, 7.0, 12.0), ('a', 5.0, 7.0, 9.0)]
    """
    nominal = np.array([parameter.nominal_value for parameter in parameters])
    rows = np.tile(nominal, (2 * len(parameters) + 1, 1))
    for i, parameter in enumerate(parameters):
        rows[1 + 2 * i, i] = parameter.low
        rows[2 + 2 * i, i] = parameter.high
    values = evaluate_rows(evaluate, rows)
    swings = [
        Sensitivity(
            parameter.name,
            parameter.low,
            parameter.high,
            value=float(values[0]),
            value_at_low=float(values[1 + 2 * i]),
            value_at_high=float(values[2 + 2 * i]),
        )
        for i, parameter in enumerate(parameters)
    ]
    return sorted(swings, key=lambda one: -one.swing)


def swing_rows(found: Sequence[Sensitivity]) -> list[dict[str, str | float]]:
    """Return the rows that a result file keeps under `swings` and that the tornado chart draws."""
    return [
        {
            "parameter": one.parameter,
            "at_low": f"{one.at_low:g}",
            "at_high": f"{one.at_high:g}",
            "saved": one.value,
            "saved_at_low": one.value_at_low,
            "saved_at_high": one.value_at_high,
        }
        for one in found
    ]
