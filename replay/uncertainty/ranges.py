"""Reads what `tracekit sweep --vary` is given: `NAME=LOW:HIGH[:lin|log][:COUNT]` or `NAME=a,b,c`."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from tracekit.errors import UsageError
from tracekit.replay.uncertainty.parameters import Parameter, Scale

__all__ = ["Variation", "parse_variation", "parse_variations", "points"]

DEFAULT_COUNT: Final = 10
MAX_COUNT: Final = 1_000_000
_HINT: Final = "--vary hot_hint.lead_ms=1:100:log:20 or --vary swap.device=zram,nvme"
_NAME: Final = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
_NUMBER: Final = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)([KMGT]?)", re.ASCII)
_BINARY: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclass(frozen=True)
class Variation:
    """A parameter and the values it is to take, in the order given.

    `values` is a float64 array, or a tuple of words where a list holds anything but numbers. `scale` is
    None for a list.
    """

    name: str
    values: NDArray[np.float64] | tuple[str, ...]
    scale: Scale | None = None

    @property
    def parameter(self) -> Parameter:
        """The range as a parameter for a tornado, Sobol or break-even; UsageError for a list of words."""
        if isinstance(self.values, tuple):
            raise UsageError(
                f"{self.name} takes words, so it has no range",
                hint=f"--set {self.name}={self.values[0]}, and one answer for each",
            )
        return Parameter(self.name, float(self.values.min()), float(self.values.max()), self.scale or "lin")


def parse_variation(text: str) -> Variation:
    """Read one `--vary` argument; a number may end in K, M, G or T (powers of 1024).

    COUNT is 10 unless given and includes both ends; `lin` is the default. Raises UsageError that shows the
    bad character.

    >>> parse_variation("hot_hint.lead_ms=1:100:log:3").values
    array([  1.,  10., 100.])
    >>> parse_variation("swap.device=zram,nvme").values
    ('zram', 'nvme')
    >>> parse_variation("lead_ms=1:1x0:log")
    Traceback (most recent call last):
    ...
    tracekit.errors.UsageError: '1x0' is not a number
      lead_ms=1:1x0:log
                 ^
    """
    name, equals, right = text.partition("=")
    match = _NAME.match(name)
    end = match.end() if match else 0
    if not match or end != len(name):
        what = f"{name[end]!r} can't stand in a parameter's name" if end < len(name) else "a name is missing"
        _refuse(text, end, what)
    start = len(name) + 1
    if not equals or not right:
        _refuse(text, len(text), f"{name} has no values" if equals else "'=' is missing after the name")
    if ":" in right:
        return _range(text, name, right, start)
    return Variation(name, _list(text, right, start))


def parse_variations(texts: Sequence[str]) -> list[Variation]:
    """Read several `--vary` arguments; UsageError when two name the same parameter."""
    found = [parse_variation(text) for text in texts]
    names = [one.name for one in found]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{name} is varied twice", hint=f"--vary {name}=… once, with all its values")
    return found


def points(variations: Sequence[Variation]) -> list[dict[str, float | str]]:
    """Return every combination of the values, the last parameter varying fastest.

    >>> points([parse_variation("a=1,2"), parse_variation("b=x,y")])
    [{'a': 1.0, 'b': 'x'}, {'a': 1.0, 'b': 'y'}, {'a': 2.0, 'b': 'x'}, {'a': 2.0, 'b': 'y'}]
    """
    count = math.prod(len(one.values) for one in variations)
    if count > MAX_COUNT:
        raise UsageError(f"{count:,} combinations are too many", hint="fewer values, or --sobol N")
    columns = [v.values if isinstance(v.values, tuple) else v.values.tolist() for v in variations]
    names = [one.name for one in variations]
    return [dict(zip(names, row, strict=True)) for row in itertools.product(*columns)]


def _range(text: str, name: str, right: str, start: int) -> Variation:
    fields, at = [], start
    for field in right.split(":"):
        fields.append((field, at))
        at += len(field) + 1
    low, high = (_number(text, *field) for field in fields[:2])
    rest = fields[2:]
    scale: Scale = "lin"
    wanted = "lin, log or a count"
    if rest and rest[0][0] in {"lin", "log"}:
        scale = "log" if rest.pop(0)[0] == "log" else "lin"
        wanted = "a count"
    count = DEFAULT_COUNT
    if rest:
        field, at = rest.pop(0)
        if not (field.isascii() and field.isdecimal()):
            _refuse(text, at, f"{field!r} is not {wanted}" if field else f"{wanted} is missing")
        count = int(field)
        if not 2 <= count <= MAX_COUNT:
            _refuse(text, at, f"the count must be 2 to {MAX_COUNT:,}")
    if rest:
        _refuse(text, rest[0][1] - 1, "nothing may follow the count")
    if high <= low:
        _refuse(text, fields[1][1], f"the range ends at {high:g} but starts at {low:g}")
    if scale == "log" and low <= 0:
        _refuse(text, fields[0][1], "a log range must start above 0")
    return Variation(name, Parameter(name, low, high, scale).grid(count), scale)


def _list(text: str, right: str, start: int) -> NDArray[np.float64] | tuple[str, ...]:
    words, at = right.split(","), start
    for word in words:
        if not word.strip():
            _refuse(text, at, "a value is missing")
        at += len(word) + 1
    words = [word.strip() for word in words]
    if not all(_NUMBER.fullmatch(word) for word in words):
        return tuple(words)
    return np.array([_number(text, word, start) for word in words])


def _number(text: str, field: str, at: int) -> float:
    match = _NUMBER.fullmatch(field)
    if match:
        value = float(match[1]) * _BINARY[match[2]]
        if math.isfinite(value):
            return value
        _refuse(text, at, f"{field} is too large")
    if not field:
        _refuse(text, at, "a number is missing")
    good = _NUMBER.match(field)
    _refuse(text, at + (good.end() if good else 0), f"{field!r} is not a number")


def _refuse(text: str, at: int, what: str) -> NoReturn:
    raise UsageError(f"{what}\n  {text}\n  {' ' * at}^", hint=_HINT)
