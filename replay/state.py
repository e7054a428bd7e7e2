"""The state of one replay: built empty, grown as the trace names more memory, driven batch by batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tracekit.replay import accounts as ac
from tracekit.replay import pages as pg
from tracekit.replay.chain import Chain
from tracekit.replay.events import BLOCK_PAGES, CLASSES
from tracekit.replay.mechanisms import Context, Own, Setup
from tracekit.replay.pages import World
from tracekit.replay.reduction import OWN_CLOCK
from tracekit.replay.timeline import Timeline

__all__ = ["Replay"]

PLAIN_ROWS = 20_000
"""Traces up to this long run as plain Python: quicker than loading the compiled kernel, the same numbers."""


@dataclass
class Replay:
    """One replay: `run` drives a timeline through a chain and leaves the counters in `world`."""

    world: World
    own: tuple[Own, ...]
    on: NDArray[np.int64]

    @classmethod
    def run(
        cls,
        timeline: Timeline,
        chain: Chain,
        contexts: Mapping[str, Context],
        costs: NDArray[np.int64],
        *,
        closed: bool = True,
        plain: bool | None = None,
    ) -> Replay:
        """Replay with those mechanisms of `chain` that have a context.

        `costs` (ns, by fault class, then of a fault on a page backed ahead) price faults without a recorded
        latency and those that were added or shortened.
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
            words=_words(max(index.pages, BLOCK_PAGES), initial),
            shift=np.zeros(len(lanes.vm), np.int64),
            busy=np.full(len(lanes.vm), np.iinfo(np.int64).min, np.int64),
            host_of=lanes.vm.copy(),
            resident=np.zeros(2, np.int64),
            hold=np.zeros(4, np.int64),
            curve=np.zeros(2 * pg.CURVE_BINS, np.int64),
            faults=np.zeros((len(setups) + 1) * ac.VERDICTS * CLASSES * ac.CELLS, np.int64),
            added=np.zeros((len(setups) + 1) * ac.REASONS * CLASSES * 2, np.int64),
            tally=np.zeros((len(setups) + 1) * ac.TALLIES, np.int64),
            histogram=np.zeros(ac.HISTOGRAM_CELLS, np.int64),
            spans=np.zeros(2 * (ac.SPAN_DEPTH + 2), np.int64),
            cost=costs,
            directory=index.directory,
            clock=np.zeros(pg.CLOCK_CELLS, np.int64),
        )
        world.clock[pg.CLOCK_BIN_SHIFT] = max(int(span).bit_length() - 12, 0)
        world.clock[pg.CLOCK_CLOSED] = int(closed)
        world.clock[pg.CLOCK_LEVELS] = int(timeline.levels_known)
        world.clock[pg.CLOCK_END] = span
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
        replay._drive(timeline, chain, contexts, plain)
        return replay

    def _drive(
        self, timeline: Timeline, chain: Chain, contexts: Mapping[str, Context], plain: bool | None
    ) -> None:
        for k, m in enumerate(chain.mechanisms):
            if self.on[k] and m.begin is not None:
                m.begin(contexts[m.name], self.world, self.own[k], k + 1)
        if plain is None:
            plain = int(timeline.seen.sum()) <= PLAIN_ROWS
        mask = sum(1 << k for k, is_on in enumerate(self.on) if is_on)
        import os
        drive = chain.plain if plain else chain.only(mask) if os.environ.get('ONLY') else chain.fast
        for columns in timeline:
            drive(columns, self.world, mask, self.own)
        for k, m in enumerate(chain.mechanisms):
            if self.on[k] and m.finish is not None:
                m.finish(contexts[m.name], self.world, self.own[k], k + 1)

    def unused(self) -> NDArray[np.int64]:
        """Return by mechanism (0 = none) the pages that it backed ahead of a use that never came."""
        words = self.world.words
        owners = (words[words & pg.C_UNUSED != 0] & pg.OWNER_MASK) >> pg.OWNER_SHIFT
        return np.bincount(owners, minlength=len(self.on) + 1)


def _words(pages: int, initial: int) -> NDArray[np.int32]:
    """Return the pages' first words; zeros cost nothing where no event ever comes."""
    if initial:
        return np.full(pages, initial, np.int32)
    return np.zeros(pages, np.int32)


def vcpu_lanes(timeline: Timeline) -> NDArray[np.int64]:
    """Return the lanes that are vCPUs; where no vCPU is known, the threads that faulted."""
    used = int(timeline.lanes.used[0])
    names = timeline.lanes.name[:used]
    vcpus = np.flatnonzero(names >= 0)
    return vcpus if len(vcpus) else np.flatnonzero((names < 0) & (names != OWN_CLOCK))
