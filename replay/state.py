"""The state of one replay: built empty, grown as the trace names more memory, driven batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracekit.replay import accounts as ac
from tracekit.replay import pages as pg
from tracekit.replay.abreast import Walk, walks_of
from tracekit.replay.blocks import IN_ORDER, block_order, replay_blocks
from tracekit.replay.chain import Chain
from tracekit.replay.events import BLOCK_PAGES, CLASSES, Columns
from tracekit.replay.mechanisms import Context, Own, Setup, Stage
from tracekit.replay.pages import World
from tracekit.replay.reduction import OWN_CLOCK
from tracekit.replay.survey import Recorded, Totals, add_batch
from tracekit.replay.timeline import Timeline

__all__ = ["Replay", "Setting", "Stand", "union_ns", "vcpu_lanes"]

PLAIN_ROWS = 20_000
"""Traces up to this long run as plain Python: quicker than loading the compiled kernel, the same numbers."""

SPECIAL_WORK = 30_000_000
"""From so many rows times settings on: a kernel of just what is on, compiled once (seconds), then quicker."""

BY_BLOCK_SETTINGS = 8
"""With so many replays in a pass, sorting its batches by block costs less than it saves."""

STATE_BYTES = 2 << 30
"""Replays share a pass while the states of their pages are smaller than this together."""


@dataclass(frozen=True)
class Setting:
    """What one replay assumes: mechanisms with their contexts, prices, closed or open loop.

    `costs` (ns, by fault class, then of a fault on a page backed ahead) price faults without a recorded
    latency and those that were added or shortened. `around`: pages that one fault of the guest maps at most
    where the host has them already.
    """

    contexts: Mapping[str, Context]
    costs: NDArray[np.int64]
    closed: bool = True
    around: int = 1

    def block_local(self, chain: Chain) -> bool:
        """Say whether blocks can be replayed one after another: nothing in it asks what happens elsewhere."""
        on = [m for m in chain.mechanisms if m.name in self.contexts]
        return not self.closed and all(m.block_local(self.contexts[m.name]) for m in on)

    def mask(self, chain: Chain) -> int:
        """Return which mechanisms are on, as a number: bit k is mechanism k of the chain."""
        return sum(1 << k for k, m in enumerate(chain.mechanisms) if m.name in self.contexts)

    def state_bytes(self, timeline: Timeline, chain: Chain) -> int:
        """Return about how much memory the states of all pages take."""
        on = [m for m in chain.mechanisms if m.name in self.contexts]
        per_block = BLOCK_PAGES * (4 + 8 * sum(m.page_words for m in on)) + 8 * sum(m.block_words for m in on)
        return max(timeline.index.blocks, 1) * per_block


@dataclass(frozen=True)
class Stand:
    """How a replay stands at some time: its counters, the union of removed stall, what was recorded."""

    shift: NDArray[np.int64]
    faults: NDArray[np.int64]
    added: NDArray[np.int64]
    tally: NDArray[np.int64]
    union_ns: int
    unplaced_ns: int
    recorded: Recorded

    @classmethod
    def of(cls, world: World, recorded: Recorded) -> Stand:
        """Copy what will change."""
        copies = (world.shift.copy(), world.faults.copy(), world.added.copy(), world.tally.copy())
        return cls(*copies, union_ns(world), int(world.clock[pg.CLOCK_UNPLACED]), recorded)


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
        """Replay with those mechanisms of `chain` that have a context; see `run_all`."""
        return next(
            cls.run_all(timeline, chain, [Setting(contexts, costs, closed, around)], plain=plain, at=at)
        )

    @classmethod
    def run_all(
        cls,
        timeline: Timeline,
        chain: Chain,
        settings: Sequence[Setting],
        *,
        plain: bool | None = None,
        by_block: bool | None = None,
        abreast: bool | None = None,
        at: Sequence[int] = (),
    ) -> Iterator[Replay]:
        """Yield a replay for each setting, in order; as many as fit into `STATE_BYTES` share a pass.

        Each keeps how things stand `at` some times (`stands`).
        The timeline must have been surveyed. `plain`: run the same functions uncompiled (the oracle).
        `by_block`: replay each batch block by block where that gives the same numbers (None: where it is
        quicker too). `abreast`: let one walk answer all the settings that it can (None: likewise). None of
        these changes any number.
        """
        rows = max(int(timeline.seen.sum()), timeline.rows)
        plain = rows <= PLAIN_ROWS if plain is None else plain
        special = rows * len(settings) >= SPECIAL_WORK
        # Those abreast need a kernel of their own.
        walks = walks_of(settings, chain, abreast=plain or special if abreast is None else abreast)
        firsts = [settings[walk.members[0]] for walk in walks]
        if by_block is None:
            by_block = special and sum(one.block_local(chain) for one in firsts) >= BY_BLOCK_SETTINGS
        at_once = 1
        if by_block or not timeline.kept:
            largest = max((one.state_bytes(timeline, chain) for one in firsts), default=1)
            at_once = max(STATE_BYTES // largest, 1)
        ready: dict[int, Replay] = {}
        done = 0
        for begin in range(0, len(walks), at_once):
            some = walks[begin : begin + at_once]
            kernels = [
                # Which of both loops a pass needs its batches tell; each is asked for (and compiled) once.
                cache(
                    partial(
                        walk.chain.kernel,
                        one.mask(chain),
                        plain=plain,
                        special=special or walk.how is not None,
                    )
                )
                for walk, one in zip(some, firsts[begin:], strict=False)
            ]
            stops = sorted(set(at))
            ready |= cls._pass(timeline, settings, some, kernels, by_block=by_block, at=stops)
            while ready and min(ready) == done:
                yield ready.pop(done)
                done += 1

    @classmethod
    def _pass(
        cls,
        timeline: Timeline,
        settings: Sequence[Setting],
        walks: Sequence[Walk],
        kernels: Sequence[Callable[..., Callable[..., None]]],
        *,
        by_block: bool,
        at: Sequence[int],
    ) -> dict[int, Replay]:
        """Let these walks go side by side; return what each setting comes to, by its number."""
        firsts = [settings[walk.members[0]] for walk in walks]
        replays = [
            cls._new(timeline, walk.chain, one, walk.setups(settings))
            for walk, one in zip(walks, firsts, strict=True)
        ]
        local = [by_block and one.block_local(walk.chain) for walk, one in zip(walks, firsts, strict=True)]
        stands: dict[int, dict[int, Stand]] = {k: {} for walk in walks for k in walk.members}
        so_far = Totals.new(len(timeline.lanes.vm))
        for columns, then in _cut(timeline, at):
            if columns is not None:
                blocks = block_order(columns, timeline.index.blocks) if any(local) else None
                for walk, one, replay, kernel, is_local in zip(
                    walks, firsts, replays, kernels, local, strict=True
                ):
                    state = replay.world, one.mask(walk.chain), replay.own
                    if blocks is not None and is_local:
                        replay_blocks(kernel(by_block=True), columns, blocks, *state)
                    else:
                        kernel()(columns, *state, *IN_ORDER)
                if at:
                    add_batch(columns, so_far)
            if then is not None:
                recorded = Recorded.of(so_far)
                for walk, replay in zip(walks, replays, strict=True):
                    for k, world in zip(walk.members, walk.worlds(replay.world, replay.own), strict=True):
                        stands[k][then] = Stand.of(world, recorded)
        return {
            k: replace(replay, world=world, stands=stands[k])
            for walk, replay in zip(walks, replays, strict=True)
            for k, world in zip(walk.members, walk.ends(settings, replay.world, replay.own), strict=True)
        }

    @classmethod
    def _new(
        cls, timeline: Timeline, chain: Chain, setting: Setting, given: Mapping[str, Setup] = {}
    ) -> Replay:
        """Return the state before the first event; set-ups `given` are not made."""
        contexts = setting.contexts
        mechanisms = chain.mechanisms
        on = np.array([m.name in contexts for m in mechanisms], np.int64)
        chosen = [m for m in mechanisms if m.name in contexts]
        setups = [
            (given.get(m.name) or m.setup(contexts[m.name])) if m.name in contexts else Setup()
            for m in mechanisms
        ]
        initial = 0
        for k, setup in enumerate(setups):
            if setup.initial:
                initial = setup.initial | (k + 1) << pg.OWNER_SHIFT
        index, lanes = timeline.index, timeline.lanes
        span = max(timeline.span_ns, 1)
        world = World(
            words=_words(max(index.pages, BLOCK_PAGES), initial),
            shift=np.zeros(len(lanes.vm), np.int64),
            host_of=lanes.vm.copy(),
            resident=np.zeros(1, np.int64),
            hold=np.zeros(2, np.int64),
            curve=np.zeros(pg.CURVE_BINS, np.int64),
            gains=np.zeros(pg.CURVE_BINS, np.int64),
            faults=np.zeros((len(setups) + 1) * ac.VERDICTS * CLASSES * ac.CELLS, np.int64),
            added=np.zeros((len(setups) + 1) * ac.REASONS * CLASSES * 2, np.int64),
            tally=np.zeros((len(setups) + 1) * ac.TALLIES, np.int64),
            histogram=np.zeros(ac.HISTOGRAM_CELLS, np.int64),
            by_lane=np.zeros(len(lanes.vm) * ac.LANE_CELLS, np.int64),
            spans=np.zeros(2 * (ac.SPAN_DEPTH + 2), np.int64),
            cost=setting.costs,
            directory=index.directory,
            clock=np.zeros(pg.CLOCK_CELLS, np.int64),
            calm=pg.calm_table(
                [m.calm(contexts[m.name]) for m in chosen],
                around=setting.around > 1 and any(m.stage == Stage.BACK for m in chosen),
            ),
        )
        world.clock[pg.CLOCK_BIN_SHIFT] = max(int(span).bit_length() - 12, 0)
        world.clock[pg.CLOCK_CLOSED] = int(setting.closed)
        # In a closed loop the end moves with the vCPUs: what is past it is left out when it is known.
        world.clock[pg.CLOCK_LATEST] = np.iinfo(np.int64).max if setting.closed else span
        world.clock[pg.CLOCK_LEVELS] = int(timeline.levels_known)
        world.clock[pg.CLOCK_END] = span
        world.clock[pg.CLOCK_AROUND] = setting.around
        own = tuple(
            Own(
                par=np.asarray(setup.par or [0.0], np.float64),
                page=np.zeros(max(len(world.words) * m.page_words * is_on, 1), np.int64),
                block=np.zeros(max(len(world.words) // BLOCK_PAGES * m.block_words * is_on, 1), np.int64),
                ints=setup.ints,
            )
            for m, setup, is_on in zip(mechanisms, setups, on.tolist(), strict=True)
        )
        for k, m in enumerate(mechanisms):
            if on[k] and m.begin is not None:
                m.begin(contexts[m.name], world, own[k], k + 1)
        return cls(world, own, on)

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
