"""Pictures of one line for the terminal: sparklines and bars, as plain strings of a fixed width."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

__all__ = ["bar", "sparkline"]

_LEVELS: Final = " ▁▂▃▄▅▆▇█"
_LEVELS_ASCII: Final = " .:-=+*#@"
_EIGHTHS: Final = " ▏▎▍▌▋▊▉█"


def _resample(values: Sequence[float | None], width: int) -> list[float]:
    """Return at most `width` values, each the largest of its slice: a short peak must stay visible."""
    count = len(values)
    slices = min(width, count)
    picked = []
    for i in range(slices):
        part = [
            v
            for v in values[i * count // slices : (i + 1) * count // slices]
            if v is not None and math.isfinite(v)
        ]
        picked.append(max(part, default=math.nan))
    return picked


def sparkline(
    values: Sequence[float | None],
    *,
    width: int = 40,
    top: float | None = None,
    ascii_only: bool = False,
) -> str:
    """Draw values as a line of blocks from 0 to `top` (default: the largest); unknown values are gaps.

    Any nonzero value shows at least the lowest block. Returns at most `width` characters.

    >>> sparkline([0, 1, 2, 4, 8, None, 8])
    ' ▁▂▄█ █'
    >>> sparkline([])
    ''
    """
    levels = _LEVELS_ASCII if ascii_only else _LEVELS
    shown = _resample(values, width)
    ceiling = top if top is not None else max((v for v in shown if not math.isnan(v)), default=0.0)
    if ceiling <= 0:
        return levels[0] * len(shown)
    steps = len(levels) - 1
    return "".join(
        levels[0]
        if math.isnan(v) or v <= 0
        else levels[max(1, min(steps, round(min(v, ceiling) / ceiling * steps)))]
        for v in shown
    )


def bar(value: float | None, top: float, *, width: int = 20, ascii_only: bool = False) -> str:
    """Draw `value` as a bar of up to `width` characters for `top`, padded to `width` with spaces.

    >>> bar(2.5, 10, width=10) + "|"
    '██▌       |'
    >>> bar(2.5, 10, width=10, ascii_only=True) + "|"
    '##        |'
    """
    if value is None or not math.isfinite(value) or value <= 0 or not 0 < top < math.inf:
        return " " * width
    eighths = round(min(value / top, 1.0) * width * 8)
    full, rest = divmod(eighths, 8)
    if ascii_only:
        return ("#" * full).ljust(width)
    drawn = "█" * full + (_EIGHTHS[rest] if rest else "")
    return (drawn or _EIGHTHS[1]).ljust(width)
