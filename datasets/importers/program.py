"""Layouts compiled to arrays that the scanner can run: per event its layouts, per layout its steps."""

from __future__ import annotations

import re
from functools import cache
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from tracekit.datasets.importers.layouts import LAYOUTS, Layout, Slot

__all__ = [
    "STEP_ANY",
    "STEP_DECIMAL",
    "STEP_EITHER",
    "STEP_HEX",
    "STEP_REST",
    "STEP_SEARCH",
    "STEP_TEXT",
    "Program",
    "name_hash",
    "program",
]

STEP_TEXT: Final = 0  # these bytes must come; a space stands for one or more
STEP_HEX: Final = 1  # a hexadecimal number, with or without 0x, into a slot
STEP_DECIMAL: Final = 2
STEP_EITHER: Final = 3  # hexadecimal with 0x, else decimal
STEP_ANY: Final = 4  # anything up to a space or the end of the line
STEP_SEARCH: Final = 5  # 1 into a slot if these bytes are in the rest of the line, and the line is done
STEP_REST: Final = 6  # anything up to the end of the line

_FIELD: Final = re.compile(r"\{(\w+)(?::([xdi]))?(?:\?([^}]*))?\}|((?: (?!\*)|[^{} *])+)|( ?\*)")
_NUMBER: Final = {"x": STEP_HEX, "d": STEP_DECIMAL, "i": STEP_EITHER}
_FNV_OFFSET: Final = 0xCBF29CE484222325
FNV_PRIME: Final = 0x100000001B3
FNV_START: Final = _FNV_OFFSET - (1 << 64)
"""FNV-1a (Fowler, Noll, Vo) over an event's name, in wrapping signed 64-bit arithmetic."""


class Program(NamedTuple):
    """Arrays only, as compiled code takes them; `first` arrays have one entry more than what they index."""

    names: npt.NDArray[np.int64]  # hashes of the event names, ascending
    first_layout: npt.NDArray[np.int64]  # by position in `names`
    layout: npt.NDArray[np.int64]  # index in LAYOUTS
    first_step: npt.NDArray[np.int64]  # by position in `layout`
    step: npt.NDArray[np.int64]
    slot: npt.NDArray[np.int64]  # of the step
    text_at: npt.NDArray[np.int64]  # of the step, in `text`
    text_end: npt.NDArray[np.int64]
    text: npt.NDArray[np.uint8]


def name_hash(name: str) -> int:
    """Return the 64-bit FNV-1a hash of a name as a signed number.

    >>> name_hash("")
    -3750763034362895579
    """
    value = _FNV_OFFSET
    for byte in name.encode():
        value = ((value ^ byte) * FNV_PRIME) & (2**64 - 1)
    return value - (1 << 64) if value >> 63 else value


@cache
def program() -> Program:
    """Compile the table of layouts."""
    by_name: dict[int, list[int]] = {}
    for index, layout in enumerate(LAYOUTS):
        by_name.setdefault(name_hash(layout.event), []).append(index)
    names = sorted(by_name)
    order = [index for name in names for index in by_name[name]]
    first_layout = np.cumsum([0, *(len(by_name[name]) for name in names)])
    steps: list[tuple[int, int, int, int]] = []
    first_step = [0]
    text = bytearray()
    for index in order:
        steps += _steps(LAYOUTS[index], text)
        first_step.append(len(steps))
    columns = np.array(steps, np.int64).T
    return Program(
        np.array(names, np.int64),
        first_layout.astype(np.int64),
        np.array(order, np.int64),
        np.array(first_step, np.int64),
        step=np.ascontiguousarray(columns[0]),
        slot=np.ascontiguousarray(columns[1]),
        text_at=np.ascontiguousarray(columns[2]),
        text_end=np.ascontiguousarray(columns[3]),
        text=np.frombuffer(bytes(text), np.uint8),
    )


def _steps(layout: Layout, pool: bytearray) -> list[tuple[int, int, int, int]]:
    steps = []
    for name, number, search, text, star in _FIELD.findall(layout.text):
        at = len(pool)
        slot = 0
        if star:
            step = STEP_REST
        elif text:
            step = STEP_TEXT
            pool += text.encode()
        elif search:
            step, slot = STEP_SEARCH, Slot[name.upper()]
            pool += search.encode()
        elif number:
            step, slot = _NUMBER[number], Slot[name.upper()]
        else:
            step = STEP_ANY
        steps.append((step, int(slot), at, len(pool)))
    return steps
