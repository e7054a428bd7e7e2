"""Numbers for people: three significant digits, the unit that fits, and a word where there is no number."""

from __future__ import annotations

import math
from typing import Final, NamedTuple

__all__ = ["UNKNOWN", "Scale", "human", "human_interval", "human_share", "scale_for"]

UNKNOWN: Final = "unknown"
"""What stands where the trace cannot tell (null): never 0 and never an empty cell."""

UNBOUNDED: Final = "unbounded"


class Scale(NamedTuple):
    """How to show a quantity: divide by `divisor`, write `suffix` behind it."""

    divisor: float
    suffix: str


_BINARY: Final = (
    Scale(1, "B"),
    Scale(1 << 10, "KiB"),
    Scale(1 << 20, "MiB"),
    Scale(1 << 30, "GiB"),
    Scale(1 << 40, "TiB"),
)
_LADDERS: Final[dict[str, tuple[Scale, ...]]] = {
    "ns": (Scale(1, "ns"), Scale(1e3, "us"), Scale(1e6, "ms"), Scale(1e9, "s"), Scale(3.6e12, "h")),
    "bytes": _BINARY,
    "GiB*s": tuple(
        Scale(factor, f"{name} s")
        for factor, name in ((2.0**-20, "KiB"), (2.0**-10, "MiB"), (1, "GiB"), (1024, "TiB"))
    ),
    "fraction": (Scale(0.01, "%"),),
    "count": (Scale(1, ""), Scale(1e6, "M"), Scale(1e9, "G")),
}
_COUNT_FROM: Final = 10_000_000  # counts are shown whole below: people check them against other counters
_SAME_SCALE: Final = 100  # an end that is so much larger than the value gets a unit of its own
_MOST_SHOWN: Final = 100_000  # of any other unit; above it a number would no longer fit its column


def scale_for(value: float, unit: str) -> Scale:
    """Return the scale that shows `value` (in `unit`) with one to four digits before the point.

    `unit` is ns, bytes, GiB*s or fraction; any other unit is a count.

    >>> scale_for(3_400_000, "ns")
    Scale(divisor=1000000.0, suffix='ms')
    """
    ladder = _LADDERS.get(unit)
    size = abs(value)
    if ladder is None:
        ladder = _LADDERS["count"] if size >= _COUNT_FROM else (Scale(1, ""),)
    fitting = [step for step in ladder if size >= step.divisor]
    return fitting[-1] if fitting else ladder[0]


def _decimals(shown: float) -> int:
    """Return how many decimals give three significant digits."""
    return min(6, max(0, 2 - math.floor(math.log10(abs(shown)) + 1e-12))) if shown else 0


def _digits(value: float, scale: Scale, decimals: int | None = None) -> str:
    shown = value / scale.divisor
    if shown == 0:
        return "0"
    if scale.suffix == "" and float(shown).is_integer():
        return f"{shown:,.0f}"
    if abs(shown) >= _MOST_SHOWN:
        return f"{shown:.2e}"
    own = _decimals(shown)
    if decimals is None:
        decimals = own
    elif round(shown, decimals) == 0:
        decimals = own - 2
    text = f"{shown:,.{decimals}f}"
    # What is not zero must never be written as zero.
    return text if round(shown, decimals) else f"{shown:.1g}"


def _unit(scale: Scale) -> str:
    return f" {scale.suffix}" if scale.suffix else ""


def human(value: float | None, unit: str) -> str:
    """Show one value with its unit; null is "unknown", infinity "unbounded".

    >>> human(1_234_000, "ns"), human(65_537, "count"), human(3 << 20, "bytes"), human(None, "ns")
    ('1.23 ms', '65,537', '3.00 MiB', 'unknown')
    """
    if value is None or math.isnan(value):
        return UNKNOWN
    if math.isinf(value):
        return UNBOUNDED
    scale = scale_for(value, unit)
    return f"{_digits(value, scale)}{_unit(scale)}"


def human_interval(value: float | None, low: float | None, high: float | None, unit: str) -> tuple[str, str]:
    """Show a value with its unit, and its interval in the same scale without it, or in another with it.

    An end that is null or infinite is written as `?`: the trace does not bound it.

    >>> human_interval(774e6, 70e6, 1.2e9, "ns")
    ('774 ms', '[70, 1,200]')
    >>> human_interval(5e6, 0, None, "ns")
    ('5.00 ms', '[0, ?]')
    >>> human_interval(60 << 10, -1 << 20, 93 << 20, "bytes")
    ('60.0 KiB', '[-1.0, 93.0] MiB')
    """
    if value is None or math.isnan(value):
        return UNKNOWN, ""
    anchor = value if value and math.isfinite(value) else _first_finite(high, low)
    scale = scale_for(anchor, unit)
    furthest = max((abs(e) for e in (low, high) if e is not None and math.isfinite(e)), default=0.0)
    if furthest > _SAME_SCALE * abs(anchor):
        own = scale_for(furthest, unit)
        return human(value, unit), f"{_ends(low, high, own, furthest)}{_unit(own)}"
    decimals = _decimals(anchor / scale.divisor)
    shown = f"{_digits(value, scale, decimals)}{_unit(scale)}" if math.isfinite(value) else UNBOUNDED
    return shown, _ends(low, high, scale, anchor)


def _ends(low: float | None, high: float | None, scale: Scale, like: float) -> str:
    decimals = _decimals(like / scale.divisor)
    ends = ("?" if e is None or not math.isfinite(e) else _digits(e, scale, decimals) for e in (low, high))
    return f"[{', '.join(ends)}]"


def _first_finite(*values: float | None) -> float:
    return next((v for v in values if v is not None and math.isfinite(v) and v), 0.0)


def human_share(part: float | None, whole: float | None) -> str:
    """Show `part` of `whole` in percent, signed; "" where the share has no meaning.

    >>> human_share(30, 120), human_share(-5, 100), human_share(1, 0)
    ('25 %', '-5 %', '')
    """
    if part is None or not whole or not math.isfinite(part) or not math.isfinite(whole):
        return ""
    share = 100 * part / whole
    return f"{share:.2g} %" if 0 < abs(share) < 1 else f"{share:.0f} %"
