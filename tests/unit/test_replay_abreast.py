"""Settings that go abreast, one walk for all, come to the same as each of them alone."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from tests.unit.replay_kit import Tiny, alloc, costs, drop, fault, free
from tracekit.replay import accounts as ac
from tracekit.replay.abreast import walks_of
from tracekit.replay.mechanisms import cold_hint
from tracekit.replay.residency import Residency
from tracekit.replay.running import Room
from tracekit.replay.scenarios import parse_scenario
from tracekit.replay.state import Replay, Setting, Stand

BLOCK = 512
DELAYS_S = (0, 1e-7, 1e-5, 5e-5, 1e-4, 2e-4, 4e-4, 1e-3, 1e6)
KINDS = {
    "idle": lambda s: f"cold_hint,policy=idle,idle_s={s},scan_ms=0.01",
    "pages": lambda s: f"cold_hint,order=0,delay_ms={s * 1000}",
    "groups": lambda s: f"cold_hint,order=2,delay_ms={s * 1000}",
    "reports": lambda s: f"free_page_reporting,order=1,from_mib=0.02,delay_s={s}",
}
STOPS = (100_000, 1_000_000, 9_000_000)


def random_trace(seed: int, rows: int = 500) -> Tiny:
    """Four blocks of which a few pages see every kind of event over and over."""
    rng = random.Random(seed)
    events: list[dict[str, Any]] = []
    for step in range(rows):
        us, what = step * 3 + rng.random(), rng.random()
        gfn, vcpu = rng.randrange(4) * BLOCK + rng.randrange(12), rng.randrange(3)
        at = {"us": us, "gfn": gfn, "pages": rng.choice((1, 3))}
        if what < 0.4:
            level = 2 if rng.random() < 0.05 else rng.choice((1, 1, 1, None))
            first = gfn - gfn % BLOCK if level == 2 else gfn
            how = {"present": rng.random() < 0.1, "major": rng.random() < 0.1, "write": what > 0.1}
            events.append(fault(us, first, rng.choice((2, 9, 40, None)), vcpu=vcpu, level=level, **how))
        elif what < 0.5:
            events.append(drop(us, gfn, rng.choice((1, 2, 2, 600))))
        elif what < 0.6:
            group = rng.choice((1, 4))
            events.append(free(us, gfn - gfn % group, vcpu=vcpu, pages=group))
        elif what < 0.7:
            events.append(alloc(us, gfn, zeroed=True, vcpu=vcpu, pages=rng.choice((1, 2))))
        elif what < 0.8:
            events.append({**at, "kind": "unmap", "pages": rng.choice((1, 40))})
        elif what < 0.9:
            events.append({**at, "kind": rng.choice(("swap_out", "swap_in"))})
        elif what < 0.93:
            events.append({**at, "kind": "madvise", "arg": rng.choice((21, 22, 23, 8, 4))})
        elif what < 0.96:
            events.append({**at, "kind": "host_fault", "pages": 1, "tid": 7, "latency_ns": 3000})
        else:
            events.append({**at, "kind": "access", "pages": 4, "arg": 1})
    return Tiny(events, memory_pages=8 * BLOCK, batch_rows=150)


def settings(room: Room, seed: int, kind: str = "idle") -> list[Setting]:
    """Delays in no order, some twice; among them a closed loop and a replay of something else."""
    rng = random.Random(seed)
    found = [Setting({}, room.prices.kernel("point"), closed=False)]
    for k in range(10):
        scenario = parse_scenario(f"{KINDS[kind](rng.choice(DELAYS_S))},batch={k + 1}")
        contexts = {
            m.name: replace(room.context(scenario, m), hypothesis=rng.choice(("point", "low", "high")))
            for m in scenario.mechanisms
        }
        found.append(Setting(contexts, room.prices.kernel("point"), closed=k == 4))
    return found


def plain_of(one: tuple[int, Stand]) -> list[Any]:
    """Return a time and how things stood then."""
    then, stand = one
    counters = (stand.shift, stand.faults, stand.added, stand.tally)
    return [then, stand.union_ns, *(counter.tolist() for counter in counters)]


def ends(room: Room, asked: list[Setting], **how: Any) -> list[dict[str, Any]]:
    """Return all that each replay leaves, but for the words of pages."""
    found = []
    for replay in Replay.run_all(room.timeline, room.chain, asked, at=STOPS, **how):
        world = replay.world._asdict()
        found.append(
            {name: world[name].tolist() for name in world if name not in ("words", "directory", "hold")}
            | {
                "weighted": Residency.of(replay.world).weighted,
                "unused": replay.unused().tolist(),
                "stands": [plain_of(one) for one in replay.stands.items()],
            }
        )
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", KINDS)
def test_abreast_is_one_at_a_time(seed: int, kind: str) -> None:
    room = Room.of(random_trace(seed), profile=costs(ept_4k=3_000))
    asked = settings(room, seed, kind)
    alone = ends(room, asked, plain=True, abreast=False)
    assert ends(room, asked, plain=True, abreast=True) == alone
    assert sum(sum(one["added"]) > 0 for one in alone) > 2  # pages are taken and come back


@pytest.mark.parametrize("kind", ["idle", "groups"])
def test_abreast_compiled(kind: str) -> None:
    room = Room.of(random_trace(1), profile=costs(ept_4k=3_000))
    asked = settings(room, 1, kind)
    assert ends(room, asked, plain=False, abreast=True) == ends(room, asked, plain=True, abreast=False)


def test_only_what_can_goes_abreast() -> None:
    room = Room.of(random_trace(2), profile=costs())
    asked = settings(room, 2)
    # Setting 5 is the closed loop, 0 has nothing on; the other nine are one walk.
    members = [sorted(walk.members) for walk in walks_of(asked, room.chain, abreast=True)]
    assert members == [[0], [1, 2, 3, 4, 6, 7, 8, 9, 10], [5]]
    assert len(walks_of(asked, room.chain, abreast=False)) == 11
    dearer = replace(asked[1], costs=asked[1].costs + 1)
    assert len(walks_of([asked[1], dearer], room.chain, abreast=True)) == 2


def test_more_than_a_walk_holds_take_several(monkeypatch: pytest.MonkeyPatch) -> None:
    room = Room.of(random_trace(2, rows=300), profile=costs())
    asked = settings(room, 2)
    alone = ends(room, asked, plain=True, abreast=False)
    monkeypatch.setattr(cold_hint, "IDLE_ABREAST", replace(cold_hint.IDLE_ABREAST, most=4))
    walks = walks_of(asked, room.chain, abreast=True)
    assert sorted(len(walk.members) for walk in walks) == [1, 1, 1, 4, 4]
    assert ends(room, asked, plain=True, abreast=True) == alone


def test_the_hand_agrees() -> None:
    # One page, used at 1, 11 and 31 us: gaps of 10 and 20 us, then 69 us to the end at 100 us. Idle for 5 us
    # it is taken three times and faults twice; for 15 us twice and once; for 50 us once and never; for 80 us
    # never.
    trace = Tiny(
        [*(fault(us, 3, 1) for us in (1, 11, 31)), {"us": 100, "kind": "access", "gfn": 9, "arg": 1}]
    )
    room = Room.of(trace, profile=costs())
    asked = []
    for idle_us in (80, 5, 50, 15):
        scenario = parse_scenario(f"cold_hint,policy=idle,idle_s={idle_us / 1e6},scan_ms=0")
        contexts = {m.name: room.context(scenario, m) for m in scenario.mechanisms}
        asked.append(Setting(contexts, room.prices.kernel("point"), closed=False))
    me = [m.name for m in room.chain.mechanisms].index("cold_hint") + 1
    found = []
    for replay in Replay.run_all(room.timeline, room.chain, asked, plain=True, abreast=True):
        taken = replay.world.tally.reshape(-1, ac.TALLIES)[me][ac.UNMAPS]
        found.append((int(taken), int(replay.world.added[::2].sum())))
    assert found == [(0, 0), (3, 2), (1, 0), (2, 1)]
