"""How many VMs fit on a host at a chosen risk, and how sure that is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tracekit.errors import UsageError
from tracekit.replay.fleet.curves import BASELINE, Curves
from tracekit.replay.fleet.demand import MOST_VMS, first_overflow
from tracekit.replay.fleet.overflow import Overflow, Rates, overflow
from tracekit.replay.uncertainty.answers import Identification, Statistical
from tracekit.replay.uncertainty.blocks import FEWEST_BLOCKS
from tracekit.replay.uncertainty.seeding import generator

__all__ = ["Density", "Fit", "Fleet", "Saving", "density"]

_POPULATIONS: Final = 100
_FEWEST_MOMENTS: Final = 20_000
_MOST_MOMENTS: Final = 4_000_000
_MOST_DRAWS: Final = 300_000_000
"""VMs drawn for one answer: some seconds. Where thousands of small VMs share a host, fewer moments do."""


@dataclass(frozen=True)
class Fleet:
    """What a host more or less is worth: `vms` to place, `host_cost` per host in any currency."""

    vms: int
    host_cost: float = 0.0

    def hosts(self, per_host: int) -> int:
        """Return how many hosts the VMs need."""
        return -(-self.vms // per_host)


@dataclass(frozen=True)
class Saving:
    """Hosts that the fleet needs, and what that saves against the first scenario."""

    hosts: int
    hosts_saved: int
    interval: Statistical
    money_saved: float


@dataclass(frozen=True)
class Fit:
    """What one scenario does for a host.

    `vms` is the largest number whose `risk` (share of moments at which the host needs more memory than it
    has) is within what was asked; one more has `risk_of_one_more`. `interval` is what other VMs of the same
    kind could have shown, `chance` what other random draws could have, and `band` what the traces leave
    open of these VMs: all of them at the upper ends of their curves, and all at the lower (None = no
    bound). None of the three is part of another. `extra` compares with the first scenario (the baseline) on
    the same hosts; `extra_band` sets either at its worse end against the other at its better. `saving` is
    None without a `Fleet`, or if no VM fits.
    """

    scenario: str
    vms: int
    interval: Statistical
    band: Identification
    chance: tuple[int, int]
    risk: float
    risk_of_one_more: float
    extra: int
    extra_interval: Statistical
    extra_band: Identification
    overflow: Overflow | None
    saving: Saving | None


@dataclass(frozen=True)
class Density:
    """The answer for every scenario (baseline first), with what was asked."""

    fits: tuple[Fit, ...]
    room_bytes: float
    risk: float
    together: float
    vms_seen: int
    moments: int
    notes: tuple[str, ...]


def density(
    curves: Curves,
    room_bytes: float,
    risk: float,
    *,
    together: float = 0.0,
    fleet: Fleet | None = None,
    rates: Rates | None = None,
    moments: int | None = None,
    populations: int = _POPULATIONS,
    level: float = 0.95,
    seed: int = 0,
) -> Density:
    """Return how many VMs need at most `room_bytes` together at all but a share `risk` of moments.

    Monte Carlo over hosts of VMs drawn from `curves` (see `first_overflow`; `together` 0 = random phases,
    1 = all curves aligned). Intervals come from resampling the VMs `populations` times and are not given for
    fewer than 8. Bit-equal for the same arguments.

    >>> import polars as pl
    >>> rows = pl.DataFrame({"trace": "a", "scenario": "baseline", "ts_ns": [0, 1], "resident_bytes": 10.0})
    >>> density(Curves.of(rows), room_bytes=95, risk=0.01).fits[0].vms
    9
    """
    _check(room_bytes, risk, together)
    if moments is None:
        moments = _fewer(
            int(np.clip(100 / risk, _FEWEST_MOMENTS, _MOST_MOMENTS)), 10 / risk, curves, room_bytes
        )
    names = list(curves.grids)
    grids = [curves.grids[name] for name in names]
    rng = generator(seed, "density", "moments")
    ends = [(curves.high.get(name), curves.low.get(name)) for name in names]
    asked = grids + [end for pair in ends for end in pair if end is not None]
    counts = first_overflow(asked, room_bytes, moments, together=together, rng=rng)
    vms = [_largest(count, risk) for count in counts]
    rest = iter(vms[len(grids) :])
    # The order of `asked`: a high curve, which fits fewer VMs, before its low one.
    bands = [Identification(*(None if end is None else float(next(rest)) for end in pair)) for pair in ends]
    counts, vms = counts[: len(grids)], vms[: len(grids)]
    spread = _populations(curves, room_bytes, risk, together, populations, seed)
    units = len(curves.traces)
    found: list[Fit] = []
    for k, (name, count) in enumerate(zip(names, counts, strict=True)):
        found.append(
            Fit(
                scenario=name,
                vms=vms[k],
                interval=_vms_interval(spread[:, k], vms[k], level, units),
                band=bands[k],
                chance=_chance(count, risk, level),
                risk=float(np.mean(count <= vms[k])),
                risk_of_one_more=float(np.mean(count <= vms[k] + 1)),
                extra=vms[k] - vms[0],
                extra_interval=_around(spread[:, k] - spread[:, 0], vms[k] - vms[0], level, units),
                extra_band=_extra(bands[0], bands[k]) if k else Identification(0.0, 0.0),
                overflow=_overflow(curves, name, vms[k], room_bytes, together, rates, seed),
                saving=_saving(fleet, spread[:, [0, k]], (vms[0], vms[k]), level, units),
            )
        )
    return Density(
        tuple(found), room_bytes, risk, together, units, moments, _notes(curves, risk, moments, vms)
    )


def _fewer(moments: int, fewest: float, curves: Curves, room_bytes: float) -> int:
    """Return how many moments the bound on draws leaves, but so many that some of them overflow."""
    a_moment = sum(room_bytes / max(float(grid.values.mean()), 1.0) for grid in curves.grids.values())
    return min(moments, max(int(_MOST_DRAWS / max(a_moment, 1.0)), int(fewest), 1_000))


def _extra(before: Identification, after: Identification) -> Identification:
    """Return between what the difference of two bands lies, whatever the one has to do with the other."""
    low = None if after.low is None or before.high is None else after.low - before.high
    return Identification(low, None if after.high is None or before.low is None else after.high - before.low)


def _check(room_bytes: float, risk: float, together: float) -> None:
    if not 0 < room_bytes < math.inf:
        raise UsageError("a host needs memory for its VMs", hint="--host-memory 768G")
    if not 0 < risk < 1:
        raise UsageError(f"a risk is between 0 and 1, not {risk:g}", hint="--risk 0.001")
    if not 0 <= together <= 1:
        raise UsageError(f"the share that peaks together is 0 to 1, not {together:g}", hint="--together 0.2")


def _largest(first: NDArray[np.int64], risk: float) -> int:
    """Return the largest number of VMs whose share of overflowing moments is at most `risk`."""
    allowed = math.floor(risk * len(first) * (1 + 1e-12))
    return int(np.partition(first, allowed)[allowed]) - 1


def _chance(first: NDArray[np.int64], risk: float, level: float) -> tuple[int, int]:
    """Return the interval of `_largest` over other draws: binomial bounds on the order statistic."""
    from scipy.stats import binom

    ends = (binom.ppf(q, len(first), risk) for q in ((1 - level) / 2, (1 + level) / 2))
    low, high = (int(np.clip(end, 0, len(first) - 1)) for end in ends)
    ordered = np.partition(first, [low, high])
    return int(ordered[low]) - 1, int(ordered[high]) - 1


def _populations(
    curves: Curves, room_bytes: float, risk: float, together: float, populations: int, seed: int
) -> NDArray[np.int64]:
    """Return the answer of each scenario (columns) for resampled VMs (rows); no row for too few VMs."""
    units, grids = len(curves.traces), list(curves.grids.values())
    if units < FEWEST_BLOCKS:
        return np.empty((0, len(grids)), np.int64)
    moments = _fewer(int(np.clip(5 / risk, 2_000, 50_000)), 2 / risk, curves, room_bytes * populations)
    answers = np.empty((populations, len(grids)), np.int64)
    for b in range(populations):
        rng = generator(seed, "density", "population", str(b))
        drawn = rng.integers(0, units, units)
        counts = first_overflow(grids, room_bytes, moments, together=together, rng=rng, population=drawn)
        answers[b] = [_largest(count, risk) for count in counts]
    return answers


def _vms_interval(answers: NDArray[np.int64], vms: int, level: float, units: int) -> Statistical:
    """Return the interval of a number of VMs, symmetric in its logarithm.

    It goes as room / mean size, so its logarithm is what spreads evenly. Measured coverage of nominal 95 %
    with lognormal VM sizes (sigma 0.5): 96, 91 and 95 % for 12, 30 and 100 VMs, where percentiles give 86,
    87 and 92 %.
    """
    if not len(answers) or not vms:
        return _around(answers, vms, level, units)
    reach = _reach(np.log(np.maximum(answers, 0.5)), level, units)
    low, high = math.floor(vms * math.exp(-reach)), math.ceil(vms * math.exp(reach))
    return Statistical(float(low), float(high), level, units)


def _around(answers: NDArray[Any], value: float, level: float, units: int) -> Statistical:
    """Return the interval around a difference: Student's t times the spread over resampled VMs."""
    if not len(answers):
        return Statistical(None, None, level, units, f"{units} VMs, {FEWEST_BLOCKS} are needed")
    reach = math.ceil(_reach(answers, level, units))
    return Statistical(value - reach, value + reach, level, units)


def _reach(answers: NDArray[Any], level: float, units: int) -> float:
    from scipy.stats import t

    few = math.sqrt(units / (units - 1))  # resampled VMs spread less than new ones
    return float(t.ppf((1 + level) / 2, units - 1) * few * np.std(answers, ddof=1))


def _overflow(
    curves: Curves,
    name: str,
    vms: int,
    room_bytes: float,
    together: float,
    rates: Rates | None,
    seed: int,
) -> Overflow | None:
    if not 0 < vms < MOST_VMS:
        return None
    return overflow(
        curves.grids[name],
        vms,
        room_bytes,
        curves.step_ns,
        together=together,
        rates=rates or Rates(),
        rng=generator(seed, "density", "hosts"),
    )


def _saving(
    fleet: Fleet | None, spread: NDArray[np.int64], vms: tuple[int, int], level: float, units: int
) -> Saving | None:
    if fleet is None or min(vms) == 0:
        return None
    before, after = (fleet.hosts(one) for one in vms)
    needed = np.ceil(fleet.vms / np.maximum(spread, 1))
    saved = before - after
    interval = _around(needed[:, 0] - needed[:, 1], saved, level, units)
    return Saving(after, saved, interval, saved * fleet.host_cost)


def _notes(curves: Curves, risk: float, moments: int, vms: list[int]) -> tuple[str, ...]:
    notes = []
    if BASELINE not in curves.grids:
        notes.append(f"no baseline curves: compared with {next(iter(curves.grids))}")
    if curves.left_out:
        some = ", ".join(curves.left_out[:3])
        notes.append(f"{len(curves.left_out)} traces lack a scenario and are left out: {some}")
    if curves.rounding > 0.02:
        notes.append(f"taking the largest value of each step raises the mean by {curves.rounding:.1%}")
    if risk * moments < 10:
        notes.append(f"{moments:,} moments are few for a risk of {risk:g}")
    if max(vms) >= MOST_VMS:
        notes.append(f"more than {MOST_VMS:,} VMs fit: is the host's memory right?")
    if min(vms) == 0:
        notes.append("not even one VM fits at this risk")
    return tuple(notes)
