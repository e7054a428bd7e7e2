"""The C text handed to bcc: generated constants and argument structures, common.h, and the chosen probes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from tracekit.probes.catalogue import Probe
from tracekit.probes.tracefs import Field, Tracepoint
from tracekit.probes.wire import LOST, VALID, VM_UNKNOWN
from tracekit.trace import schema

__all__ = ["BPF_FOLDER", "Program", "Source", "build", "missing_tracepoints", "needed", "tracepoints_of"]

BPF_FOLDER: Final = Path(__file__).with_name("bpf")

MAX_THREADS: Final = 16384
MAX_PROCESSES: Final = 16384

_ON: Final = re.compile(r"^ON\((\w+), (\w+)\)", re.MULTILINE)
_INTEGERS: Final = {1: "8", 2: "16", 4: "32", 8: "64"}

Lookup: TypeAlias = Callable[[str, str], Tracepoint | None]


@dataclass(frozen=True)
class Program:
    """One BPF program: its C function and the tracepoint (category:event) it is attached to, maybe raw."""

    probe: str
    function: str
    tracepoint: str
    raw: bool


@dataclass(frozen=True)
class Source:
    """The C text and the tracepoint programs in it."""

    text: str
    programs: tuple[Program, ...]


def tracepoints_of(probe: Probe) -> tuple[tuple[str, str], ...]:
    """Return the (category, event) pairs that a probe's C file hooks."""
    return tuple(_ON.findall(_text(probe.name)))


def missing_tracepoints(probe: Probe, lookup: Lookup) -> tuple[str, ...]:
    """Return the tracepoints that a probe cannot do without and this kernel lacks."""
    absent = tuple(f"{c}:{e}" for c, e in tracepoints_of(probe) if lookup(c, e) is None)
    if len(absent) == len(tracepoints_of(probe)):
        return absent
    return tuple(point for point in absent if point not in probe.optional)


def needed(probes: Iterable[Probe], lookup: Lookup) -> tuple[Probe, ...]:
    """Return the probes without those that stand in for a tracepoint which this kernel has."""
    return tuple(
        probe for probe in probes if not probe.instead_of or lookup(*_parts(probe.instead_of)) is None
    )


def build(probes: Iterable[Probe], lookup: Lookup, *, ring_pages: int, defines: dict[str, int]) -> Source:
    """Write the C text for these probes on a kernel whose tracepoints `lookup` knows.

    `ring_pages` is a power of two (4 KiB pages of the ring); `defines` are further constants.
    """
    probes = tuple(probes)
    points: dict[tuple[str, str], Tracepoint] = {}
    programs = []
    for probe in probes:
        for category, event in tracepoints_of(probe):
            if (found := lookup(category, event)) is not None:
                points[category, event] = found
                function = f"on_{probe.name}_{category}__{event}"
                programs.append(Program(probe.name, function, f"{category}:{event}", found.raw))
    constants = {
        "RING_PAGES": ring_pages,
        "MAX_THREADS": MAX_THREADS,
        "MAX_PROCESSES": MAX_PROCESSES,
        "VM_UNKNOWN": VM_UNKNOWN,
        "LOST_REASONS": len(LOST),
        "LOST_RING_FULL": next(index for index, reason in enumerate(LOST) if ":" in reason),
        **{f"LOST_{reason.upper()}": index for index, reason in enumerate(LOST) if ":" not in reason},
        **{f"KIND_{kind.upper()}": code for kind, code in schema.KIND_CODE.items()},
        **{f"VALID_{name.removesuffix('_ns').upper()}": bit for name, bit in VALID.items()},
        **{name: getattr(schema, name) for name in schema.__all__ if name.startswith(("FLAG_", "ACCESS_"))},
        **defines,
    }
    parts = ["#include <linux/types.h>"]
    parts += [f"#define {name} {value}" for name, value in constants.items()]
    parts += [_structure(point) for point in points.values()]
    parts.append(_located("common.h"))
    parts += [f"#define PROBE {probe.name}\n{_located(f'{probe.name}.c')}\n#undef PROBE" for probe in probes]
    return Source("\n".join(parts) + "\n", tuple(programs))


def _parts(tracepoint: str) -> tuple[str, str]:
    category, _, event = tracepoint.partition(":")
    return category, event


def _text(name: str) -> str:
    return (BPF_FOLDER / f"{name}.c").read_text()


def _located(file: str) -> str:
    return f'#line 1 "{file}"\n{(BPF_FOLDER / file).read_text()}'


def _structure(point: Tracepoint) -> str:
    """Return struct CATEGORY__EVENT, every field at the offset of the `format` file, and its HAS_ macros."""
    name = f"{point.category}__{point.event}"
    lines = [f"#define HAVE_{name} 1"]
    if point.raw:
        lines.append(f"#define RAW_{name} 1")
    lines += [f"#define HAS_{name}__{field.name} 1" for field in point.fields]
    lines.append(f"struct {name} {{")
    offset = 0
    for field in point.fields:
        if field.offset > offset:
            lines.append(f"    u8 _before_{field.name}[{field.offset - offset}];")
        lines.append(f"    {_declaration(field)};")
        offset = field.offset + field.size
    lines.append("};")
    lines += [
        f'_Static_assert(__builtin_offsetof(struct {name}, {field.name}) == {field.offset}, "{field.name}");'
        for field in point.fields
    ]
    return "\n".join(lines)


def _declaration(field: Field) -> str:
    bits = _INTEGERS.get(field.size)
    if bits is None or field.offset % field.size:
        return f"u8 {field.name}[{field.size}]"
    return f"{'s' if field.signed else 'u'}{bits} {field.name}"
