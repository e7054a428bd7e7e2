"""What all charts share: the size, the time axis, the byte axis and the order of scenarios."""

from __future__ import annotations

from typing import Any, Final

import altair as alt
import polars as pl

from tracekit.report.units import Scale, scale_for

__all__ = ["HEIGHT", "TIME", "WIDTH", "byte_scale", "least", "most", "seconds", "series"]

WIDTH: Final = 800
HEIGHT: Final = 240
TIME: Final = "time since the start of the trace (s)"
_DASHES: Final = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [4, 2], [10, 4], [3, 1])


def seconds(span_s: float | None = None) -> alt.X:
    """Return the x axis of everything that is drawn over time, from 0 to `span_s` (default: as the data)."""
    scale = alt.Scale(nice=False, zero=False) if span_s is None else alt.Scale(domain=[0, span_s], nice=False)
    return alt.X("time_s:Q", title=TIME, axis=alt.Axis(tickCount=8), scale=scale)


def byte_scale(largest: float) -> Scale:
    """Return the binary unit of an axis that reaches up to `largest` bytes.

    >>> byte_scale(3 << 30)
    Scale(divisor=1073741824, suffix='GiB')
    """
    return scale_for(largest, "bytes")


def most(data: pl.DataFrame, column: str) -> float:
    """Return the largest value of a column; 0 where it has none.

    >>> most(pl.DataFrame({"x": [1, 3, None]}), "x"), most(pl.DataFrame({"x": []}), "x")
    (3.0, 0.0)
    """
    return max((float(value) for value in data[column] if value is not None), default=0.0)


def least(data: pl.DataFrame, column: str) -> float:
    """Return the smallest value of a column; 0 where it has none.

    >>> least(pl.DataFrame({"x": [1, 3, None]}), "x")
    1.0
    """
    return min((float(value) for value in data[column] if value is not None), default=0.0)


def series(names: list[str], field: str = "series", *, ink_first: bool = False) -> dict[str, Any]:
    """Return colour and dash channels that tell `names` apart, in their order and with one legend.

    With `ink_first` the first name is drawn in the text colour, as every baseline is.

    >>> sorted(series(["baseline", "zeroing"], ink_first=True))
    ['color', 'strokeDash']
    """
    legend = alt.Legend(title=None, orient="top", symbolType="stroke", symbolStrokeWidth=2)
    dashes = [_DASHES[i % len(_DASHES)] for i in range(len(names))]
    colours = alt.Scale(domain=names, range="ordinal") if ink_first else alt.Scale(domain=names)
    return {
        "color": alt.Color(f"{field}:N", sort=names, scale=colours, legend=legend),
        "strokeDash": alt.StrokeDash(
            f"{field}:N", sort=names, scale=alt.Scale(domain=names, range=dashes), legend=legend
        ),
    }
