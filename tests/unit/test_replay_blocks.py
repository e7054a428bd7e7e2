"""Block by block gives the same as in time order, and many replays in one pass the same as one at a time."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from tests.unit.replay_kit import Tiny, alloc, costs, drop, fault, free
from tracekit.replay.blocks import block_order
from tracekit.replay.running import Room
from tracekit.replay.scenarios import parse_scenario
from tracekit.replay.state import Replay, Setting

BLOCK = 512
TEXTS = (
    "baseline",
    "prealloc",
    "prealloc,size=2m",
    "zeroing,until_ms=1",
    "zeroing_after_reuse",
    "hugepages",
    "cold_hint,order=1,delay_ms=0.2",
    "cold_hint,policy=idle,idle_s=0.0004,scan_ms=0.01",
    "cold_hint,policy=oracle",
    "free_page_reporting,from_mib=0,order=0,delay_s=0.0001",
    "zeroing+hugepages+cold_hint,order=0,delay_ms=0.1",
)


def random_trace(rows: int = 700, *, huge: bool = False) -> Tiny:
    """Six blocks of which a few pages are used over and over by three vCPUs, with stalls that overlap."""
    rng = random.Random(7)
    events: list[dict[str, Any]] = []
    for step in range(rows):
        us = step * 3 + rng.random()
        gfn = rng.randrange(6) * BLOCK + rng.randrange(12)
        what = rng.random()
        if what < 0.55:
            level = 2 if rng.random() < 0.05 else 1
            at = gfn - gfn % BLOCK if level == 2 else gfn
            events.append(
                fault(
                    us, at, rng.choice((2, 9, 40, None)), vcpu=rng.randrange(3), level=level, write=what > 0.1
                )
            )
        elif what < 0.65:
            events.append(drop(us, gfn, rng.choice((1, 2, 700))))
        elif what < 0.8:
            events.append(free(us, gfn, vcpu=rng.randrange(3)))
        elif what < 0.95:
            events.append(alloc(us, gfn, zeroed=True, vcpu=rng.randrange(3)))
        else:
            events.append({"us": us, "kind": "access", "gfn": gfn, "pages": 4, "arg": 1})
    if huge:
        events.append(fault(rows * 3 + 5, 0, 50, level=3))
    return Tiny(events, memory_pages=8 * BLOCK, batch_rows=150)


def settings(room: Room, *, closed: bool) -> list[Setting]:
    found = []
    for text in TEXTS:
        scenario = parse_scenario(text)
        contexts = {m.name: room.context(scenario, m) for m in scenario.mechanisms}
        found.append(Setting(contexts, room.prices.kernel("point"), closed))
    return found


def ends(room: Room, asked: list[Setting], **how: Any) -> list[list[Any]]:
    """Return all that each replay leaves."""
    replays = Replay.run_all(room.timeline, room.chain, asked, **how)
    return [[a.tolist() for a in replay.world if isinstance(a, np.ndarray)] for replay in replays]


@pytest.mark.parametrize("huge", [False, True], ids=["small", "with a fault over many blocks"])
def test_block_by_block_is_time_order(huge: bool) -> None:
    room = Room.of(random_trace(huge=huge), profile=costs(ept_4k=3_000))
    asked = settings(room, closed=False)
    assert all(one.block_local(room.chain) for one in asked) is not huge  # zeroing puts off 1 GiB at once
    in_order = ends(room, asked, plain=True, by_block=False)
    assert ends(room, asked, plain=True, by_block=True) == in_order


def test_block_by_block_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a kernel of the three mechanisms of the last one: that of all takes long to compile."""
    room = Room.of(random_trace(), profile=costs(ept_4k=3_000))
    asked = settings(room, closed=False)[-1:]
    monkeypatch.setattr("tracekit.replay.state.SPECIAL_WORK", 0)
    assert ends(room, asked, plain=False, by_block=True) == ends(room, asked, plain=True, by_block=False)


def test_one_pass_is_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    room = Room.of(random_trace(), profile=costs(ept_4k=3_000))
    asked = settings(room, closed=True)
    alone = [ends(room, [one])[0] for one in asked]
    monkeypatch.setattr(type(room.timeline), "kept", False)
    assert ends(room, asked) == alone


def test_a_kernel_of_its_own_is_the_whole_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    room = Room.of(random_trace(), profile=costs(ept_4k=3_000))
    asked = settings(room, closed=True)[-1:]
    monkeypatch.setattr("tracekit.replay.state.SPECIAL_WORK", 0)
    assert ends(room, asked, plain=False) == ends(room, asked, plain=True)


def test_a_closed_loop_keeps_its_order() -> None:
    room = Room.of(random_trace(60), profile=costs())
    assert not any(one.block_local(room.chain) for one in settings(room, closed=True))


def test_blocks_keep_every_row_and_their_order() -> None:
    room = Room.of(random_trace(), profile=costs())
    for columns in room.timeline:
        blocks = block_order(columns, room.timeline.index.blocks)
        assert blocks is not None
        assert sorted(blocks.row.tolist()) == list(range(len(columns.t)))
        assert all((a[blocks.row] == b).all() for a, b in zip(columns, blocks.columns, strict=True))
        block = blocks.columns.page >> 9
        steps = np.diff(blocks.row)[np.diff(block) == 0]
        assert (np.diff(block) >= 0).all()
        assert (steps > 0).all()
