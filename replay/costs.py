"""The cost profile: what operations cost that the trace itself does not hold, each with its source.

A latency recorded in the trace beats the profile, fault by fault; faults without one take the mean of their
class in the trace if it has any, else the profile.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final

from tracekit.errors import UsageError
from tracekit.replay.toml_lines import line_of, nearest

__all__ = ["COSTS", "Cost", "Profile", "load_profile"]

COSTS: Final[Mapping[str, str]] = {
    "exit": "the guest's way out of an MMU fault and back, beside what its latency in a trace holds",
    "cold_touch_4k": "the guest's first touch of a 4 KiB page backed ahead: misses of caches and TLB",
    "ept_4k": "MMU fault of the guest, one 4 KiB page: exit, host allocation and zeroing, mapping, entry",
    "ept_backed_4k": "MMU fault of the guest on memory that the host backed ahead: exit, one entry, re-entry",
    "ept_2m": "the same as ept_4k for one 2 MiB page",
    "ept_1g": "the same for one 1 GiB page",
    "ept_major_4k": "MMU fault of the guest that waits for I/O",
    "host_minor_4k": "fault of a VMM thread on guest memory, 4 KiB, no I/O",
    "host_minor_2m": "the same, 2 MiB",
    "host_minor_1g": "the same, 1 GiB",
    "host_major_4k": "fault of a VMM thread that waits for I/O",
    "guest_zero_4k": "the guest zeroes one 4 KiB page",
    "prefault_4k": "the host backs one 4 KiB page ahead of use",
    "prefault_2m": "the host backs one 2 MiB page ahead of use",
    "prefault_1g": "the host backs one 1 GiB page ahead of use",
    "map_ahead": "KVM maps memory that the host has backed ahead of its use, one entry of any size",
    "worker_wake": "from a hint until the background worker that sleeps has a CPU to begin on it",
    "unmap_4k": "the host takes one mapped 4 KiB page away, with the TLB flush",
    "unmap_2m": "the host takes one mapped 2 MiB page away",
    "hypercall": "one hypercall to the VMM and back",
    "swap_in_zram": "fault of the guest on a 4 KiB page in zram: exit, decompression, mapping, entry",
    "swap_in_nvme": "the same on an NVMe device",
    "swap_in_hdd": "the same on a disk",
    "swap_in_file": "the same in a file of the host",
    "swap_out_zram": "the host evicts one 4 KiB page to zram under a limit, beside unmap_4k",
    "page_out_zram": "the same when it is told to (MADV_PAGEOUT), beside unmap_4k",
    "swap_out_device": "host CPU to write one 4 KiB page to a device or file",
    "epf_inject": "a page-not-present event goes into the guest: exit, queueing, entry",
    "epf_switch": "the guest switches to another thread",
    "epf_ready": "the page-ready interrupt, its handler, and the write that acknowledges it",
    "ksm_scan_4k": "ksmd looks at one 4 KiB page: checksum and comparison",
}
"""Every operation a profile prices, in ns."""


@dataclass(frozen=True)
class Cost:
    """A cost in ns with the range that its sources leave open."""

    ns: float
    low: float
    high: float
    source: str


@dataclass(frozen=True)
class Profile:
    """Named costs; `origin` says where the profile came from (a file, or the name of a shipped one)."""

    name: str
    origin: str
    costs: Mapping[str, Cost]

    def ns(self, name: str) -> float:
        """Return one cost in ns.

        >>> load_profile().ns("ept_4k") > 1000
        True
        """
        return self.costs[name].ns


def load_profile(source: str | Path | None = None) -> Profile:
    """Load a cost profile: a shipped one by name (default `published`), or a TOML file.

    Raises UsageError, with the line, when the file is not there or not a profile: every table
    `[costs.NAME]` holds `ns`, optional `low` and `high` (ns), and `source`. Costs left out come from
    `published`.
    """
    shipped = resources.files("tracekit.replay") / "profiles"
    default = _parse((shipped / "published.toml").read_text(), "published", {})
    if source is None or str(source) == "published":
        return default
    path = Path(source)
    try:
        text = path.read_text()
    except OSError as error:
        raise UsageError(
            f"cannot read the cost profile {path}: {error.strerror}", hint="tracekit calibrate -o FILE"
        ) from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not a TOML file") from None
    return _parse(text, str(path), default.costs)


def _parse(text: str, origin: str, base: Mapping[str, Cost]) -> Profile:
    try:
        raw = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits, endless nesting
        raise UsageError(f"{origin}: {error}") from None
    table = raw.get("costs")
    if not isinstance(table, dict):
        raise UsageError(f"{origin}: a cost profile has tables [costs.NAME], and this has none")
    costs = dict(base)
    for name, entry in table.items():
        line = line_of(text, f"costs.{name}")
        if name not in COSTS:
            raise UsageError(f"{origin}, line {line}: no such cost: {name}", hint=nearest(name, COSTS))
        costs[name] = _cost(entry, f"{origin}, line {line}: costs.{name}")
    if missing := [name for name in COSTS if name not in costs]:
        raise UsageError(f"{origin}: costs missing: {', '.join(missing)}")
    return Profile(str(raw.get("name", Path(origin).stem)), origin, costs)


def _cost(entry: Any, where: str) -> Cost:
    if not isinstance(entry, dict) or "ns" not in entry:
        raise UsageError(f"{where}: needs ns = NUMBER and source = TEXT")
    if unknown := entry.keys() - {"ns", "low", "high", "source", "samples", "unit"}:
        raise UsageError(f"{where}: unknown key {sorted(unknown)[0]}", hint="ns, low, high, source, samples")
    numbers = []
    for key in ("ns", "low", "high"):
        value = entry.get(key, entry["ns"])
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e15:
            raise UsageError(f"{where}: {key} must be a time in ns, 0 or more, not {value!r}")
        numbers.append(float(value))
    ns, low, high = numbers
    if not low <= ns <= high:
        raise UsageError(f"{where}: low <= ns <= high does not hold ({low:g}, {ns:g}, {high:g})")
    source = entry.get("source", "")
    if not isinstance(source, str) or not source:
        raise UsageError(f"{where}: needs a source: where does the number come from?")
    return Cost(ns, low, high, source)
