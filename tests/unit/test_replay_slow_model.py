"""The engine against an independent slow model, event by event: every mechanism and policy, random traces."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.replay_kit import Tiny, costs, fault
from tests.unit.slow_model.loop import Slow, meaning
from tracekit.errors import UsageError
from tracekit.replay import accounts as ac
from tracekit.replay import events as ev
from tracekit.replay import load_profile
from tracekit.replay.chain import Chain
from tracekit.replay.pages import CURVE_BINS
from tracekit.replay.residency import Residency
from tracekit.replay.running import Room
from tracekit.replay.scenarios import parse_scenario
from tracekit.replay.state import Replay
from tracekit.replay.survey import Totals, add_batch
from tracekit.trace import Meta, TraceWriter
from tracekit.trace.batch import events_batch
from tracekit.trace.schema import FLAG_KERNEL, FLAG_UNWRITTEN

VERDICTS = ("kept", "skipped", "hit", "shortened", "repriced", "overlapped")
REASONS = ("refault", "deferred", "instead")
COSTS = {name: cost.ns for name, cost in load_profile().costs.items()} | {"worker_wake": 3000.0}
PROFILE = costs(**COSTS)  # without ranges: a hypothesis then changes no price
PAGES_8 = 8 / 256  # MiB


@dataclass(frozen=True)
class Watched(Chain):
    """A chain whose event loop is another function."""

    loop: Callable[..., None]

    def kernel(self, on: int, **how: Any) -> Callable[..., None]:
        return self.loop


class Compared:
    """One trace through one scenario, by the engine and by the slow model."""

    def __init__(
        self,
        trace: Tiny,
        scenario: str,
        *,
        closed: bool,
        order: str = "lru",
        touches: list[Any] | None = None,
    ) -> None:
        trace.batch_rows = 1
        chosen = parse_scenario(scenario)
        room = Room.of(trace, profile=PROFILE, closed_loop=closed, plain=True)
        end = {"fifo": "low", "min": "high"}.get(order, "point")
        contexts = {m.name: replace(room.context(chosen, m), hypothesis=end) for m in chosen.mechanisms}
        names = ["recorded", *(m.name for m in room.chain.mechanisms)]
        self.verdicts: list[tuple[str, str, int]] = []

        def spy(columns: Any, world: Any, *rest: Any) -> None:
            before, so_far = world.faults.copy(), Totals.new(len(world.shift))
            room.chain.kernel(0, plain=True)(columns, world, *rest)
            add_batch(columns, so_far)
            cells = (world.faults - before).reshape(-1, ac.VERDICTS, ev.CLASSES, ac.CELLS)
            booked = np.argwhere(cells[..., ac.COUNT]).tolist()
            for who, verdict, cls in booked:
                ns = int(cells[who, verdict, cls, ac.NEW_NS])
                self.verdicts.append((VERDICTS[verdict], names[who], ns))
            if not booked and so_far.faults.any():  # one event at a time: what is booked nowhere stayed
                cls = int(so_far.faults.argmax())
                ns = int(so_far.latency_ns[cls] if so_far.measured[cls] else world.cost[cls])
                self.verdicts.append((VERDICTS[ac.KEPT], names[0], ns))

        chain = Watched(room.chain.mechanisms, spy)
        costs = room.prices_for(contexts).kernel("point")
        replay = Replay.run(room.timeline, chain, contexts, costs, closed=closed, plain=True)
        nothing_on = Replay.run(room.timeline, room.chain, {}, costs, closed=closed, plain=True)
        params: dict[str, dict[str, Any]] = {name: dict(of) for name, of in chosen.params.items()}
        for name, more in (("hot_hint", {"touches": touches}), ("swap", {"order": order})):
            params.get(name, {}).update(more)
        slow = Slow(trace, params, COSTS, closed=closed)
        self.engine = self.of_engine(replay, nothing_on, names)
        self.slow = self.of_slow(slow, int(replay.world.clock[0]))
        self.slow_verdicts = slow.w.verdicts

    @staticmethod
    def of_engine(replay: Replay, nothing_on: Replay, names: list[str]) -> dict[str, Any]:
        world, memory = replay.world, [Residency.of(one.world) for one in (nothing_on, replay)]
        added = world.added.reshape(len(names), ac.REASONS, ev.CLASSES, 2).sum(axis=2)
        tally = world.tally.reshape(-1, ac.TALLIES)
        unused = replay.unused()
        return {
            "added": {
                (names[who], REASONS[why]): tuple(added[who, why].tolist())
                for who, why in np.argwhere(added.any(axis=-1)).tolist()
            },
            "hypercalls": {n: int(c) for n, c in zip(names, tally[:, ac.HYPERCALLS], strict=True) if c},
            "wasted": int(unused[1:].sum() + tally[:, ac.PREFAULTS_UNUSED].sum()),
            "zeroed": int(tally[:, ac.ZEROING_SPARED].sum()),
            "candidates": int(tally[:, ac.CANDIDATES].sum()),
            "resident": [one.pages for one in memory],
            "held": [float(one.weighted) for one in memory],
            "gains": memory[1].gains.nonzero()[0].tolist() + memory[1].gains[memory[1].gains != 0].tolist(),
            "curve": [
                np.flatnonzero(c).tolist() + c[c != 0].tolist() for c in (one.changes for one in memory)
            ],
        }

    @staticmethod
    def of_slow(slow: Slow, bin_shift: int) -> dict[str, Any]:
        w = slow.w
        added: dict[tuple[str, str], tuple[int, int]] = {}
        for who, why, _, ns in w.added:
            n, total = added.get((who, why), (0, 0))
            added[who, why] = (n + 1, total + ns)
        for key, ns in w.lengthened.items():
            n, total = added.get(key, (0, 0))
            added[key] = (n, total + ns)
        # In an open loop what would be there after the end of the trace never is.
        latest = math.inf if w.closed else w.span
        changes = [change for change in w.changes if change[1] <= latest]
        gains: Counter[int] = Counter()
        for which, t, n in changes:
            if which == "counterfactual" and n > 0:
                gains[min(max(t, 0) >> bin_shift, CURVE_BINS - 1)] += n
        curves = []
        for world in ("recorded", "counterfactual"):
            bins: Counter[int] = Counter()
            for which, t, n in changes:
                if which == world:
                    bins[min(max(t, 0) >> bin_shift, CURVE_BINS - 1)] += n
            at = sorted(b for b in bins if bins[b])
            curves.append(at + [bins[b] for b in at])
        unused = sum(page.unused for page in w.everything())
        return {
            "added": added,
            "hypercalls": {who: n for (who, what), n in w.tally.items() if what == "hypercalls" and n},
            "wasted": unused + sum(n for (_, what), n in w.tally.items() if what == "wasted"),
            "zeroed": sum(n for (_, what), n in w.tally.items() if what == "zeroed"),
            "candidates": sum(n for (_, what), n in w.tally.items() if what == "candidates"),
            "resident": [w.resident["recorded"], w.resident["counterfactual"]],
            "held": [
                float(sum(min(t, latest) * n for which, t, n in w.changes if which == world))
                for world in ("recorded", "counterfactual")
            ],
            "gains": sorted(gains) + [gains[b] for b in sorted(gains)],
            "curve": curves,
        }


GFNS = (*range(6), *range(509, 515), 1023, 1024, 1025, 2047, 9000)
KINDS = (
    ["fault"] * 9 + ["drop"] * 2 + ["alloc"] * 4 + ["free"] * 4 + ["access"] * 2
    + ["unmap", "swap_out", "swap_in", "populate", "hint", "ksm_merge", "ksm_break"]
)  # fmt: skip


def random_trace(rng: Random, *, present: float = 0.1) -> Tiny:
    """Faults of every kind on few pages and vCPUs, and every other event that changes a page.

    `present`: share of the faults that found an entry.
    """
    rows: list[dict[str, Any]] = []
    now = 0.0
    levels = rng.choice([[1], [1, 1, 1, 2], [1, 2], [1, 1, None], [None]])
    gfns = rng.choice([GFNS, GFNS[:3], GFNS[:3]])
    for _ in range(rng.randint(1, 40)):
        now += rng.randint(0, 30)
        gfn, vcpu = rng.choice(gfns), rng.randint(0, 2)
        what = rng.choice(KINDS)
        row: dict[str, Any] = {"us": now, "gfn": gfn, "pages": rng.choice([1, 1, 1, 2, 3, 512])}
        if row["pages"] == 512 and rng.random() < 0.8:
            row["gfn"] -= gfn % 512
        match what:
            case "fault":
                level = rng.choice(levels)
                row = fault(
                    now, gfn - gfn % 512 if level == 2 else gfn,
                    rng.choice([None, rng.randint(0, 60), rng.randint(0, 60)]),
                    vcpu=vcpu, level=level, write=rng.random() < 0.6, major=rng.random() < 0.3,
                    present=rng.random() < present,
                )  # fmt: skip
                row["flags"] |= FLAG_KERNEL * (rng.random() < 0.1)
                if rng.random() < 0.15:
                    row |= {"kind": "host_fault", "vcpu": None, "tid": 7}
            case "drop":
                row |= {"kind": "balloon_inflate"}
            case "alloc" | "free":
                flags = 2 * (rng.random() < 0.5) if what == "alloc" else 0
                row |= {"kind": f"page_{what}", "vcpu": vcpu, "flags": flags}
            case "access":
                row |= {"kind": "access", "arg": 1}
            case "populate":
                row |= {"kind": "madvise", "arg": 23}
            case "hint":
                row |= {"kind": "hv_hypercall", "arg": 0x8003 | rng.randint(1, 3) << 16, "vcpu": vcpu}
            case "ksm_merge" | "ksm_break":
                row |= {"kind": what, "arg": rng.choice([None, 7, 7, 8])}
            case "swap_out":
                row |= {"kind": what, "flags": FLAG_UNWRITTEN * (rng.random() < 0.3)}
            case _:
                row |= {"kind": what}
        rows.append(row)
    return Tiny(rows, memory_pages=rng.choice([None, 2048, 512 * 512]), span_us=round(now) + 50)


def trace_of_several(rng: Random) -> Tiny:
    """The same of several VMs, with gfns that nobody knows or that no memslot holds, and other discards."""
    base = random_trace(rng)
    vms = rng.randint(1, 3)
    rows = []
    for one in base.rows:
        vm, where, other = rng.randrange(vms), rng.random(), rng.random() < 0.2
        row = one | {"vm": vm}
        if where < 0.06:
            row["gfn"] = None if where < 0.03 or row["kind"] == "page_alloc" else 100_000 + rng.randrange(3)
        match row["kind"]:
            case "host_fault":
                row["tid"] = 7 + vm
            case "balloon_inflate":
                row["kind"] = rng.choice(["balloon_inflate", "free_page_report", "madvise", "fallocate"])
                row["arg"] = rng.choice([4, 8, 9, 21, 14] if row["kind"] == "madvise" else [3, 0])
            case "ept_violation" if other:
                row["access"] = rng.choice([0, 3, 4, 5])
            case "page_alloc" | "page_free" if other:
                row["vcpu"] = None
            case "access" if other:
                row["arg"] = 0
        rows.append(row)
    return replace(base, rows=rows, vms=vms, memory_pages=rng.choice([None, 1024, 1536, 2048, 512 * 512]))


SINGLE = (
    "baseline",
    "zeroing", "zeroing,until_ms=0.2", "zeroing,ranges=3-510/1024-2048", "zeroing_after_reuse",
    "hot_hint,lead_ms=0.02", "hot_hint,lead_ms=0.004,via=pre_fault",
    "hot_hint,lead_ms=0.02,batch=2,workers=3",
    "hot_hint,policy=stride,n=2", "hot_hint,policy=on_alloc", "hot_hint,policy=recorded,via=pre_fault",
    "hugepages", "hugepages,size=1g",
    "prealloc", "prealloc,via=pre_fault", "prealloc,size=2m", "prealloc,size=1g",
    "epf,runnable=0", "epf,runnable=1", "epf,runnable=3", "epf,runnable=2,mode=any",
    "cold_hint,order=0,delay_ms=0.03", "cold_hint,order=2,delay_ms=0.02", "cold_hint,delay_ms=0.02",
    "cold_hint,policy=idle,idle_s=0.00005,scan_ms=0", "cold_hint,policy=recorded", "cold_hint,policy=oracle",
    "free_page_reporting,from_mib=0,order=1,delay_s=0.00004",
    "free_page_reporting,from_mib=0,delay_s=0.00002",
    "free_page_reporting,from_mib=0,order=0,delay_s=0.00002,pcp_pages=3",
    "cold_hint,policy=idle,idle_s=0.00005,scan_ms=0,device=zram",
    "free_page_reporting,from_mib=2,order=0,delay_s=0.00002",
    "balloon,interval_s=0.001,free_mib=0", "balloon,policy=recorded,interval_s=0.001",
    "balloon,interval_s=0.001,page=2m,free_mib=0", f"balloon,interval_s=0.001,target_mib={PAGES_8}",
    f"swap,limit_mib={PAGES_8}", "swap,limit_mib=0.008,device=zram", "swap,limit_mib=1,device=hdd",
    f"swap,limit_mib={PAGES_8},reclaim=background",
    "ksm", "ksm,policy=zero,sleep_ms=0.1,pages_to_scan=3",
)  # fmt: skip
ONE_EACH = (
    "zeroing", "zeroing_after_reuse", "hot_hint,hot_hint.lead_ms=0.02", "hot_hint,hot_hint.policy=stride",
    "hot_hint,hot_hint.policy=on_alloc,hot_hint.via=pre_fault", "hugepages", "hugepages,hugepages.size=1g",
    "prealloc", "prealloc,prealloc.via=pre_fault", "prealloc,prealloc.size=2m", "epf,epf.runnable=1",
    "cold_hint,cold_hint.order=0,cold_hint.delay_ms=0.03", "cold_hint,cold_hint.policy=oracle",
    "cold_hint,cold_hint.policy=idle,cold_hint.idle_s=0.00005", "cold_hint,cold_hint.policy=recorded",
    "free_page_reporting,free_page_reporting.from_mib=0,free_page_reporting.delay_s=0.00002",
    "balloon,balloon.interval_s=0.001,balloon.free_mib=0",
    f"swap,swap.limit_mib={PAGES_8}", "swap,swap.limit_mib=0.008,swap.device=zram",
    "ksm,ksm.policy=zero,ksm.sleep_ms=0.1", "ksm",
)  # fmt: skip


def compare(seed: int, scenario: str, closed: bool, **how: float) -> None:
    """Raise with the smallest part of a random trace that still disagrees."""
    compare_on(random_trace(Random(seed), **how), scenario, closed)


def compare_on(trace: Tiny, scenario: str, closed: bool) -> None:
    """Raise with the smallest part of the trace that still disagrees."""
    try:
        said = disagreement(trace, scenario, closed)
        smaller = said is not None
        while smaller:
            smaller = False
            for k in range(len(trace.rows)):
                less = replace(trace, rows=trace.rows[:k] + trace.rows[k + 1 :])
                if (found := disagreement(less, scenario, closed)) is not None:
                    trace, said, smaller = less, found, True
                    break
    except UsageError:  # the trace lacks what the policy needs
        return
    assert said is None, "\n".join([said, f"{closed=} memory={trace.memory_pages}", *map(str, trace.rows)])


@pytest.mark.parametrize("scenario", ["swap,limit_mib=0.008", "zeroing+swap,swap.limit_mib=0.008"])
def test_faults_that_map_nothing_under_a_limit(scenario: str) -> None:
    """Half of the faults find an entry, and where the trace names levels some have none."""
    for seed in range(60):
        compare(seed, scenario, closed=True, present=0.5)


def disagreement(trace: Tiny, scenario: str, closed: bool) -> str | None:
    """Say what the engine and the slow model see differently."""
    found = Compared(trace, scenario, closed=closed)
    if found.verdicts != found.slow_verdicts:
        return f"{scenario}: verdicts {found.verdicts}, slow {found.slow_verdicts}"
    for name, said in found.engine.items():
        if said != found.slow[name]:
            return f"{scenario}: {name} {said}, slow {found.slow[name]}"
    return None


SEEDS = st.integers(0, 1 << 32)


@pytest.mark.parametrize("scenario", SINGLE)
@settings(max_examples=10, deadline=None)
@given(seed=SEEDS, closed=st.booleans())
def test_each_mechanism_and_policy_agrees_with_the_slow_model(scenario: str, seed: int, closed: bool) -> None:
    compare(seed, scenario, closed)


def combination(rng: Random) -> str:
    by_name = {one.split(",")[0]: one for one in rng.sample(ONE_EACH, rng.randint(2, 4))}
    parameters = [part for one in by_name.values() for part in one.split(",")[1:]]
    return ",".join(["+".join(by_name), *parameters])


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, closed=st.booleans())
def test_combinations_agree_with_the_slow_model(seed: int, closed: bool) -> None:
    compare(seed, combination(Random(seed)), closed)


@settings(max_examples=80, deadline=None)
@given(seed=SEEDS, closed=st.booleans())
def test_several_vms_agree_with_the_slow_model(seed: int, closed: bool) -> None:
    rng = Random(seed)
    trace = trace_of_several(rng)
    compare_on(trace, rng.choice(SINGLE) if rng.random() < 0.5 else combination(rng), closed)


@pytest.mark.parametrize("order", ["fifo", "min"])
@settings(max_examples=15, deadline=None)
@given(seed=SEEDS, closed=st.booleans())
def test_what_bounds_swapping_agrees_with_the_slow_model(order: str, seed: int, closed: bool) -> None:
    trace = random_trace(Random(seed))
    if order == "min":
        # It may choose among pages that are never used again. What that costs is the same for all of them,
        # unless the recording takes some of them away later: then it matters which were swapped before.
        trace.rows[:] = [row for row in trace.rows if meaning(row) not in ("drop", "swap_out")]
    found = Compared(trace, f"swap,limit_mib={PAGES_8}", closed=closed, order=order)
    assert found.verdicts == found.slow_verdicts
    assert found.engine["added"] == found.slow["added"]


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An earlier run of the same machine: first touches of pages that the random traces use."""
    folder = tmp_path_factory.mktemp("train") / "earlier.trace"
    with TraceWriter(folder, Meta(source="synthetic", start_ns=1_000)) as writer:
        ts = [1_000 + 1_000 * at for _, _, at in EARLIER]
        gfn = [gfn for _, gfn, _ in EARLIER]
        writer.append(events_batch(ts_ns=ts, kind="ept_violation", vcpu=0, gfn=gfn, level=1, latency_ns=0))
    return folder


EARLIER = [(0, 3, 20), (0, 510, 40), (0, 0, 90), (0, 1, 91), (0, 7_000, 95), (0, 2, 96), (0, 513, 400)]


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, closed=st.booleans(), lead_us=st.sampled_from([0, 5, 50]))
def test_hints_from_an_earlier_run_agree_with_the_slow_model(
    train: Path, seed: int, closed: bool, lead_us: int
) -> None:
    touches = [(vm, gfn, at * 1_000) for vm, gfn, at in EARLIER]
    scenario = f"hot_hint,policy=previous,train={train},lead_ms={lead_us / 1000}"
    found = Compared(random_trace(Random(seed)), scenario, closed=closed, touches=touches)
    assert found.verdicts == found.slow_verdicts
    assert found.engine == found.slow
