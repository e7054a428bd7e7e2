"""balloon: a monitor looks at the VM every `interval_s` and moves a balloon towards its target.

Policies:

- `monitor`: needs page_alloc and page_free. At each sample the balloon takes the memory that has been free
  longest until `free_mib` stay free (with `target_mib`: all that the VM has above it, and first what was
  freed last, as Linux gives it out), at most `step_mib` a time, and gives back in the same way. A page that
  is allocated out of the balloon faults again; if nothing else was free, the allocation waits for the next
  sample too (the reaction lag). A guest with free memory gives out that first, whatever page the recording
  names: at the worst (low) it waits once as many were allocated since a sample as it left free.
- `recorded`: the discards of the trace, without the lag of the monitor that made them: up to one `interval_s`
  earlier, but not before the page's last visible use. Half an interval is the mean lag of a periodic sample.

With a target the guest may fill its balloon with memory that nothing ever backed: then only what the host
holds above the target is taken (low). At most, all of the balloon is memory that the host gets back (high).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tracekit.errors import UsageError
from tracekit.replay import events as ev
from tracekit.replay.accounts import RANGES, REFAULT, UNMAPS, add_fault, advance, count, wait
from tracekit.replay.events import Event
from tracekit.replay.jit import hot, prefetch
from tracekit.replay.mechanisms import Context, Mechanism, Own, Param, Setup, Stage
from tracekit.replay.pages import B_BACKED, C_BACKED, CLOCK_END, World, back, drop
from tracekit.trace.schema import PAGE_BYTES

__all__ = ["MECHANISM"]

# m.par
MONITOR, GROUP, STEP, LEAVE, TARGET, SIZE, WAITS, LAG, GOES = range(9)
# Of WAITS: when an allocation waits for the next sample.
NEVER, WHEN_NONE_IS_SEEN_FREE, WHEN_NONE_IS_LEFT = range(3)
FREE_LONGEST, FREED_LAST, FREED_LAST_AND_BACKED = range(3)  # of GOES: what goes into the balloon first
# m.ints: time of the next sample, interval; of the groups allocated out of the balloon, for how many the
# guest took others that were free; head, tail and length of two lists; by lane the sample it waited for last.
NEXT_SAMPLE, INTERVAL, INSTEAD, LISTS = range(4)
FREE, BALLOON = 0, 1  # the lists of groups: free in the guest, in the balloon
HEAD, TAIL, LENGTH, LIST_CELLS = range(4)
WAITED: Final = LISTS + 2 * LIST_CELLS
# Words of a page: what it is, then (of the first page of a group) its neighbours in a list, + 1; 0 = none.
INFO, BEFORE, AFTER, WORDS = range(4)
IS_FREE: Final = 1  # of INFO: the page is free in the guest
IN_LIST: Final = 2  # of a group's first page: 2 = in the list FREE, 4 = in the list BALLOON
LISTED: Final = 6
ONE_FREE: Final = 8  # of a group's first page: from this bit on, how many of its pages are free


@hot
def append(m: Own, which: int, group: int) -> None:
    """Put a group, named by its first page, at the end of a list."""
    cells = LISTS + which * LIST_CELLS
    last = m.ints[cells + TAIL]
    m.page[group * WORDS + BEFORE] = last
    m.page[group * WORDS + AFTER] = 0
    if last > 0:
        m.page[(last - 1) * WORDS + AFTER] = group + 1
    else:
        m.ints[cells + HEAD] = group + 1
    m.ints[cells + TAIL] = group + 1
    m.ints[cells + LENGTH] += 1
    m.page[group * WORDS + INFO] |= IN_LIST << which


@hot
def remove(m: Own, which: int, group: int) -> None:
    """Take a group out of the list that it is in."""
    cells = LISTS + which * LIST_CELLS
    earlier, later = m.page[group * WORDS + BEFORE], m.page[group * WORDS + AFTER]
    if earlier > 0:
        m.page[(earlier - 1) * WORDS + AFTER] = later
    else:
        m.ints[cells + HEAD] = later
    if later > 0:
        m.page[(later - 1) * WORDS + BEFORE] = earlier
    else:
        m.ints[cells + TAIL] = earlier
    m.ints[cells + LENGTH] -= 1
    m.page[group * WORDS + INFO] &= ~LISTED


@hot
def note_free(m: Own, page: int) -> None:
    """A page was freed; once its whole group is free, the balloon may have it."""
    size = int(m.par[GROUP])
    group = page - page % size
    if m.page[page * WORDS + INFO] & IS_FREE:
        return
    m.page[page * WORDS + INFO] |= IS_FREE
    m.page[group * WORDS + INFO] += ONE_FREE
    if m.page[group * WORDS + INFO] // ONE_FREE == size:
        append(m, FREE, group)


@hot
def note_used(m: Own, page: int) -> int:
    """A page is in use; return in which list its group was until now (IN_LIST << which; 0 = in none)."""
    group = page - page % int(m.par[GROUP])
    if not m.page[page * WORDS + INFO] & IS_FREE:
        return 0
    m.page[page * WORDS + INFO] &= ~IS_FREE
    m.page[group * WORDS + INFO] -= ONE_FREE
    listed = int(m.page[group * WORDS + INFO] & LISTED)
    left = m.ints[LISTS + LENGTH] - m.ints[INSTEAD]
    if listed == IN_LIST << FREE:
        remove(m, FREE, group)
        m.ints[INSTEAD] -= left <= 0  # nothing is left to be taken: this one comes out of the balloon instead
    elif listed == IN_LIST << BALLOON:
        remove(m, BALLOON, group)
        m.ints[INSTEAD] += left > 0
    return listed


@hot
def next_to_go(s: World, m: Own, group: int) -> int:
    """Return the next group from this one on that goes into the balloon; -1 = none."""
    size = int(m.par[GROUP])
    while group >= 0 and m.par[GOES] == FREED_LAST_AND_BACKED:
        for p in range(group, group + size):
            if s.words[p] & C_BACKED:
                return group
        group = m.page[group * WORDS + BEFORE] - 1
    return group


@hot
def settle(m: Own, wanted: int, step: int) -> None:
    """Say for how many groups others stay taken after a sample that moves `wanted` groups by the lists.

    A guest that has free memory gives out that, and not what is in its balloon: so fewer groups are free than
    the list says. A sample sees it and moves fewer; then as many are free either way, unless the step or the
    balloon's size stopped one of the two.
    """
    free, held = m.ints[LISTS + LENGTH], m.ints[LISTS + LIST_CELLS + LENGTH]
    instead = m.ints[INSTEAD]
    by_list = max(min(wanted, step, free), -min(step, held))
    really = max(min(wanted - instead, step, free - instead), -min(step, held + instead))
    m.ints[INSTEAD] = max(instead + really - by_list, 0)


@hot
def sample(s: World, at: int, m: Own, me: int) -> None:
    """Look once: inflate or deflate by as many groups as the target asks and the step allows."""
    size = int(m.par[GROUP])
    free, held = m.ints[LISTS + LENGTH], m.ints[LISTS + LIST_CELLS + LENGTH]
    if m.par[TARGET] < 0:
        wanted = free - int(m.par[LEAVE]) // size
    elif m.par[SIZE] < 0:
        excess = s.resident[0] - int(m.par[TARGET])
        wanted = -(-excess // size)
    else:
        wanted = (int(m.par[SIZE]) - int(m.par[TARGET])) // size - held
    step = int(m.par[STEP]) // size
    settle(m, wanted, step)
    oldest = m.par[GOES] == FREE_LONGEST
    following = m.ints[LISTS + (HEAD if oldest else TAIL)] - 1
    for _ in range(min(wanted, step, free)):
        group = next_to_go(s, m, following)
        if group < 0:
            break
        following = m.page[group * WORDS + (AFTER if oldest else BEFORE)] - 1
        remove(m, FREE, group)
        append(m, BALLOON, group)
        taken = 0
        for p in range(group, group + size):
            if s.words[p] & C_BACKED:
                s.words[p] = drop(s, s.words[p], at, me)
                taken += 1
        count(s, me, UNMAPS, taken)
        if taken > 0:
            count(s, me, RANGES, 1)
    for _ in range(min(-wanted, step, held)):
        group = m.ints[LISTS + LIST_CELLS + TAIL] - 1
        remove(m, BALLOON, group)
        append(m, FREE, group)


@hot
def tick(s: World, now: int, m: Own, me: int) -> None:
    """Make the samples that are due."""
    while m.par[MONITOR] != 0 and m.ints[NEXT_SAMPLE] <= now:
        sample(s, m.ints[NEXT_SAMPLE], m, me)
        m.ints[NEXT_SAMPLE] += m.ints[INTERVAL]


@hot
def look(s: World, e: Event, w: int, m: Own, me: int) -> int:
    """Note the last visible use of a page for the recorded discards."""
    if m.par[MONITOR] == 0 and e.op in (ev.FAULT, ev.ACCESSED, ev.ALLOC, ev.POPULATE, ev.SWAP_IN):
        m.page[e.page * WORDS + INFO] = e.end
    return w


@hot
def fetch(page: int, m: Own) -> None:
    """Call what is known of the page into the cache."""
    prefetch(m.page, page * WORDS)


@hot
def fault(s: World, e: Event, w: int, verdict: int, service: int, m: Own, me: int) -> tuple[int, int, int]:
    """A page that faults is in use, whether or not its allocation was seen."""
    if m.par[MONITOR] != 0:
        note_used(m, e.page)
    return w, verdict, service


@hot
def event(s: World, e: Event, w: int, m: Own, me: int) -> int:
    """Follow what is free; let an allocation out of the balloon fault, and wait if it must."""
    if m.par[MONITOR] == 0:
        if e.op == ev.DROP and w & C_BACKED:
            w = drop(s, w, max(m.page[e.page * WORDS + INFO], e.end - int(m.par[LAG]), 0), me)
        return w
    if e.op == ev.FREE:
        note_free(m, e.page)
    elif e.op == ev.ALLOC:
        w = allocate(s, e, w, m, me)
    return w


@hot
def allocate(s: World, e: Event, w: int, m: Own, me: int) -> int:
    """Take a page into use; one that must come out of the balloon waits for the sample that gives it back."""
    free, instead = m.ints[LISTS + LENGTH], m.ints[INSTEAD]
    listed = note_used(m, e.page)
    comes_back = listed == IN_LIST << BALLOON and w & B_BACKED != 0 and not w & C_BACKED
    if m.par[WAITS] == WHEN_NONE_IS_LEFT:
        waits = listed != 0 and free <= instead
    else:
        waits = comes_back and free == 0 and m.par[WAITS] == WHEN_NONE_IS_SEEN_FREE
    # A lane waits once for a sample: what it asks for afterwards comes after it, in an open loop too.
    if not waits or m.ints[WAITED + e.lane] == m.ints[NEXT_SAMPLE]:
        return w
    m.ints[WAITED + e.lane] = m.ints[NEXT_SAMPLE]
    cls = ev.EPT * ev.LEVELS + 1
    ns = max(m.ints[NEXT_SAMPLE] - e.end, 0)
    if comes_back:
        ns += s.cost[cls]
        add_fault(s, e.lane, me, REFAULT, cls, ns)
        advance(s, e.lane, -ns)
        w = back(s, w, e.end + ns, 0)
    else:
        wait(s, e.lane, me, cls, ns)
    return w


def setup(context: Context) -> Setup:
    """Check that the trace holds what the policy needs; say when an allocation waits."""
    monitor = context.text("policy") == "monitor"
    seen = context.survey.counts
    if monitor and not (seen[ev.FREE] and seen[ev.ALLOC]):
        raise UsageError(
            "balloon needs the guest's page_alloc and page_free events, and this trace has none",
            hint="tracekit record --guest, then tracekit merge; or policy=recorded for recorded discards",
        )
    if not monitor and not seen[ev.DROP]:
        raise UsageError(
            "balloon policy recorded needs discards (balloon_inflate, madvise), and this trace has none",
            hint="policy=monitor on a trace with guest events",
        )
    size = context.timeline.memory_bytes
    target = context.number("target_mib")
    if monitor and target > 0 and size is None:
        raise UsageError("a balloon target needs the size of the VM, and this trace has no memslots",
                         hint="free_mib=…")  # fmt: skip
    mib = float(1 << 20) / PAGE_BYTES
    interval = context.number("interval_s") * 1e9
    group = ev.BLOCK_PAGES if context.text("page") == "2m" else 1
    step = context.number("step_mib") * mib or float(1 << 62)
    end = context.hypothesis
    ints = np.zeros(WAITED + len(context.timeline.lanes.vm), np.int64)
    ints[NEXT_SAMPLE] = ints[INTERVAL] = interval
    return Setup(
        par=[
            float(monitor),
            group,
            max(step, group),
            context.number("free_mib") * mib,
            target * mib if target > 0 else -1.0,
            float((size or 0) // PAGE_BYTES) if end != "low" else -1.0,
            {"low": WHEN_NONE_IS_LEFT, "high": NEVER}.get(end, WHEN_NONE_IS_SEEN_FREE),
            interval * {"low": 0.0, "high": 1.0}.get(end, 0.5),
            {"low": FREE_LONGEST, "high": FREED_LAST_AND_BACKED}.get(end, FREED_LAST)
            if target > 0
            else FREE_LONGEST,
        ],
        ints=ints,
    )


def finish(context: Context, world: World, own: Own, me: int) -> None:
    """Make the samples between the last event and the end."""
    tick(world, int(world.clock[CLOCK_END]) - int(world.shift.max(initial=0)), own, me)


def costs(tally: NDArray[np.int64], context: Context) -> Mapping[str, Mapping[str, float]]:
    """Price the discards that the recording has not; they run beside the vCPUs' own work."""
    if context.text("page") == "2m":
        return {"host_cpu_background": {"unmap_2m": float(tally[RANGES])}}
    return {"host_cpu_background": {"unmap_4k": float(tally[UNMAPS])}}


def bounded(context: Context) -> bool:
    """Which free memory fills the balloon, and whether an allocation had to wait, is the guest's business."""
    return True


def label(context: Context) -> str:
    """What is free is recorded; that a page is touched when it is allocated is the most that can happen."""
    return "bounded"


MECHANISM = Mechanism(
    name="balloon",
    summary="a monitor samples the VM and moves a balloon towards its target",
    stage=Stage.TAKE,
    params=(
        Param("policy", "monitor", "who inflates", choices=("monitor", "recorded")),
        Param("interval_s", 10.0, "how often the monitor looks: its reaction lag", unit="s", low=0.001),
        Param("free_mib", 256.0, "free memory to leave to the guest", unit="MiB", low=0),
        Param("target_mib", 0.0, "size that the VM is to have, instead of free_mib", unit="MiB", low=0),
        Param("step_mib", 0.0, "most that one sample moves (0 = no limit)", unit="MiB", low=0),
        Param("page", "4k", "what the balloon is made of", choices=("4k", "2m")),
    ),
    page_words=WORDS,
    fetch=fetch,
    look=look,
    fault=fault,
    event=event,
    tick=tick,
    setup=setup,
    finish=finish,
    costs=costs,
    bounded=bounded,
    label=label,
)
