"""Provenance first: what was the same on both sides, what differs, and what forbids a comparison."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from tracekit.report.comparison.sides import Side
from tracekit.report.text import plain
from tracekit.trace import Trace

__all__ = ["Fact", "facts_of"]

# Fact -> why the sides cannot be compared where it differs; "" = only said.
_OF_RECORDINGS: Final[dict[str, str]] = {
    "source": "one was measured, the other not",
    "address kind": "their gfns are not of the same kind",
    "MMU mode": "a fault is another thing under another MMU mode",
    "CPU": "times of another CPU are no times of this one",
    "guest page": "their pages are not of one size",
    "vCPUs": "another number of vCPUs is another guest",
    "sampling": "one saw more of its events than the other",
    "filters": "one saw other events than the other",
    "probes": "one saw events that the other could not see",
    "kernel": "",
    "KVM module": "",
    "CPUs": "",
    "host memory": "",
    "guest command": "",
    "tool": "",
    "events lost": "",
    "runs": "",
}
_OF_RESULTS: Final[dict[str, str]] = {
    "scenarios": "a scenario of one name has other parameters on the other side",
    "trace": "",
    "trace source": "one was measured, the other not",
    "cost profile": "",
    "costs": "",
    "tool": "",
    "seed": "",
}


@dataclass(frozen=True)
class Fact:
    """One fact of provenance: its value on each side, and what it means that they differ.

    `verdict` is same, differs or forbids; `why` says why a difference forbids the comparison.
    """

    name: str
    values: tuple[str, ...]
    verdict: str
    why: str = ""


def facts_of(sides: list[Side]) -> list[Fact]:
    """Return the facts of all sides, those that forbid the comparison first, then those that differ."""
    if sides[0].runs:
        tables, rules = [_recording(side.runs) for side in sides], _OF_RECORDINGS
    else:
        tables, rules = [_result(side) for side in sides], _OF_RESULTS
        rules = {**rules, "scenarios": rules["scenarios"] if _contradict(sides) else ""}
    found = [_fact(name, why, tuple(table[name] for table in tables)) for name, why in rules.items()]
    order = ("forbids", "differs", "same")
    return sorted((f for f in found if any(f.values)), key=lambda fact: order.index(fact.verdict))


def _fact(name: str, why: str, values: tuple[str, ...]) -> Fact:
    if len(set(values)) == 1:
        return Fact(name, values, "same")
    return Fact(name, values, "forbids" if why else "differs", why)


def _recording(runs: list[Trace]) -> dict[str, str]:
    """Return the facts of one side; repeated runs that differ among themselves say so in one value."""
    tables = [_of_trace(run) for run in runs]
    merged = {name: " / ".join(dict.fromkeys(table[name] for table in tables)) for name in tables[0]}
    return merged | {"runs": str(len(runs))}


def _of_trace(trace: Trace) -> dict[str, str]:
    meta, host = trace.meta, trace.meta.host
    guests = meta.vms
    return {
        "source": meta.source,
        "address kind": meta.address_kind,
        "MMU mode": _text(host.get("mmu_mode")),
        "CPU": _text(host.get("cpu")),
        "guest page": _each(guest.get("page_bytes") for guest in guests),
        "vCPUs": _each(guest.get("vcpus") for guest in guests),
        "sampling": _text(meta.sampling),
        "filters": _text({k: v for k, v in meta.filters.items() if k not in {"pid", "pids"}}),
        "probes": _each(sorted(meta.probes.get("active", []))),
        "kernel": _text(host.get("kernel")),
        "KVM module": _text(host.get("kvm_module")),
        "CPUs": _text(host.get("cpus")),
        "host memory": _text(host.get("memory_bytes")),
        "guest command": _each(" ".join(map(str, guest.get("argv") or [])) for guest in guests),
        "tool": f"tracekit {meta.tool_version}",
        "events lost": "unknown" if trace.lost is None else f"{trace.lost:,}",
    }


def _result(side: Side) -> dict[str, str]:
    about = side.study.provenance if side.study else {}
    trace, profile, versions = (_dict(about.get(name)) for name in ("trace", "profile", "versions"))
    return {
        "scenarios": ", ".join(f"{name} {params}" for name, params in sorted(_scenarios(side).items())),
        "trace": _text(trace.get("sha256"))[:16],
        "trace source": _text(trace.get("source")),
        "cost profile": _text(profile.get("name")),
        "costs": _text(profile.get("costs_ns")),
        "tool": f"tracekit {versions['tracekit']}" if "tracekit" in versions else "",
        "seed": _text(about.get("seed")),
    }


def _scenarios(side: Side) -> dict[str, str]:
    """Return the parameters of each scenario by its name."""
    about = side.study.provenance if side.study else {}
    named = about.get("scenarios")
    found = [item for item in named if isinstance(item, dict)] if isinstance(named, list) else []
    return {str(item.get("name")): _text(item.get("params")) for item in found}


def _contradict(sides: list[Side]) -> bool:
    first = _scenarios(sides[0])
    return any(
        first.get(name, params) != params for side in sides[1:] for name, params in _scenarios(side).items()
    )


def _each(values: Iterable[object]) -> str:
    """Return a fact of several VMs, or a list, as one text."""
    return plain(", ".join(str(value) for value in values if value not in (None, "")))


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    if value in (None, "", [], {}):
        return ""
    return plain(value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str))
