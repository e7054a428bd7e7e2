"""hot_hint: the host backs pages in the background before they are touched (Hyper-V 0x8003 hot, prefault).

One background worker takes the hints in order; a page takes `prefault_*` of the cost profile. A worker that
sleeps when a batch of hints comes begins `worker_wake` later: it has to get a CPU. That time is drawn anew
for each batch, between the ends of the cost's range (its 10th and 90th percentile), with its median.
A prefault that is done in time removes the fault; one under way shortens it to the rest of its own time; one
not begun is dropped, and the fault happens as recorded. As in `prealloc`, `via=populate` fills the host's
page table only: a prefault in time leaves the guest's exit, at `ept_backed_4k`, and one under way adds that
to its rest (the exit is over before the fill is waited for: an upper bound). `via=pre_fault` removes the
exit, and the worker takes `map_ahead` longer for each page. Policies:

- `oracle`: each first touch is hinted `lead_ms` before it happens. No real policy hints better.
- `stride`: the host sees two equal strides in a lane's faults and backs the next `n` pages along it.
- `previous`: the first touches of an earlier run (`train`, a trace) at the same offset, `lead_ms` before.
- `on_alloc`: the guest hints each page it allocates (needs page_alloc events).
- `recorded`: the hot hints that the guest really gave.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from tracekit.errors import UsageError
from tracekit.replay import delays
from tracekit.replay import events as ev
from tracekit.replay.accounts import (
    HIT,
    HYPERCALLS,
    KEPT,
    LATE,
    PREFAULTS,
    PREFAULTS_2M,
    PREFAULTS_UNUSED,
    RANGES,
    SHORTENED,
    SKIPPED,
    advance,
    count,
)
from tracekit.replay.costs import Cost
from tracekit.replay.events import Event
from tracekit.replay.jit import hot, int64, prefetch, rare
from tracekit.replay.mechanisms import Context, Mechanism, Own, Param, Setup, Stage
from tracekit.replay.pages import (
    B_BACKED,
    C_BACKED,
    C_UNMAPPED,
    C_UNUSED,
    CLOCK_AROUND,
    CLOCK_END,
    UNSEEN,
    World,
    back,
    gfn_of,
    neighbour,
    owner_of,
    resident_change,
)

__all__ = ["MECHANISM"]

POLICIES = ("oracle", "stride", "previous", "on_alloc", "recorded")
ORACLE, STRIDE, PREVIOUS, ON_ALLOC, RECORDED = range(5)
# m.par: what a page of 4K and of 2M takes the worker
OF_4K, OF_2M = range(2)
# m.ints: what is in force; worker's next free time, hints in the open hypercall, hints that still join the
# worker's batch, batches so far, when the worker is up for the batch; then four words per lane, then what
# waking takes, then the `plan` of policy previous
POLICY, LEAD, WINDOW, COST_4K, BATCH, HYPERCALL, UNMAPPED = range(7)
FREE_AT, IN_CALL, TO_JOIN, BATCHES, UP_AT, STREAMS = range(7, 13)
LAST, STRIDE_OF, RUN, EXPECTED, STREAM_WORDS = 0, 1, 2, 3, 4
LANE_SLOTS = 4096
REACH = ev.BLOCK_PAGES  # a stride is no longer than this
WAKES = STREAMS + LANE_SLOTS * STREAM_WORDS
WAKES_KEPT, WAKES_STEP = 64, 39  # so many equally likely values, taken in an order without a trend
PLAN = WAKES + WAKES_KEPT
# Under shadow paging one fault maps 2^GROUP_SHIFT pages; m.block: 1 + when an exit last mapped each group.
GROUP_SHIFT = 3


@hot
def cost_of(m: Own, pages: int, bits: int, latency: int) -> int:
    """Return the worker's time for a page or a block, ns; a page on a device takes its recorded time."""
    if bits & ev.MAJOR:
        return latency
    if pages == 1:
        return int(m.ints[COST_4K])
    return int(m.par[OF_2M] if pages == ev.BLOCK_PAGES else m.par[OF_4K] * pages)


@hot
def awake(m: Own, issued: int) -> int:
    """Return when the worker is up for a hint: it sleeps, unless it is busy, when a batch begins."""
    if m.ints[TO_JOIN] == 0:
        late = 0
        if m.ints[FREE_AT] <= issued:
            late = m.ints[WAKES + m.ints[BATCHES] * WAKES_STEP % WAKES_KEPT]
        m.ints[UP_AT] = issued + late
        m.ints[TO_JOIN] = m.ints[BATCH]
        m.ints[BATCHES] += 1
    m.ints[TO_JOIN] -= 1
    return max(issued, int(m.ints[UP_AT]))


@hot
def prefault(s: World, p: int, n: int, issued: int, cost: int, m: Own, me: int) -> None:
    """Let the worker back `n` pages from `p` on; m.page[p] becomes the time when they are ready.

    What it would only begin after the end of the trace does not happen in it.
    """
    done = max(issued, m.ints[FREE_AT]) + cost
    m.ints[FREE_AT] = done
    if done - cost >= s.clock[CLOCK_END]:
        return
    m.page[p] = done
    count(s, me, PREFAULTS_2M if n == ev.BLOCK_PAGES else PREFAULTS, 1 if n == ev.BLOCK_PAGES else n)
    s.words[p] = back(s, int64(s.words[p]), done, me) | C_UNUSED | m.ints[UNMAPPED]
    for rest in range(p + 1, p + n):
        if not s.words[rest] & C_BACKED:
            s.words[rest] = back(s, int64(s.words[rest]), done, me) | m.ints[UNMAPPED]


@hot
def say_hint(s: World, lane: int, m: Own, me: int) -> None:
    """Give one hint from the guest: every `batch`-th is a hypercall on the lane's path."""
    count(s, me, RANGES, 1)
    if m.ints[IN_CALL] == 0:
        count(s, me, HYPERCALLS, 1)
        advance(s, lane, -int64(m.ints[HYPERCALL]))
    m.ints[IN_CALL] += 1
    if m.ints[IN_CALL] >= m.ints[BATCH]:
        m.ints[IN_CALL] = 0


@hot
def oracle(s: World, e: Event, w: int, service: int, m: Own, me: int) -> tuple[int, int, int]:
    """Hint this first touch `lead` before it happens."""
    issued = awake(m, max(e.start - m.ints[LEAD], 0))
    begun = max(issued, m.ints[FREE_AT])
    if begun >= e.start:
        count(s, me, LATE, 1)
        return w, KEPT, service
    say_hint(s, e.lane, m, me)
    s.words[e.page] = w
    prefault(s, e.page, e.pages, issued, cost_of(m, e.pages, e.bits, e.latency), m, me)
    return served(s, e, s.words[e.page], service, m, me)


@hot
def served(s: World, e: Event, w: int, service: int, m: Own, me: int) -> tuple[int, int, int]:
    """Return what a fault becomes on a page that the worker was given: nothing, a rest, or itself."""
    ready = abs(m.page[e.page])  # previous: negative once it is served, so that it is not begun again
    exits = w & C_UNMAPPED != 0 and not e.bits & ev.ON_HOST
    if exits and s.clock[CLOCK_AROUND] > 1:
        # An exit on a neighbour mapped this page too, if the worker had it by then.
        if m.block[e.page >> GROUP_SHIFT] > ready:
            exits = False
        else:
            m.block[e.page >> GROUP_SHIFT] = e.start + 1
    if ready <= e.start and not exits:
        return w, HIT, 0
    if ready > e.start:
        count(s, me, LATE, 1)
        if ready - cost_of(m, e.pages, e.bits, e.latency) >= e.start:
            return w, KEPT, service
    rest = max(int(ready) - e.start, 0) + (int(s.cost[ev.BACKED_AHEAD]) if exits else 0)
    if rest >= service:
        return w, KEPT, service
    return w, SHORTENED, rest


@hot
def follow_stride(s: World, e: Event, m: Own, me: int) -> None:
    """Look for a stride in this lane's faults; run ahead of it by the window."""
    at = STREAMS + (e.lane & LANE_SLOTS - 1) * STREAM_WORDS
    last, stride = m.ints[at + LAST] - 1, m.ints[at + STRIDE_OF]
    gfn = gfn_of(s, e.page)
    distance = gfn - last
    m.ints[at + LAST] = gfn + 1
    going_on = m.ints[at + RUN] > 0 and gfn == m.ints[at + EXPECTED]
    if not going_on:
        m.ints[at + RUN] = 0
        m.ints[at + STRIDE_OF] = distance if last >= 0 else 0
        if last < 0 or distance == 0 or distance != stride or abs(distance) > REACH:
            return
    stride = m.ints[at + STRIDE_OF]
    m.ints[at + RUN] = 1
    window = m.ints[WINDOW]
    m.ints[at + EXPECTED] = gfn + stride * (window + 1)
    last_of_them = (e.page & ev.BLOCK_PAGES - 1) + stride * window
    if not 0 <= last_of_them < ev.BLOCK_PAGES:
        guess_beyond(s, e.page, stride, e.end, m, me)
        return
    p = e.page
    for _ in range(window):
        p += stride
        if s.words[p] & (C_BACKED | B_BACKED) == 0:
            prefault(s, p, 1, e.end, m.ints[COST_4K], m, me)


@rare
def guess_beyond(s: World, page: int, stride: int, at: int, m: Own, me: int) -> None:
    """Run ahead of a stride by the window where that leaves the page's block."""
    for k in range(1, m.ints[WINDOW] + 1):
        p = neighbour(s, page, stride * k)
        if p == UNSEEN:  # nothing in the trace ever names its block: a wrong guess for ever
            m.ints[FREE_AT] = max(at, m.ints[FREE_AT]) + m.ints[COST_4K]
            if m.ints[FREE_AT] - m.ints[COST_4K] >= s.clock[CLOCK_END]:
                continue
            count(s, me, PREFAULTS, 1)
            count(s, me, PREFAULTS_UNUSED, 1)
            resident_change(s, m.ints[FREE_AT], 1)
        elif p >= 0 and s.words[p] & (C_BACKED | B_BACKED) == 0:
            prefault(s, p, 1, at, m.ints[COST_4K], m, me)


@hot
def look(s: World, e: Event, w: int, m: Own, me: int) -> int:
    """A page of the previous run was begun at its time, whether or not anything happened to it here."""
    if m.ints[POLICY] != PREVIOUS or m.page[e.page] <= 0 or w & (C_BACKED | B_BACKED | C_UNUSED):
        return w
    if m.page[e.page] - m.ints[COST_4K] < e.start:
        w = back(s, w, m.page[e.page], me) | C_UNUSED | int64(m.ints[UNMAPPED])
        m.page[e.page] = -m.page[e.page]
    return w


@hot
def fetch(page: int, m: Own) -> None:
    """Call what is known of the page into the cache."""
    prefetch(m.page, page)


@hot
def fault(s: World, e: Event, w: int, verdict: int, service: int, m: Own, me: int) -> tuple[int, int, int]:
    """Serve a fault on a hinted page, or hint by the oracle, or learn the stride."""
    if w & B_BACKED:
        return w, verdict, service
    policy = m.ints[POLICY]
    if verdict != SKIPPED and w & C_BACKED and owner_of(w) == me:
        return served(s, e, w, e.latency, m, me)
    if policy == PREVIOUS and m.page[e.page] > 0:
        m.page[e.page] = -m.page[e.page]  # touched before the worker began it
        count(s, me, LATE, 1)
    if verdict != KEPT or w & C_BACKED:
        return w, verdict, service
    if policy == ORACLE:
        return oracle(s, e, w, service, m, me)
    if policy == STRIDE:
        follow_stride(s, e, m, me)
    return w, verdict, service


@hot
def event(s: World, e: Event, w: int, m: Own, me: int) -> int:
    """Hint what the guest allocates, or take the hints it really gave."""
    policy = m.ints[POLICY]
    wanted = (policy == ON_ALLOC and e.op == ev.ALLOC) or (
        policy == RECORDED and e.op == ev.HINT and e.bits & ev.HINT_HOT != 0
    )
    if wanted and not w & (B_BACKED | C_BACKED):
        if policy == ON_ALLOC:
            say_hint(s, e.lane, m, me)
        s.words[e.page] = w
        prefault(s, e.page, 1, awake(m, e.end), m.ints[COST_4K], m, me)
        w = s.words[e.page]
    return w


def wakes(cost: Cost, hypothesis: str) -> NDArray[np.int64]:
    """Return equally likely times to wake up, ns; a hypothesis takes an end of the range for all.

    Half of the times are lognormal below the median, half above, each with the spread of its side: a worker
    has a CPU at once, or waits for a slice of somebody else's.
    """
    if hypothesis in ("low", "high"):
        return np.full(WAKES_KEPT, round(cost.high if hypothesis == "low" else cost.low), np.int64)
    low, middle, high = (max(one, 1.0) for one in (cost.low, cost.ns, cost.high))
    normal = NormalDist()
    found = np.zeros(WAKES_KEPT, np.int64)
    for k in range(WAKES_KEPT if cost.high else 0):
        z = normal.inv_cdf((k + 0.5) / WAKES_KEPT) / normal.inv_cdf(0.9)
        drawn = middle * ((high / middle) ** z if z > 0 else (low / middle) ** -z)
        found[k] = round(min(max(drawn, low), high))
    return found


def setup(context: Context) -> Setup:
    """Check that the trace holds what the policy needs."""
    policy = POLICIES.index(context.text("policy"))
    if policy == ON_ALLOC and not context.survey.counts[ev.ALLOC]:
        raise UsageError(
            "hot_hint policy on_alloc needs page_alloc events, and this trace has none",
            hint="record the guest side too (tracekit record --guest), or use policy=stride",
        )
    if policy == RECORDED and not context.survey.counts[ev.HINT]:
        raise UsageError(
            "hot_hint policy recorded needs the guest's own memory heat hints, and this trace has none",
            hint="use policy=oracle for the upper bound, or policy=stride",
        )
    if policy == PREVIOUS and not context.text("train"):
        raise UsageError("hot_hint policy previous needs an earlier run", hint="hot_hint.train=EARLIER.trace")
    worst = {"low": "high", "high": "low"}.get(context.hypothesis, "ns")
    cost = {name: float(getattr(one, worst)) for name, one in context.profile.costs.items()}
    mapping = cost["map_ahead"] if context.text("via") == "pre_fault" else 0.0
    of_4k, of_2m = (
        (cost[name] + mapping) / context.number("workers") for name in ("prefault_4k", "prefault_2m")
    )
    wake = wakes(context.profile.costs["worker_wake"], context.hypothesis)
    ints = np.append(np.zeros(WAKES, np.int64), wake)
    ints[POLICY] = policy
    ints[LEAD] = delays.whole(context.number("lead_ms") * 1e6)
    ints[WINDOW] = context.number("n")
    ints[COST_4K] = of_4k
    ints[BATCH] = context.number("batch")
    ints[HYPERCALL] = cost["hypercall"]
    ints[UNMAPPED] = 0 if context.text("via") == "pre_fault" else C_UNMAPPED
    if policy == PREVIOUS:
        ints = np.append(ints, plan(context, int(ints[COST_4K])))
    return Setup(par=[of_4k, of_2m], ints=ints)


def plan(context: Context, cost: int) -> NDArray[np.int64]:
    """Return how many of the previous run's pages the trace names, these, and when the worker has each ready.

    Then when it has those that nothing in the trace ever names. All in ns.
    """
    from tracekit.replay.training import first_touches

    gfns, starts = first_touches(context.text("train"))
    issued = np.maximum(starts - delays.whole(context.number("lead_ms") * 1e6), 0)
    # One worker in order: done[k] = max over j <= k of issued[j] + (k - j + 1) * cost.
    k = np.arange(len(issued), dtype=np.int64)
    done = np.maximum.accumulate(issued - k * cost) + (k + 1) * cost
    pages = np.array([context.timeline.index.known_page(vm, gfn) for vm, gfn in gfns.tolist()], np.int64)
    known = pages >= 0
    if not (known | (pages == UNSEEN)).any():
        raise UsageError(
            f"{context.text('train')} holds no first touch of this trace's memory",
            hint="an earlier run of the same VM, with the same number (tracekit info)",
        )
    return np.concatenate([[known.sum()], pages[known], done[known], done[pages == UNSEEN]])


def begin(context: Context, world: World, own: Own, me: int) -> None:
    """Lay out the previous run's first touches."""
    if context.text("policy") != "previous":
        return
    known = int(own.ints[PLAN])
    pages, ready = own.ints[PLAN + 1 : PLAN + 1 + 2 * known].reshape(2, -1)
    own.page[pages] = ready
    count(world, me, PREFAULTS, int((own.ints[PLAN + 1 + known :] <= world.clock[CLOCK_END]).sum()))


def finish(context: Context, world: World, own: Own, me: int) -> None:
    """Pages of the previous run that nothing touched here were backed all the same, up to the end."""
    if context.text("policy") != "previous":
        return
    end = int(world.clock[CLOCK_END]) - int(world.shift.max(initial=0))
    unseen = own.ints[PLAN + 1 + 2 * int(own.ints[PLAN]) :]
    for ready in unseen[unseen <= end].tolist():
        resident_change(world, ready, 1)
        count(world, me, PREFAULTS_UNUSED, 1)
    mine = own.page[: len(world.words)]
    untouched = np.flatnonzero((mine > 0) & (mine <= end) & (world.words & (B_BACKED | C_BACKED) == 0))
    for page in untouched.tolist():
        world.words[page] = back(world, int(world.words[page]), int(own.page[page]), me) | C_UNUSED


def costs(tally: NDArray[np.int64], context: Context) -> Mapping[str, Mapping[str, float]]:
    """Price the worker's time and the hypercalls."""
    small, large = float(tally[PREFAULTS]), float(tally[PREFAULTS_2M])
    mapped = small + large if context.text("via") == "pre_fault" else 0.0
    return {
        "host_cpu_background": {"prefault_4k": small, "prefault_2m": large, "map_ahead": mapped},
        "hypercall_time": {"hypercall": float(tally[HYPERCALLS])},
    }


def bounded(context: Context) -> bool:
    """What the worker takes, and what a fault on a backed page costs, has a range."""
    return True


def small_pages(context: Context) -> bool:
    """The worker backs what was hinted by 4 KiB pages."""
    return True


def label(context: Context) -> str:
    """What a hint that was never given would have done rests on the policy."""
    return "assumed"


def calm(context: Context) -> Mapping[int, int]:
    """A page that is backed needs no hint; of an earlier run, pages are begun at any event."""
    kinds = set(ev.CALM_ALL)
    if context.text("policy") == "previous":
        kinds -= {ev.CALM_FREE, ev.CALM_ACCESSED}
    return dict.fromkeys(kinds, 0)


MECHANISM = Mechanism(
    name="hot_hint",
    summary="the host backs hinted pages in the background before their first touch",
    stage=Stage.BACK,
    params=(
        Param("policy", "oracle", "who hints, and when", choices=POLICIES),
        Param("lead_ms", 10.0, "oracle, previous: how long before the touch", unit="ms", low=0),
        Param("n", 8, "stride: pages ahead", unit="pages", low=1, high=4096),
        Param("workers", 1, "background workers: the rate limit", low=1),
        Param("batch", 32, "ranges per hypercall (at most 511)", low=1, high=511),
        Param(
            "via",
            "populate",
            "fills the host's page table, or the guest's",
            choices=("populate", "pre_fault"),
        ),
        Param("train", "", "previous: the trace of the earlier run"),
    ),
    page_words=1,
    block_words=ev.BLOCK_PAGES >> GROUP_SHIFT,
    fetch=fetch,
    look=look,
    fault=fault,
    event=event,
    setup=setup,
    calm=calm,
    begin=begin,
    finish=finish,
    costs=costs,
    bounded=bounded,
    label=label,
    small_pages=small_pages,
)
