"""Pictures of one line for the terminal: sparklines and bars, as plain strings of a fixed width."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

__all__ = ["bar", "range_bar", "sparkline"]

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


def range_bar(low: float | None, high: float | None, *, width: int = 20, ascii_only: bool = False) -> str:
    """Draw an interval of shares (0 .. 1): solid up to `low`, which is sure, shaded on to `high`.

    Unknown ends are 0 and 1: nothing is sure, everything is possible. Padded to `width` with spaces.

    >>> range_bar(0.5, 0.8, width=10) + "|"
    '█████░░░  |'
    >>> range_bar(None, None, width=4, ascii_only=True)
    '----'
    """
    sure, possible = ("#", "-") if ascii_only else ("█", "░")
    start = min(max(low, 0.0), 1.0) if low is not None and math.isfinite(low) else 0.0
    end = min(max(high, 0.0), 1.0) if high is not None and math.isfinite(high) else 1.0
    solid = round(start * width)
    return (sure * solid + possible * max(0, round(end * width) - solid)).ljust(width)
