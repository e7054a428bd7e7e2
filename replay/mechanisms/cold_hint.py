"""cold_hint: the guest tells the host which memory it won't need soon (Hyper-V 0x8003 cold, cold-discard).

Policies:

- `on_free`: groups of 2^order pages that stay free for `delay_ms` are hinted cold-discard: dropped, and a
  later use faults and comes zeroed. Linux' hv_balloon does this through page reporting.
- `idle`: pages not accessed for `idle_s` are hinted cold: their contents go to swap on `device`, and a
  later use waits for it (`swap_in_*`, unless the trace has such faults with latencies: then what they
  took). Needs access samples. A sample says only that the page was used within its period (`scan_ms`), so
  the figures are run for both ends: an idle time is known to +- one period (docs/miss-ratio.md).
- `recorded`: the cold hints that the guest really gave, as if the host had followed them at once.
- `oracle`: every page goes at its last recorded use, and none ever comes back: the upper bound of what can
  be taken without a refault (a policy that takes pages between uses too may save more, and pays for it). Uses
  of mapped pages that nothing sampled are not in the trace, so the lower bound is nothing.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from tracekit.errors import UsageError
from tracekit.replay import delays, group_delays
from tracekit.replay import events as ev
from tracekit.replay.accounts import HYPERCALLS, PAGED_OUT, RANGES, TALLIES, UNMAPS, count
from tracekit.replay.events import Event
from tracekit.replay.freeing import (
    CALM_UNLESS_FREE,
    FREE_BLOCK_WORDS,
    FREE_WORDS,
    costs_of_taking,
    fetch_group,
    note_free,
    note_used,
    take_all_due,
    take_due,
    take_unused,
)
from tracekit.replay.jit import compiled_for, hot, int64, prefetch
from tracekit.replay.mechanisms import Abreast, Context, Mechanism, Own, Param, Setup, Stage
from tracekit.replay.pages import C_BACKED, CLOCK_END, World, drop
from tracekit.replay.swapping import DEVICES, mark_of, page_out_cost, swap_in_cost

__all__ = ["MECHANISM"]

POLICIES = ("on_free", "idle", "recorded", "oracle")
ON_FREE, IDLE, RECORDED, ORACLE = range(4)
# m.ints
POLICY, ORDER, DELAY, TAKES, MARK = range(5)
USES = 1 << ev.FAULT | 1 << ev.ACCESSED | 1 << ev.ALLOC | 1 << ev.POPULATE | 1 << ev.SWAP_IN
# The word of a page, for idle and oracle: 1 + time of its last use.


@hot
def fetch(page: int, m: Own) -> None:
    """Call what is known of the page into the cache."""
    if m.ints[POLICY] == ON_FREE:
        fetch_group(m, page, m.ints[ORDER])
    else:
        prefetch(m.page, page)


@hot
def look(s: World, e: Event, w: int, m: Own, me: int) -> int:
    """Take what was due in the past, and note this use."""
    policy = m.ints[POLICY]
    if policy == ON_FREE:
        return take_due(s, e.page, w, e.start, m, me, m.ints[ORDER])
    if policy == RECORDED:
        return w
    last = m.page[e.page]
    if policy == IDLE:
        due = last - 1 + m.ints[DELAY]
        if last > 0 and due <= e.start and w & C_BACKED:
            w = drop(s, w, due, me) | int64(m.ints[MARK])
            count(s, me, RANGES, 1)
            count(s, me, UNMAPS, 1)
    if USES >> e.op & 1:
        m.page[e.page] = max(e.end, 0) + 1  # a fault may have begun before the recording
    return w


@hot
def fault(s: World, e: Event, w: int, verdict: int, service: int, m: Own, me: int) -> tuple[int, int, int]:
    """A page that faults is in use, whether or not its allocation was seen."""
    if m.ints[POLICY] == ON_FREE:
        note_used(m, e.page, m.ints[ORDER])
    return w, verdict, service


@hot
def event(s: World, e: Event, w: int, m: Own, me: int) -> int:
    """Follow what is free, or the hints that were given."""
    policy = m.ints[POLICY]
    if policy == ON_FREE:
        if e.op == ev.FREE:
            note_free(m, e.page, m.ints[ORDER], e.end + m.ints[DELAY])
        elif e.op == ev.ALLOC:
            note_used(m, e.page, m.ints[ORDER])
    elif policy == RECORDED and e.op == ev.HINT and not e.bits & ev.HINT_HOT:
        if not e.bits & ev.CONTINUED:
            count(s, me, RANGES, 1)
        if w & C_BACKED:
            count(s, me, UNMAPS, 1)
            w = drop(s, w, e.end, me)
            if not e.bits & ev.HINT_DISCARD:
                w |= int64(m.ints[MARK])
                count(s, me, PAGED_OUT, 1)
    return w


NEEDS = {
    "on_free": (ev.FREE, "the guest's page_free events", "tracekit record --guest, then tracekit merge"),
    "idle": (ev.ACCESSED, "access samples", "tracekit record --guest where DAMON runs"),
    "recorded": (ev.HINT, "the guest's own memory heat hints", "policy=on_free, or policy=oracle"),
}


def setup(context: Context) -> Setup:
    """Check that the trace holds what the policy needs."""
    policy = context.text("policy")
    if policy in NEEDS:
        op, what, hint = NEEDS[policy]
        if not context.survey.counts[op]:
            raise UsageError(f"cold_hint policy {policy} needs {what}, and this trace has none", hint=hint)
    takes = policy != "oracle" or context.hypothesis != "low"
    ints = [
        POLICIES.index(policy),
        int(context.number("order")),
        delays.whole(delay_of(context)),
        takes,
        mark_of(context.text("device")),
    ]
    return Setup(ints=np.array(ints, np.int64))


def delay_of(context: Context) -> float:
    """Return the delay of a setting, ns."""
    delay = context.number("delay_ms") * 1e6
    if context.text("policy") == "idle":
        scan = context.number("scan_ms") * 1e6
        delay = context.number("idle_s") * 1e9
        delay += {"low": scan, "high": -scan}.get(context.hypothesis, 0.0)
    return max(delay, 0.0)


def finish(context: Context, world: World, own: Own, me: int) -> None:
    """Take what nothing came back to."""
    policy = int(own.ints[POLICY])
    if policy == ON_FREE:
        take_all_due(world, own, me, int(own.ints[ORDER]))
    elif policy != RECORDED and own.ints[TAKES]:
        end = int(world.clock[CLOCK_END]) - int(world.shift.max(initial=0))
        delay = int(own.ints[DELAY]) if policy == IDLE else 0
        compiled_for(len(world.words), take_unused)(world, own, me, delay, end)
    if policy != RECORDED:  # recorded hints were hypercalls already
        into_hypercalls(context, world, me)


def into_hypercalls(context: Context, world: World, me: int) -> None:
    """Put the ranges into hypercalls."""
    tally = world.tally.reshape(-1, TALLIES)[me]
    tally[HYPERCALLS] += -(-int(tally[RANGES]) // int(context.number("batch")))


def idle_abreast(contexts: Sequence[Context]) -> Setup:
    """Lay out idle times."""
    return delays.setup_idle([delay_of(one) for one in contexts], len(contexts[0].timeline.lanes.vm))


def on_free_abreast(contexts: Sequence[Context]) -> Setup:
    """Lay out delays of groups."""
    first = contexts[0]
    waits = [delay_of(one) for one in contexts]
    return group_delays.setup(int(first.number("order")), 0, waits, len(first.timeline.lanes.vm))


def abreast(context: Context) -> tuple[Abreast, Hashable, int] | None:
    """Settings that differ only in their delay go abreast."""
    policy, delay = context.text("policy"), delays.whole(delay_of(context))
    if policy == "idle" and context.timeline.span_ns < delays.LAST_TIME:
        return IDLE_ABREAST, context.text("device"), delay
    if policy == "on_free" and context.timeline.span_ns < group_delays.LAST:
        return ON_FREE_ABREAST, context.number("order"), delay
    return None


def calm(context: Context) -> Mapping[int, int]:
    """What is not free is of no interest to on_free; idle times and the oracle want to see every use."""
    if context.text("policy") == "recorded":
        return dict.fromkeys(ev.CALM_ALL, 0)
    return CALM_UNLESS_FREE if context.text("policy") == "on_free" else {}


IDLE_ABREAST = Abreast(
    most=delays.MOST,
    page_words=FREE_WORDS,
    fetch=delays.fetch,
    look=delays.look_idle,
    setup=idle_abreast,
    finish=delays.finish_idle,
    one_of=delays.one_of,
    tally=into_hypercalls,
)
ON_FREE_ABREAST = Abreast(
    most=group_delays.MOST,
    page_words=group_delays.WORDS,
    fetch=group_delays.fetch,
    look=group_delays.look,
    fault=group_delays.fault,
    event=group_delays.event,
    setup=on_free_abreast,
    finish=group_delays.finish,
    one_of=delays.one_of,
    tally=into_hypercalls,
    calm=calm,
)


def costs(tally: NDArray[np.int64], context: Context) -> Mapping[str, Mapping[str, float]]:
    """Price hypercalls, discards, and what pages out."""
    whole_blocks = context.text("policy") == "on_free" and context.number("order") >= 9
    whole_blocks &= context.survey.large_pages
    found = costs_of_taking(tally, whole_blocks=whole_blocks)
    if paged_out := float(tally[UNMAPS if context.text("policy") == "idle" else PAGED_OUT]):
        beside = {**found["host_cpu_background"], page_out_cost(context.text("device")): paged_out}
        found = {**found, "host_cpu_background": beside}
    if context.text("by") == "vcpu":
        found = {**found, "on_path": {k: v for one in found.values() for k, v in one.items()}}
    return found


def refault_cost(context: Context) -> str:
    """Return what it costs to use a page again that was paged out."""
    return swap_in_cost(context.text("device"))


def block_local(context: Context) -> bool:
    """No policy looks beyond a group of pages, which is within a block."""
    return True


def bounded(context: Context) -> bool:
    """Samples leave each idle time open by a period; the oracle rests on uses that the trace may not hold."""
    return context.text("policy") in ("idle", "oracle")


def label(context: Context) -> str:
    """That a page is touched when it is allocated is the most that can happen."""
    return "bounded"


MECHANISM = Mechanism(
    name="cold_hint",
    summary="the guest hints memory it won't need soon, the host takes it",
    stage=Stage.TAKE,
    params=(
        Param("policy", "on_free", "who hints, and when", choices=POLICIES),
        Param("order", 9, "on_free: smallest group, 2^order pages of 4 KiB", low=0, high=9),
        Param("delay_ms", 2000.0, "on_free: how long a group is free before it is hinted", unit="ms", low=0),
        Param("idle_s", 60.0, "idle: how long a page is not accessed", unit="s", low=0),
        Param("scan_ms", 5000.0, "idle: period of the access samples", unit="ms", low=0),
        Param("device", "nvme", "idle, recorded: where pages that are hinted cold go", choices=DEVICES),
        Param("batch", 511, "ranges per hypercall (at most 511)", low=1, high=511),
        Param(
            "by",
            "vcpu",
            "who gives hints and discards: the vCPU and its VMM thread, or somebody beside it",
            choices=("vcpu", "beside"),
        ),
    ),
    page_words=FREE_WORDS,
    block_words=FREE_BLOCK_WORDS,
    fetch=fetch,
    look=look,
    fault=fault,
    event=event,
    setup=setup,
    calm=calm,
    finish=finish,
    costs=costs,
    refault_cost=refault_cost,
    block_local=block_local,
    abreast=abreast,
    bounded=bounded,
    label=label,
)
