"""What happens when a host needs more memory than it has: how much, how long, how often."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tracekit.replay.fleet.curves import Grid

__all__ = ["Overflow", "Rates", "overflow"]

_DAY_NS: Final = 86_400e9
_CELLS: Final = 20_000_000
_CHUNK: Final = 1 << 20
_MOST_HOSTS: Final = 400


@dataclass(frozen=True)
class Rates:
    """How quickly a host can react, in bytes per second; both are assumptions of the asker.

    `balloon`: 4 KiB inflation at 4.45 us a page (virtio-balloon; HyperAlloc artefact data, EuroSys 2025).
    `swap`: a swap device that writes 1 GiB/s.
    """

    swap: float = float(1 << 30)
    balloon: float = 4096 / 4.45e-6


@dataclass(frozen=True)
class Overflow:
    """Overflow on `hosts` simulated hosts, each watched for as long as the longest curve.

    `share_of_time` over; `hosts_ever` the share of hosts over at any time. Per host and day: `episodes`,
    `swap_bytes` written if all of it went to swap and `swap_s` that this takes, `oom_kills` if VMs of mean
    size were killed instead. While over: `mean_bytes` and `peak_bytes` over, `mean_s` per episode.
    `balloon_share_of_time` is still over when balloons take memory back as fast as they can.
    """

    hosts: int
    share_of_time: float
    hosts_ever: float
    episodes: float
    mean_s: float
    mean_bytes: float
    peak_bytes: float
    swap_bytes: float
    swap_s: float
    balloon_share_of_time: float
    oom_kills: float


def overflow(
    grid: Grid,
    vms: int,
    room_bytes: float,
    step_ns: float,
    *,
    together: float,
    rates: Rates,
    rng: np.random.Generator,
) -> Overflow:
    """Simulate hosts of `vms` VMs over time.

    VMs are drawn and shifted as in `first_overflow`; a curve repeats after its end. Everything is at the
    grid's resolution: what happens inside one step is seen as its largest value.
    """
    steps = int(grid.lengths.max())
    hosts = int(np.clip(_CELLS // (steps * vms), 20, _MOST_HOSTS))
    over = np.empty((hosts, steps))
    for host in range(hosts):
        over[host] = _demand(grid, vms, steps, together, rng)
    mean_vm = float(over.mean()) / vms
    over = np.maximum(over - room_bytes, 0.0)
    is_over = over > 0
    days = hosts * steps * step_ns / _DAY_NS
    begins = is_over & ~np.roll(is_over, 1, axis=1)
    episodes = int(begins.sum()) + int(is_over.all(axis=1).sum())
    total = int(is_over.sum())
    written = float(np.maximum(over - np.roll(over, 1, axis=1), 0).sum())
    written += float(over[is_over.all(axis=1), 0].sum())
    return Overflow(
        hosts=hosts,
        share_of_time=total / is_over.size,
        hosts_ever=float(is_over.any(axis=1).mean()),
        episodes=episodes / days,
        mean_s=total * step_ns / 1e9 / episodes if episodes else 0.0,
        mean_bytes=float(over.sum()) / total if total else 0.0,
        peak_bytes=float(over.max()),
        swap_bytes=written / days,
        swap_s=written / days / rates.swap,
        balloon_share_of_time=_after_balloon(over, rates.balloon * step_ns / 1e9) / is_over.size,
        oom_kills=_kills(over, mean_vm) / days,
    )


def _demand(
    grid: Grid, vms: int, steps: int, together: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Return one host's demand over time."""
    vm = rng.integers(0, len(grid.starts), vms)
    start = (rng.random(vms) * grid.lengths[vm]).astype(np.int64)
    start[rng.random(vms) < together] = 0
    total = np.zeros(steps)
    some = max(1, _CHUNK // steps)
    for first in range(0, vms, some):
        few = slice(first, first + some)
        total += grid.at(vm[few, None], start[few, None] + np.arange(steps)).sum(axis=0)
    return total


def _after_balloon(over: NDArray[np.float64], per_step: float) -> int:
    """Return how many steps stay over when balloons take at most `per_step` bytes more each step."""
    taken = np.zeros(len(over))
    left = 0
    for column in over.T:
        taken = np.minimum(column, taken + per_step)
        left += int(np.count_nonzero(column > taken))
    return left


def _kills(over: NDArray[np.float64], vm_bytes: float) -> float:
    """Return how many VMs of mean size must go: each step's rise above what was freed before.

    A host restarts its VMs elsewhere, so what was freed in one episode stays freed until it ends.
    """
    freed = np.zeros(len(over))
    kills = 0.0
    for column in over.T:
        freed = np.where(column > 0, freed, 0.0)
        more = np.ceil(np.maximum(column - freed, 0.0) / vm_bytes) if vm_bytes else np.zeros(len(over))
        freed += more * vm_bytes
        kills += float(more.sum())
    return kills
