"""Events that change nothing are passed over at one look (`pages.calm_table`): no figure may move by that."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.unit.replay_kit import Tiny, alloc, costs, drop, fault, free
from tracekit.replay import events as ev
from tracekit.replay import pages as pg
from tracekit.replay.mechanisms import Mechanism, Stage
from tracekit.replay.running import Room
from tracekit.replay.scenarios import parse_scenario
from tracekit.replay.state import Replay, Setting

TEXTS = (
    "baseline",
    "prealloc",
    "prealloc,size=2m",
    "prealloc,via=pre_fault",
    "zeroing",
    "zeroing,zero_page=none",
    "zeroing_after_reuse",
    "hugepages",
    "hot_hint,lead_ms=0.02",
    "hot_hint,policy=stride,n=3",
    "hot_hint,policy=on_alloc",
    "cold_hint,order=0,delay_ms=0.1",
    "cold_hint,order=2,delay_ms=0.1",
    "cold_hint,policy=idle,idle_s=0.0004,scan_ms=0.01",
    "cold_hint,policy=oracle",
    "free_page_reporting,from_mib=0,order=1,delay_s=0.0001",
    "free_page_reporting,from_mib=0,order=0,delay_s=0.0001,pcp_pages=3",
    "balloon,interval_s=0.001,free_mib=0.01",
    "swap,limit_mib=0.2",
    "swap,limit_mib=0.2,device=zram",
    "ksm,policy=zero,sleep_ms=0.1",
    "epf,runnable=2",
    "epf+swap,runnable=2,limit_mib=0.1",
    "zeroing+hot_hint+cold_hint,lead_ms=0.02,order=0,delay_ms=0.1",
    "hugepages+free_page_reporting+zeroing_after_reuse,from_mib=0,order=0,delay_s=0.0001",
)


def events(seed: int, rows: int = 160) -> list[dict[str, Any]]:
    """Three vCPUs and the VMM use a few pages of four blocks over and over, allocate, free, lose and swap."""
    rng = random.Random(seed)
    found: list[dict[str, Any]] = []
    for step in range(rows):
        us = step * 2 + rng.random()
        gfn = rng.randrange(4) * 512 + rng.randrange(10)
        vcpu, what = rng.randrange(3), rng.random()
        if what < 0.5:
            ns, major = rng.choice((2, 9, 40, None)), rng.random() < 0.2
            one = fault(
                us, gfn, ns, vcpu=vcpu, level=rng.choice((None, 1, 1, 1, 1)), major=major, write=what > 0.2
            )
            found.append({**one, "kind": "host_fault"} if what < 0.05 else one)
        elif what < 0.58:
            found.append(drop(us, gfn, rng.choice((1, 2, 600))))
        elif what < 0.75:
            found.append(free(us, gfn, vcpu=vcpu))
        elif what < 0.9:
            found.append(alloc(us, gfn, zeroed=rng.random() < 0.7, vcpu=vcpu))
        elif what < 0.97:
            found.append({"us": us, "kind": "access", "gfn": gfn, "pages": rng.choice((1, 4)), "arg": 1})
        else:
            kind = rng.choice(("unmap", "swap_out", "swap_in"))
            found.append({"us": us, "kind": kind, "gfn": gfn, "pages": 1})
    return found


def all_ends(room: Room, text: str, **how: Any) -> list[Any]:
    """Return all that the replays of every hypothesis leave, in a closed and an open loop."""
    scenario = parse_scenario(text)
    found = []
    for hypothesis in ("point", "low", "high"):
        contexts = {
            m.name: replace(room.context(scenario, m), hypothesis=hypothesis) for m in scenario.mechanisms
        }
        for closed, around in ((True, room.timeline.mapped_around), (False, 1)):
            asked = Setting(contexts, room.prices.kernel("point"), closed, around)
            (one,) = Replay.run_all(room.timeline, room.chain, [asked], **how)
            world = one.world._replace(calm=np.zeros(0, np.int32))
            found.append([a.tolist() for a in world if isinstance(a, np.ndarray)])
    return found


@pytest.mark.parametrize("mmu_mode", ["shadow", "npt"])
@pytest.mark.parametrize("text", TEXTS)
def test_passing_over_calm_events_changes_nothing(
    text: str, mmu_mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = {"mmu_mode": mmu_mode}
    seed = TEXTS.index(text) + len(TEXTS) * (mmu_mode == "npt")
    trace = Tiny(events(seed), memory_pages=8 * 512, batch_rows=60, host=host)
    room = Room.of(trace, profile=costs(ept_4k=3_000))
    quick = all_ends(room, text, plain=True)
    never = np.tile(np.array([0, 1], np.int32), ev.CALM_KINDS)
    monkeypatch.setattr(pg, "calm_table", lambda wanted, *, around: never)
    assert all_ends(room, text, plain=True) == quick


def test_a_fault_that_may_map_its_neighbours_is_always_looked_at() -> None:
    """Page 0 is there and mapped; whoever backed page 1 ahead need not know that page 0's faults map it."""
    table = pg.calm_table([dict.fromkeys(ev.CALM_ALL, 0)], around=True).reshape(-1, 2)
    alone = pg.calm_table([dict.fromkeys(ev.CALM_ALL, 0)], around=False).reshape(-1, 2)
    guest = [ev.CALM_FAULT, ev.CALM_MAJOR]
    assert (table[guest] == [0, 1]).all()
    assert (alone[guest, 0] != 0).all()
    others = [kind for kind in range(ev.CALM_KINDS) if kind not in guest]
    assert (table[others] == alone[others]).all()


def test_some_events_are_passed_over() -> None:
    """Of two faults on a page the first one maps it; a mechanism that must see all sees both."""
    seen: list[int] = []

    def note(s: Any, e: Any, w: int, m: Any, me: int) -> int:
        seen.append(e.page)
        return w

    trace = Tiny([fault(1, 7, 2), fault(9, 7, 2), fault(12, 7, 2, level=None)])
    for calm, shown in (({}, 3), ({ev.CALM_FAULT: 0}, 2), ({ev.CALM_FAULT: pg.SEEN}, 3)):
        watch = Mechanism(name="watch", summary="", stage=Stage.SPARE, look=note, calm=lambda _, c=calm: c)
        room = Room.of(trace, [watch], profile=costs())
        scenario = parse_scenario("watch", [watch])
        contexts = {"watch": room.context(scenario, watch)}
        seen.clear()
        list(Replay.run_all(room.timeline, room.chain, [Setting(contexts, room.prices.kernel("point"))]))
        assert len(seen) == shown
