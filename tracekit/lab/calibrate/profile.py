"""A host's cost profile: medians and spreads of the samples, in the TOML form that replay loads."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from tracekit.errors import CapabilityError, FailedError, UsageError
from tracekit.lab.calibrate.fit import Fit, best_fit
from tracekit.lab.calibrate.measure import RECIPES, ZEROING, measure_costs, measure_zeroing
from tracekit.lab.calibrate.recorded import RECORDED, measure_recorded
from tracekit.lab.calibrate.swapping import SWAPPING, measure_swap_in, measure_swap_out
from tracekit.lab.calibrate.system import SYSTEM, measure_system
from tracekit.replay.costs import COSTS

__all__ = ["SIZES", "Calibration", "Spread", "calibrate"]

SIZES: Final = tuple(mib << 20 for mib in (32, 64, 128, 256, 512, 1024, 2048))
"""Memory sizes of the zeroing chart, in bytes."""


_BY_EXITS: Final[dict[str, tuple[str, int, str]]] = {
    "epf_inject": ("exit", 1, "as exit: the event goes into the guest where it comes back; no queueing"),
    "epf_ready": ("exit", 2, "as exit, twice: an interrupt, and the write that acknowledges it; no handler"),
}
"""What no run shows alone is counted in the guest's ways out and back: of which cost, how many, how."""

_RECIPES: Final = {
    **RECIPES,
    **RECORDED,
    **SWAPPING,
    **SYSTEM,
    **{name: recipe for name, (_, _, recipe) in _BY_EXITS.items()},
}
_SLOW_ROUNDS: Final = 9
"""Most rounds of what is slow to set up (recording, swap)."""


@dataclass(frozen=True)
class Spread:
    """A measured time: median, 10th and 90th percentile, in ns, of so many samples, and what fits them."""

    ns: float
    low: float
    high: float
    samples: int
    fit: Fit | None = None

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Return the spread of at least two values.

        >>> Spread.of([3.0, 1.0, 2.0])
        Spread(ns=2.0, low=1.2, high=2.8, samples=3, fit=None)
        """
        deciles = statistics.quantiles(values, n=10, method="inclusive")
        return cls(statistics.median(values), deciles[0], deciles[-1], len(values), best_fit(values))


@dataclass(frozen=True)
class Calibration:
    """What one host's operations cost; `zeroing` holds (guest or host, bytes, spread)."""

    host: dict[str, Any]
    costs: dict[str, Spread]
    zeroing: list[tuple[str, int, Spread]]
    elapsed_s: float

    def to_json(self) -> dict[str, Any]:
        """Return the calibration as one JSON-ready document; times in ns."""
        return {
            "host": self.host,
            "elapsed_s": self.elapsed_s,
            "costs": {name: {**asdict(cost), "recipe": _RECIPES[name]} for name, cost in self.costs.items()},
            "zeroing": [
                {
                    **{"side": side, "size_bytes": size, "zero_ns": one.ns},
                    **{"low_ns": one.low, "high_ns": one.high, "samples": one.samples},
                    "recipe": ZEROING[side],
                }
                for side, size, one in self.zeroing
            ],
        }

    def to_toml(self) -> str:
        """Return the cost profile; what could not be measured here is left to replay's published profile."""
        lines = [
            "# Measured by tracekit calibrate on this host. Times are ns: median, 10th and 90th percentile.",
            f"name = {json.dumps(self.host['hostname'])}",
            "",
            "[host]",
            *(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in self.host.items()),
        ]
        for name, cost in self.costs.items():
            # What replay has no use for stands beside its costs, in a table that it does not read.
            lines += [
                "",
                f"[{'costs' if name in COSTS else 'beside'}.{name}]",
                f"ns = {cost.ns:.1f}",
                f"low = {cost.low:.1f}",
            ]
            lines += [f"high = {cost.high:.1f}", f"samples = {cost.samples}"]
            lines.append(f"source = {json.dumps('measured: ' + _RECIPES[name])}")
            if fit := cost.fit:
                lines.append(f"# fit: {fit.family}, D = {fit.ks:.2f}")
        for side, size, one in self.zeroing:
            lines += [
                "",
                "[[zeroing]]",
                f'side = "{side}"',
                f"size_bytes = {size}",
                f"zero_ns = {one.ns:.0f}",
            ]
            lines += [f"low_ns = {one.low:.0f}", f"high_ns = {one.high:.0f}", f"samples = {one.samples}"]
            lines.append(f"source = {json.dumps('measured: ' + ZEROING[side])}")
        return "\n".join(lines) + "\n"

    def save(self, path: Path, *, force: bool = False) -> None:
        """Write the profile; raises `UsageError` if the file exists and `force` is false."""
        try:
            with path.open("w" if force else "x", encoding="utf-8") as file:
                file.write(self.to_toml())
        except FileExistsError:
            raise UsageError(f"{path} exists", hint="--force replaces it") from None
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror}", hint="-o FILE") from None


def calibrate(
    *, rounds: int = 25, sizes: tuple[int, ...] = SIZES, say: Callable[[str], None] = lambda _: None
) -> Calibration:
    """Measure this host: every cost of `RECIPES` and the time to zero memory of these sizes.

    Raises `CapabilityError` where the host has no KVM.
    """
    if rounds < 2:
        raise UsageError("a spread needs at least 2 rounds", hint="--rounds 25")
    started = time.monotonic()
    say("measuring faults, prefaulting, discarding, exits")
    values = measure_costs(rounds, say=say).values
    try:
        say("recording small guests: what a trace's latencies hold of a fault")
        values |= measure_recorded(min(rounds, _SLOW_ROUNDS)).values
    except (CapabilityError, FailedError) as error:
        say(f"left out {', '.join(RECORDED)}: {error.message}")
    say("measuring context switches, a balloon's discards, KSM, swap-in")
    values |= measure_system(rounds, say=say).values
    unmap_ns = statistics.median(values["unmap_4k"])
    values |= measure_swap_in(min(rounds, _SLOW_ROUNDS), unmap_ns, say=say).values
    if "swap_in_zram" in values:
        values["swap_out_zram"] = values["page_out_zram"]
        beside_ns = statistics.median(values["swap_in_zram"]) + unmap_ns
        values |= measure_swap_out(min(rounds, _SLOW_ROUNDS), beside_ns, say=say).values
    for name, (cost, times, _) in _BY_EXITS.items():
        if cost in values:
            values[name] = [times * ns for ns in values[cost]]
    costs = {name: Spread.of(samples) for name, samples in values.items()}
    free = _available_bytes()
    fitting = tuple(size for size in sizes if 2 * size < free)
    if left_out := len(sizes) - len(fitting):
        say(f"left out {left_out} zeroing sizes: {free >> 20} MiB of memory are available")
    say("measuring how long zeroing takes, guest and host")
    zeroing = [
        (side, size, Spread.of(values))
        for (side, size), values in measure_zeroing(fitting, max(3, rounds // 5)).items()
    ]
    return Calibration(_host(), costs, zeroing, time.monotonic() - started)


def _host() -> dict[str, Any]:
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    modules = [name for name in ("kvm_intel", "kvm_amd", "kvm_pvm") if Path("/sys/module", name).is_dir()]
    return {
        "hostname": platform.node(),
        "kernel": platform.release(),
        "cpu": cpu[0].split(":", 1)[1].strip() if cpu else platform.machine(),
        "cpus": os.cpu_count() or 0,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kvm_module": ", ".join(modules) or "unknown",
        "measured": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _available_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0
