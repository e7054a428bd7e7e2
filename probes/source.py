"""The C text handed to bcc: generated constants and structures, the headers, and the chosen probes."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from tracekit.probes.catalogue import Probe
from tracekit.probes.functions import FUNCTION, candidates
from tracekit.probes.tracefs import Field, Tracepoint
from tracekit.probes.wire import LOST, VALID, VM_UNKNOWN
from tracekit.trace import schema

__all__ = ["BPF_FOLDER", "Program", "Source", "build", "functions_of", "missing", "needed", "tracepoints_of"]

BPF_FOLDER: Final = Path(__file__).with_name("bpf")

MAX_THREADS: Final = 16384
MAX_PROCESSES: Final = 16384

_ON: Final = re.compile(r"^ON\((\w+), (\w+)\)", re.MULTILINE)
_INTEGERS: Final = {1: "8", 2: "16", 4: "32", 8: "64"}

Lookup: TypeAlias = Callable[[str, str], Tracepoint | None]


@dataclass(frozen=True)
class Program:
    """One BPF program: its C function and the tracepoint (category:event) it is attached to, maybe raw.

    `hook` is empty, or what bcc calls a program at the entry or return of a kernel function.
    """

    probe: str
    function: str
    tracepoint: str
    raw: bool
    hook: str = ""


@dataclass(frozen=True)
class Source:
    """The C text and the tracepoint programs in it."""

    text: str
    programs: tuple[Program, ...]


def tracepoints_of(probe: Probe) -> tuple[tuple[str, str], ...]:
    """Return the (category, event) pairs that a probe's C file hooks."""
    return tuple(_ON.findall(_text(probe.name)))


def missing(probe: Probe, lookup: Lookup) -> tuple[str, ...]:
    """Say what a probe cannot do without and this kernel lacks, for people."""
    hooked = tuple((c, e) for c, e in tracepoints_of(probe) if f"{c}:{e}" not in probe.spare)
    absent = tuple((c, e) for c, e in hooked if lookup(c, e) is None)
    if len(absent) < len(hooked):
        absent = tuple((c, e) for c, e in absent if f"{c}:{e}" not in probe.optional)
    points = [f"{c}:{e}" for c, e in absent if c != FUNCTION]
    functions = tuple(candidates(e) for c, e in absent if c == FUNCTION)
    return (f"tracepoint {', '.join(points)}", *functions) if points else functions


def needed(probes: Iterable[Probe], lookup: Lookup, known: Container[str]) -> tuple[Probe, ...]:
    """Return the probes without those that stand in for one that can run, and without what they stand in for.

    `known` has the names of the constants of this kernel. A stand-in that can't run either is left, to be
    refused with the reason.
    """
    probes = tuple(probes)

    def can_run(name: str) -> bool:
        return any(
            not missing(probe, lookup) and all(one in known for one in probe.constants)
            for probe in probes
            if probe.name == name
        )

    best = [name for probe in probes for name in probe.instead_of[:1]]
    unable = {name for name in dict.fromkeys(best) if not can_run(name)}
    return tuple(
        probe
        for probe in probes
        if probe.name not in unable
        and not any(name not in unable and can_run(name) for name in probe.instead_of)
    )


def functions_of(probe: Probe, lookup: Lookup) -> list[str]:
    """Return which of the kernel's functions a probe hooks."""
    found = (lookup(category, event) for category, event in tracepoints_of(probe))
    return list(dict.fromkeys(point.function for point in found if point is not None and point.function))


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
                hook = found.function and f"{'kretfunc' if found.at_return else 'kfunc'}__{found.function}"
                programs.append(Program(probe.name, function, f"{category}:{event}", found.raw, hook))
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
    parts += [_located("kernel_reads.h"), _located("common.h")]
    parts += [f"#define PROBE {probe.name}\n{_located(f'{probe.name}.c')}\n#undef PROBE" for probe in probes]
    parts += [_at_function(program) for program in programs if program.hook]
    return Source("\n".join(parts) + "\n", tuple(programs))


def _text(name: str) -> str:
    return (BPF_FOLDER / f"{name}.c").read_text()


def _located(file: str) -> str:
    return f'#line 1 "{file}"\n{(BPF_FOLDER / file).read_text()}'


def _at_function(program: Program) -> str:
    """Return the program by the name that tells bcc where it belongs; the kernel wants 0 from such ones."""
    structure = f"struct {program.tracepoint.replace(':', '__')}"
    body = program.function.replace("on_", "do_", 1)
    return f"int {program.hook}({structure} *args) {{ {body}(args); return 0; }}"


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
