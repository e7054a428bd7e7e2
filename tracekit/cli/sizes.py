"""Sizes and times as people type them: 4k, 2M, 1.5G."""

from __future__ import annotations

import typer

__all__ = ["parse_size"]

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_size(text: str | int) -> int:
    """Return the bytes of a size with a binary suffix (k, M, G, T; an optional B or iB after it).

    >>> parse_size("4k"), parse_size("2MiB"), parse_size("1.5G")
    (4096, 2097152, 1610612736)
    """
    if isinstance(text, int):  # an option's default, which typer parses too
        return text
    number = text.strip().upper().removesuffix("B").removesuffix("I")
    unit = number[-1:] if number[-1:].isalpha() else ""
    try:
        size = float(number.removesuffix(unit)) * _UNITS[unit]
    except (KeyError, ValueError):
        raise typer.BadParameter(f"{text!r} is not a size such as 4k, 64M or 2G") from None
    if not 0 <= size < 1 << 63 or size != int(size):
        raise typer.BadParameter(f"{text!r} is not a whole number of bytes")
    return int(size)
