"""The state of one replay: built empty, grown as the trace names more memory, driven batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracekit.replay import accounts as ac
from tracekit.replay import pages as pg
from tracekit.replay.chain import Chain
from tracekit.replay.events import BLOCK_PAGES, CLASSES, Columns
from tracekit.replay.mechanisms import Context, Own, Setup
from tracekit.replay.pages import World
from tracekit.replay.reduction import OWN_CLOCK
from tracekit.replay.timeline import Timeline

__all__ = ["Replay", "Stand", "union_ns", "vcpu_lanes"]

PLAIN_ROWS = 20_000
"""Traces up to this long run as plain Python: quicker than loading the compiled kernel, the same numbers."""


@dataclass(frozen=True)
class Stand:
    """How a replay stands at some time: its counters, the union of removed stall, each lane's last event."""

    shift: NDArray[np.int64]
    faults: NDArray[np.int64]
    added: NDArray[np.int64]
    tally: NDArray[np.int64]
    union_ns: int
    last_ns: NDArray[np.int64]

    @classmethod
    def of(cls, world: World, last_ns: NDArray[np.int64]) -> Stand:
        """Copy what will change."""
        copies = (world.shift.copy(), world.faults.copy(), world.added.copy(), world.tally.copy())
        return cls(*copies, union_ns(world), last_ns.copy())


@dataclass
class Replay:
    """One replay: `run` drives a timeline through a chain and leaves the counters in `world`.

    `stands[t]`: how it stood after all events up to `t` (ns since the trace's start), where asked for.
    """

    world: World
    own: tuple[Own, ...]
    on: NDArray[np.int64]
    stands: dict[int, Stand] = field(default_factory=dict)

    @classmethod
    def run(
        cls,
        timeline: Timeline,
        chain: Chain,
        contexts: Mapping[str, Context],
        costs: NDArray[np.int64],
        *,
        around: int = 1,
        closed: bool = True,
        plain: bool | None = None,
        at: Sequence[int] = (),
    ) -> Replay:
        """Replay with those mechanisms of `chain` that have a context; keep how things stand `at` some times.

        `costs` (ns, by fault class, then of a fault on a page backed ahead) price faults without a recorded
        latency and those that were added or shortened. `around`: pages that one fault of the guest maps at
        most where the host has them already.
        The timeline must have been surveyed. `plain`: run the same functions uncompiled (the oracle).
        """
        mechanisms = chain.mechanisms
        on = np.array([m.name in contexts for m in mechanisms], np.int64)
        setups = [m.setup(contexts[m.name]) if m.name in contexts else Setup() for m in mechanisms]
        initial = 0
        for k, setup in enumerate(setups):
            if setup.initial:
                initial = setup.initial | (k + 1) << pg.OWNER_SHIFT
        index, lanes = timeline.index, timeline.lanes
        span = max(timeline.span_ns, 1)
        world = World(
            words=np.full(max(index.pages, BLOCK_PAGES), initial, np.int64),
            shift=np.zeros(len(lanes.vm), np.int64),
            busy=np.full(len(lanes.vm), np.iinfo(np.int64).min, np.int64),
            host_of=lanes.vm.copy(),
            resident=np.zeros(2, np.int64),
            hold=np.zeros(2, np.float64),
            curve=np.zeros(2 * pg.CURVE_BINS, np.int64),
            faults=np.zeros((len(setups) + 1) * ac.VERDICTS * CLASSES * ac.CELLS, np.int64),
            added=np.zeros((len(setups) + 1) * ac.REASONS * CLASSES * 2, np.int64),
            tally=np.zeros((len(setups) + 1) * ac.TALLIES, np.int64),
            histogram=np.zeros(ac.HISTOGRAM_CELLS, np.int64),
            by_lane=np.zeros(len(lanes.vm) * ac.LANE_CELLS, np.int64),
            spans=np.zeros(2 * (ac.SPAN_DEPTH + 2), np.int64),
            cost=costs,
            directory=index.directory,
            clock=np.zeros(pg.CLOCK_CELLS, np.int64),
        )
        world.clock[pg.CLOCK_BIN_SHIFT] = max(int(span).bit_length() - 12, 0)
        world.clock[pg.CLOCK_CLOSED] = int(closed)
        world.clock[pg.CLOCK_LEVELS] = int(timeline.levels_known)
        world.clock[pg.CLOCK_END] = span
        world.clock[pg.CLOCK_AROUND] = around
        own = tuple(
            Own(
                par=np.asarray(setup.par or [0.0], np.float64),
                page=np.zeros(max(len(world.words) * m.page_words * is_on, 1), np.int64),
                block=np.zeros(max(len(world.words) // BLOCK_PAGES * m.block_words * is_on, 1), np.int64),
                ints=setup.ints,
            )
            for m, setup, is_on in zip(mechanisms, setups, on.tolist(), strict=True)
        )
        replay = cls(world, own, on)
        replay._drive(timeline, chain, contexts, plain, sorted(set(at)))
        return replay

    def _drive(
        self,
        timeline: Timeline,
        chain: Chain,
        contexts: Mapping[str, Context],
        plain: bool | None,
        at: Sequence[int],
    ) -> None:
        for k, m in enumerate(chain.mechanisms):
            if self.on[k] and m.begin is not None:
                m.begin(contexts[m.name], self.world, self.own[k], k + 1)
        if plain is None:
            plain = max(int(timeline.seen.sum()), timeline.rows) <= PLAIN_ROWS
        drive = chain.plain if plain else chain.fast
        last = np.zeros(len(self.world.shift), np.int64)
        for columns, then in _cut(timeline, at):
            if columns is not None:
                drive(columns, self.world, self.on, self.own)
                if at:
                    last[columns.lane] = columns.t  # in time order: the last one stays
            if then is not None:
                self.stands[then] = Stand.of(self.world, last)
        for k, m in enumerate(chain.mechanisms):
            if self.on[k] and m.finish is not None:
                m.finish(contexts[m.name], self.world, self.own[k], k + 1)

    def unused(self) -> NDArray[np.int64]:
        """Return by mechanism (0 = none) the pages that it backed ahead of a use that never came."""
        words = self.world.words
        owners = (words[words & pg.C_UNUSED != 0] & pg.OWNER_MASK) >> pg.OWNER_SHIFT
        return np.bincount(owners, minlength=len(self.on) + 1)


def _cut(timeline: Timeline, at: Sequence[int]) -> Iterator[tuple[Columns | None, int | None]]:
    """Yield the events in parts that end at these times, each with the time that it ends at."""
    left = list(at)
    for columns in timeline:
        done = 0
        while left and len(columns.t) and left[0] < columns.t[-1]:
            stop = int(np.searchsorted(columns.t, left[0], side="right"))
            part: Any = [column[done:stop] for column in columns]
            yield Columns(*part), left.pop(0)
            done = stop
        rest: Any = [column[done:] for column in columns]
        yield Columns(*rest), None
    for time in left:
        yield None, time


def union_ns(world: World) -> int:
    """Return the length of the union over all lanes of the stretches of stall that were removed (ns)."""
    pairs = world.spans[2 : 2 + 2 * int(world.spans[1])].reshape(-1, 2)
    return int(world.spans[0] + (pairs[:, 1] - pairs[:, 0]).sum())


def vcpu_lanes(timeline: Timeline) -> NDArray[np.int64]:
    """Return the lanes that are vCPUs; where no vCPU is known, the threads that faulted."""
    used = int(timeline.lanes.used[0])
    names = timeline.lanes.name[:used]
    vcpus = np.flatnonzero(names >= 0)
    return vcpus if len(vcpus) else np.flatnonzero((names < 0) & (names != OWN_CLOCK))
