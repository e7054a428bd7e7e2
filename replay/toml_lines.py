"""Where in a TOML file a key stands, and what a misspelt name was meant to be: for clear messages."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

__all__ = ["line_of", "nearest"]


def line_of(text: str, dotted: str, nth: int = 0) -> int:
    """Return the line (1 = first) where a table or key is defined; the nearest table's if it is implicit.

    `nth`: in which of the tables of an array (`[[scenario]]`) that `dotted` begins with, from 0 on.

    >>> line_of('name = "a"\\n[costs.ept_4k]\\nns = 1', "costs.ept_4k.ns")
    3
    >>> line_of('[[s]]\\nn = 1\\n[[s]]\\nn = 2', "s.n", 1)
    4
    """
    wanted = dotted.split(".")
    table: list[str] = []
    best, depth, left = 1, 0, nth
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[\[?\s*([^\]]+?)\s*\]\]?", line):
            table = [part.strip().strip("\"'") for part in header[1].split(".")]
            here = table
            if depth > 0 and left > 0 and table == wanted[:1]:
                depth, left = 0, left - 1
        elif key := re.match(r"\s*([\w\-.\"']+)\s*=", line):
            here = table + [part.strip("\"'") for part in key[1].split(".")]
        else:
            continue
        common = 0
        for a, b in zip(here, wanted, strict=False):
            if a != b:
                break
            common += 1
        if common == len(here) and common > depth:
            best, depth = number, common
    return best


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint that names what was probably meant, or all that there is.

    >>> nearest("zeroin", ["zeroing", "prealloc"])
    'zeroing'
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return close[0] if close else ", ".join(names)
