"""The kernel's tracepoints: where tracefs is mounted, and the arguments of each on this kernel."""

from __future__ import annotations

import contextlib
import ctypes
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from tracekit.errors import CapabilityError

__all__ = ["Field", "Tracepoint", "mount_missing", "parse_format", "tracefs_root", "tracepoint"]

# bcc (libbcc) looks in these two, in this order, and opens a tracepoint by the number found there.
_PLACES: Final = (Path("/sys/kernel/debug/tracing"), Path("/sys/kernel/tracing"))
_FIELD: Final = re.compile(
    r"^\s*field:(?P<type>.*?)\s*\b(?P<name>\w+)(?P<array>\[[^\]]*\])?;"
    r"\s*offset:(?P<offset>\d+);\s*size:(?P<size>\d+);\s*signed:(?P<signed>[01]);"
)


@dataclass(frozen=True)
class Field:
    """One argument of a tracepoint: where it lies in the record that a BPF program gets, in bytes."""

    name: str
    offset: int
    size: int
    signed: bool


@dataclass(frozen=True)
class Tracepoint:
    """A tracepoint of one kernel with its arguments in order of their offsets; `raw` ones are of raw.py.

    `function` names the kernel's function whose entry, or with `at_return` return, it is in truth
    (functions.py): its arguments come like raw ones, and then what it returns, `ret`.
    """

    category: str
    event: str
    fields: tuple[Field, ...]
    raw: bool = False
    function: str = ""
    at_return: bool = False


def parse_format(category: str, text: str) -> Tracepoint:
    """Read a tracepoint's `format` file; the common fields (which BPF programs may not read) are left out.

    >>> parse_format("kvm", '''name: kvm_page_fault
    ... \\tfield:unsigned short common_type;\\toffset:0;\\tsize:2;\\tsigned:0;
    ... \\tfield:unsigned long fault_address;\\toffset:8;\\tsize:8;\\tsigned:0;
    ... ''').fields
    (Field(name='fault_address', offset=8, size=8, signed=False),)
    """
    event = ""
    fields = []
    for line in text.splitlines():
        if line.startswith("name:"):
            event = line.partition(":")[2].strip()
        match = _FIELD.match(line)
        if match and not match["name"].startswith("common_"):
            fields.append(
                Field(match["name"], int(match["offset"]), int(match["size"]), match["signed"] == "1")
            )
    return Tracepoint(category, event, tuple(sorted(fields, key=lambda field: field.offset)))


def tracefs_root() -> Path:
    """Return where tracefs can be read.

    Raises CapabilityError where it is not mounted or not readable, with the command that mends it.
    """
    denied: Path | None = None
    for place in _PLACES:
        try:
            if (place / "events").is_dir():
                return place
        except PermissionError:
            denied = place
    if denied is not None:
        raise CapabilityError(
            f"no permission to read {denied} (root, or CAP_DAC_READ_SEARCH)",
            hint="run it as root: sudo tracekit record …",
        )
    raise CapabilityError("tracefs is not mounted", hint="sudo mount -t tracefs tracefs /sys/kernel/tracing")


def mount_missing() -> None:
    """Mount tracefs, and debugfs for KVM's counters, at their usual places where they are not and we may."""
    libc = ctypes.CDLL(None)
    for kind, place, sign in (
        ("tracefs", "/sys/kernel/tracing", "events"),
        ("debugfs", "/sys/kernel/debug", "kvm"),
    ):
        with contextlib.suppress(PermissionError):  # who may not look may not mount either
            if Path(place).is_dir() and not (Path(place) / sign).exists():
                libc.mount(kind.encode(), place.encode(), kind.encode(), 0, None)


@cache
def tracepoint(category: str, event: str) -> Tracepoint | None:
    """Return a tracepoint of the running kernel, or None where it has no such tracepoint."""
    path = tracefs_root() / "events" / category / event / "format"
    try:
        return parse_format(category, path.read_text())
    except FileNotFoundError:
        return None
