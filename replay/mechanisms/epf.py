"""epf: on a fault that waits for I/O the guest runs another thread (Hyper-V enlightened page fault, KVM APF).

By the rules of KVM's asynchronous page faults (virt/kvm/async_pf.c, Documentation/virt/kvm/x86/msr.rst):

- only faults that wait for I/O: swap-in, file, userfaultfd. First-touch zero fill never is asynchronous: 0;
  nor is a device that is read synchronously (zram);
- only the guest's: a thread of the VMM waits as ever;
- only in user mode: where the recording says that the guest was in kernel mode, the vCPU halts as before
  (`mode=any`: a guest that takes them there too, KVM_ASYNC_PF_SEND_ALWAYS);
- at most 64 outstanding per vCPU, one more waits; a repeated fault on a page that is on its way waits;
- page-ready events of a vCPU come one after another.

How much of a wait is overlapped depends on what else could run: `runnable` other threads per vCPU, which no
fault trace holds. Low: nothing is overlapped, and the switches were made in vain. High: every wait is, if
there is any other thread. Value: the vCPU goes on until all `runnable` threads wait too. What follows on the
vCPU in the recording counts as the other threads' work, in the recorded order: nothing is scheduled anew.

With `runnable=recorded` the value takes what the guest's own run queue was (samples of `record --guest`,
merged into the trace): at each wait the newest sample, its threads shared evenly among the CPUs of that time,
less the one that waits. Between samples anything may have been, so both ends stay what they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from weakref import WeakKeyDictionary

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tracekit.errors import UsageError
from tracekit.replay import delays
from tracekit.replay import events as ev
from tracekit.replay.accounts import KEPT, OVERLAPPED, REASONS, REFAULT, advance, shorten_added
from tracekit.replay.events import Event
from tracekit.replay.jit import hot, rare
from tracekit.replay.mechanisms import Context, Mechanism, Own, Param, Setup, Stage
from tracekit.replay.pages import (
    B_BACKED,
    C_READ_AT_ONCE,
    C_SWAPPED,
    CLOCK_ADDED,
    CLOCK_CLOSED,
    CLOCK_END,
    World,
)
from tracekit.replay.timeline import Timeline

__all__ = ["MECHANISM"]

OUTSTANDING_PER_VCPU: Final = 64  # ASYNC_PF_PER_VCPU of KVM
RECORDED: Final = "recorded"
_THREADS, _CPUS = "guest_runnable_threads", "guest_cpus"
# m.ints: what is in force; the use of a backed page that may turn out to wait for a device; CLOCK_ADDED
# before it; then, by mechanism, the time of such waits that was known then; then the lanes.
# HALTS: the bits of an event for which whoever faults waits as ever: a thread of the VMM, a vCPU that halts.
OVERHEAD, READY_NS, HALTS = range(3)
PENDING, PENDING_PAGE, PENDING_LANE, PENDING_START, ADDED, KNOWN = range(3, 9)
MECHANISMS: Final = 256  # at most: the owner of a page is 8 bits
LANES: Final = KNOWN + MECHANISMS
# Words of a lane: faults on their way, when the last page-ready event came, how many other threads could run,
# where in m.ints the next sample of that is (when, how many; the last one never comes), then when each page
# is there.
COUNT, LAST_READY, RUNNABLE, NEXT, QUEUE = range(5)
LANE_WORDS: Final = QUEUE + OUTSTANDING_PER_VCPU
# Words of a page: when it will be there, and 1 + the lane that waits for it.
THERE, WAITER, WORDS = range(3)
MAJOR: Final = ev.EPT_MAJOR * ev.LEVELS + 1
TAKEN_BY_GUEST: Final = (ev.EPT, ev.EPT_MAJOR)


@hot
def first_ready(m: Own, at: int) -> int:
    """Return which fault of a lane is served first."""
    first = 0
    for k in range(1, m.ints[at + COUNT]):
        if m.ints[at + QUEUE + k] < m.ints[at + QUEUE + first]:
            first = k
    return first


@hot
def take_ready(m: Own, at: int) -> int:
    """Deliver the next page-ready event of a lane; return when: not before the one before it was handled."""
    first = first_ready(m, at)
    when = max(m.ints[at + QUEUE + first], m.ints[at + LAST_READY] + m.ints[READY_NS])
    m.ints[at + COUNT] -= 1
    m.ints[at + QUEUE + first] = m.ints[at + QUEUE + m.ints[at + COUNT]]
    m.ints[at + LAST_READY] = when
    return int(when)


@hot
def others_at(m: Own, at: int, recorded: int) -> int:
    """Return how many other threads a lane had at a time of the recording."""
    while m.ints[m.ints[at + NEXT]] <= recorded:
        m.ints[at + RUNNABLE] = m.ints[m.ints[at + NEXT] + 1]
        m.ints[at + NEXT] += 2
    return int(m.ints[at + RUNNABLE])


@hot
def service_of(s: World, m: Own, page: int, lane: int, start: int, latency: int) -> int:
    """Return how long a fault that waits for I/O holds up its vCPU; -1 = it halts as without APF."""
    at = LANES + lane * LANE_WORDS
    while m.ints[at + COUNT] > 0:
        ready = m.ints[at + QUEUE + first_ready(m, at)]
        if max(ready, m.ints[at + LAST_READY] + m.ints[READY_NS]) > start:
            break
        take_ready(m, at)
    on_its_way = m.page[page * WORDS + THERE] > start and m.page[page * WORDS + WAITER] == lane + 1
    if m.ints[at + COUNT] >= OUTSTANDING_PER_VCPU or on_its_way:
        return -1
    others_can_run = m.ints[at + COUNT] < others_at(m, at, start + s.shift[lane])
    m.ints[at + QUEUE + m.ints[at + COUNT]] = start + latency
    m.ints[at + COUNT] += 1
    m.page[page * WORDS + THERE] = start + latency
    m.page[page * WORDS + WAITER] = lane + 1
    if others_can_run:
        return int(m.ints[OVERHEAD])
    return int(m.ints[OVERHEAD]) + max(take_ready(m, at) - start, 0)


@hot
def waits_of(s: World, who: int) -> int:
    """Return where the time of the waits for a device that a mechanism added stands."""
    return ((who * REASONS + REFAULT) * ev.CLASSES + MAJOR) * 2 + 1


@hot
def close(s: World, m: Own) -> None:
    """See whether the use that is pending was made to wait, and overlap the wait."""
    if m.ints[PENDING] != 0:
        m.ints[PENDING] = 0
        if s.clock[CLOCK_ADDED] != m.ints[ADDED]:
            overlap(s, m)


@rare
def overlap(s: World, m: Own) -> None:
    """Overlap the waits that were added since the use that was pending."""
    lane, start = m.ints[PENDING_LANE], m.ints[PENDING_START]
    for who in range(len(s.added) // (REASONS * ev.CLASSES * 2)):
        ns = s.added[waits_of(s, who)] - m.ints[KNOWN + who]
        if ns > 0:
            service = service_of(s, m, m.ints[PENDING_PAGE], lane, start, ns)
            if service >= 0:
                shorten_added(s, lane, who, REFAULT, MAJOR, ns, service)
                advance(s, lane, ns - service)
    learn(s, m)


@rare
def learn(s: World, m: Own) -> None:
    """Note the time of all waits so far."""
    m.ints[ADDED] = s.clock[CLOCK_ADDED]
    for who in range(len(s.added) // (REASONS * ev.CLASSES * 2)):
        m.ints[KNOWN + who] = s.added[waits_of(s, who)]


@hot
def look(s: World, e: Event, w: int, m: Own, me: int) -> int:
    """Note a use that may be made to wait: what was taken away comes back after this hook."""
    close(s, m)
    at_once = w & C_SWAPPED != 0 and w & C_READ_AT_ONCE != 0
    if w & B_BACKED and e.op in (ev.FAULT, ev.ACCESSED) and not e.bits & m.ints[HALTS] and not at_once:
        m.ints[PENDING] = 1
        m.ints[PENDING_PAGE] = e.page
        m.ints[PENDING_LANE] = e.lane
        m.ints[PENDING_START] = e.start
        if s.clock[CLOCK_ADDED] != m.ints[ADDED]:
            learn(s, m)
    return w


@hot
def tick(s: World, now: int, m: Own, me: int) -> None:
    """Close what the event before left pending."""
    close(s, m)


@hot
def fault(s: World, e: Event, w: int, verdict: int, service: int, m: Own, me: int) -> tuple[int, int, int]:
    """Overlap a recorded wait of the guest in a mode in which it takes part."""
    waits = e.bits & (ev.MAJOR | m.ints[HALTS]) == ev.MAJOR
    if verdict != KEPT or not waits:
        return w, verdict, service
    ns = service_of(s, m, e.page, e.lane, e.start, service)
    if ns < 0:
        return w, verdict, service
    return w, OVERLAPPED, ns


def setup(context: Context) -> Setup:
    """Take the costs and the number of threads, by hypothesis."""
    end = context.hypothesis
    inject, switch, ready = (
        {"low": cost.high, "high": cost.low}.get(end, cost.ns)
        for cost in (context.profile.costs[f"epf_{name}"] for name in ("inject", "switch", "ready"))
    )
    vms, used = context.timeline.lanes.vm, int(context.timeline.lanes.used[0])
    ends = LANES + len(vms) * LANE_WORDS
    queues = _queues(context)
    starts = ends + np.cumsum([0, *(len(queue) for queue in queues)])
    ints = np.concatenate([np.zeros(ends, np.int64), *queues])
    lanes = ints[LANES:ends].reshape(-1, LANE_WORDS)
    lanes[:used, NEXT] = starts[vms[:used]]
    ints[OVERHEAD] = round(inject + 2 * switch + ready)
    ints[READY_NS] = ready
    ints[HALTS] = ev.ON_HOST | (ev.IN_KERNEL if context.text("mode") == "user" else 0)
    return Setup(ints=ints)


def _queues(context: Context) -> list[NDArray[np.int64]]:
    """Return for each VM when (ns) its vCPUs' other threads were how many, as pairs; the last is never."""
    given = context.params["runnable"]
    recorded = _recorded(context) if given == RECORDED else []
    found = []
    for vm in range(context.timeline.vms):
        if context.hypothesis == "low":
            pairs = [-delays.NEVER, 0]
        elif context.hypothesis == "high":
            pairs = [-delays.NEVER, 0 if given == 0 else OUTSTANDING_PER_VCPU]
        elif given == RECORDED:
            pairs = recorded[vm]
        else:
            pairs = [-delays.NEVER, min(int(context.number("runnable")), OUTSTANDING_PER_VCPU)]
        found.append(np.array([*pairs, delays.NEVER, 0], np.int64))
    return found


_read: WeakKeyDictionary[Timeline, list[list[int]]] = WeakKeyDictionary()
"""What `_recorded` found: each replay of a trace asks for it."""


def _recorded(context: Context) -> list[list[int]]:
    """Return the guests' own samples of their run queues as `_queues` does, the first from ever on.

    A VM whose guest has no fault in the trace needs none: nothing of it waits.
    """
    timeline, faults = context.timeline, context.survey.lane_faults.reshape(-1, 4, ev.LEVELS).sum(axis=2)
    if timeline in _read:
        return _read[timeline]
    waits = set(timeline.lanes.vm[faults[:, list(TAKEN_BY_GUEST)].any(axis=1)].tolist())
    samples: pl.DataFrame | None = getattr(timeline.trace, "samples", None)
    found = []
    for vm in range(timeline.vms):
        pairs = [] if samples is None else _pairs(samples.filter(pl.col("vm") == vm), timeline.start_ns)
        if not pairs and vm in waits:
            raise UsageError(
                f"the trace holds no samples of the run queue of VM {vm}",
                hint="epf,runnable=1; or tracekit record --guest in the VM, and tracekit merge",
            )
        found.append(pairs or [-delays.NEVER, 0])
    _read[timeline] = found
    return found


def _pairs(samples: pl.DataFrame, start_ns: int) -> list[int]:
    """Return the pairs of one VM by its samples; none if it has none. CPUs may come and go."""
    threads, cpus = (samples.filter(pl.col("metric") == one).sort("ts_ns") for one in (_THREADS, _CPUS))
    if threads.is_empty() or cpus.is_empty():
        return []
    newest = np.searchsorted(cpus["ts_ns"].to_numpy(), threads["ts_ns"].to_numpy(), side="right") - 1
    share = np.fmax(cpus["value"].to_numpy()[np.maximum(newest, 0)], 1.0)
    others = np.nan_to_num(threads["value"].to_numpy() // share - 1)
    when = threads["ts_ns"].to_numpy().astype(np.int64) - start_ns
    when[0] = -delays.NEVER  # a fault may have begun before the recording
    most = np.clip(others, 0, OUTSTANDING_PER_VCPU).astype(np.int64)
    return [int(one) for pair in zip(when, most, strict=True) for one in pair]


def finish(context: Context, world: World, own: Own, me: int) -> None:
    """Work is not done before its last page is there: each vCPU waits for what is outstanding."""
    tick(world, 0, own, me)
    words = len(context.timeline.lanes.vm) * LANE_WORDS
    lanes = own.ints[LANES : LANES + words].reshape(-1, LANE_WORDS)
    for lane in np.flatnonzero(lanes[:, COUNT]).tolist():
        there = int(lanes[lane, QUEUE : QUEUE + lanes[lane, COUNT]].max())
        end = int(world.clock[CLOCK_END]) - int(world.shift[lane])
        if there > end and world.clock[CLOCK_CLOSED]:
            advance(world, lane, end - there)


def bounded(context: Context) -> bool:
    """What could run meanwhile is not in a trace of faults."""
    return True


def label(context: Context) -> str:
    """The figure stands on `runnable`, which somebody said or the guest's samples say."""
    return "measured" if context.params["runnable"] == RECORDED else "assumed"


def calm(context: Context) -> Mapping[int, int]:
    """Only faults that waited for I/O, or that another mechanism makes wait for it, count."""
    return dict.fromkeys(set(ev.CALM_ALL) - {ev.CALM_MAJOR}, 0)


MECHANISM = Mechanism(
    name="epf",
    summary="the guest runs another thread while a fault waits for I/O",
    stage=Stage.SERVE,
    params=(
        Param(
            "runnable",
            -1,
            "other threads per vCPU that could run during a wait (0 = none; recorded = as the guest sampled)",
            low=0,
            words=(RECORDED,),
            required=True,
        ),
        Param("mode", "user", "where the guest takes part: user mode only, or any", choices=("user", "any")),
    ),
    page_words=WORDS,
    moves_pages=False,
    look=look,
    fault=fault,
    tick=tick,
    setup=setup,
    calm=calm,
    finish=finish,
    bounded=bounded,
    label=label,
)
