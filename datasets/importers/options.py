"""Import options as a user types them."""

from __future__ import annotations

from tracekit.datasets.importers.sink import ImportOptions, Memslot
from tracekit.errors import UsageError

__all__ = ["parse_options"]

_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_options(
    *,
    mmu: str = "",
    addresses: str = "gpa",
    columns: list[str] | None = None,
    memslots: list[str] | None = None,
    strict: bool = False,
) -> ImportOptions:
    """Return the options; raises UsageError for a malformed column or memslot.

    >>> options = parse_options(columns=["ts_ns=time_us * 1000"], memslots=["0:1G:0x7f0000000000"])
    >>> options.columns, options.memslots[0].size_bytes
    ({'ts_ns': 'time_us * 1000'}, 1073741824)
    """
    mapped: dict[str, str] = {}
    for text in columns or []:
        name, equals, expression = text.partition("=")
        if not equals or not expression.strip():
            raise UsageError(f"{text!r} says no column", hint='--column "ts_ns=time_us*1000"')
        mapped[name.strip()] = expression.strip()
    slots = tuple(_memslot(text) for text in memslots or [])
    return ImportOptions(mmu=mmu, addresses=addresses, columns=mapped, memslots=slots, strict=strict)


def _memslot(text: str) -> Memslot:
    try:
        gpa, size, hva = (_number(part) for part in text.split(":"))
    except ValueError:
        raise UsageError(
            f"{text!r} is no memslot", hint="--memslot 0:1G:0x7f0000000000 (GPA:SIZE:HVA)"
        ) from None
    return Memslot(gpa=gpa, size_bytes=size, hva=hva)


def _number(text: str) -> int:
    unit = _UNITS.get(text[-1:].upper(), 0) if not text.lower().startswith("0x") else 0
    return int(text[:-1]) * unit if unit else int(text, 0)
