"""free_page_reporting: the guest reports blocks that stay free, the host discards them (virtio-balloon).

A block of 2^order pages that has been free for `delay_s` is reported; the host takes it by MADV_DONTNEED
(`discard=now`) or MADV_FREE (`discard=lazily`: only if the host comes under pressure, so the saving lies
between nothing and all of it). A page that is allocated again faults again, and comes zeroed. Linux
reports orders of at least pageblock_order (9) after PAGE_REPORTING_DELAY = 2 s, 32 blocks in a report
(mm/page_reporting.c). It leaves out a zone with less free memory than its low watermark and 32 blocks: that
is all of ZONE_DMA, the first 16 MiB, always (`from_mib`). Pages that its CPUs freed last stay on their own
lists, and a block of which one is there is not free (`pcp_pages`: of all CPUs, /proc/zoneinfo's `count`;
the oldest leave first; the high end is that none hold a block back). Frees before the recording are not
seen: memory free all along stays as it was.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tracekit.errors import UsageError
from tracekit.replay import delays, group_delays
from tracekit.replay import events as ev
from tracekit.replay.accounts import HYPERCALLS, RANGES, TALLIES
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
)
from tracekit.replay.index import VM_SHIFT
from tracekit.replay.jit import hot
from tracekit.replay.mechanisms import Abreast, Context, Mechanism, Own, Param, Setup, Stage
from tracekit.replay.pages import GUEST_FREE, World, gfn_of
from tracekit.trace.schema import PAGE_BYTES

__all__ = ["MECHANISM"]

# m.ints: what is in force, pages freed so far; then those freed last, + 1, in turn.
ORDER, DELAY, TAKES, FIRST_GFN, PCP, FREED, LISTS = range(7)

GFN_OF_VM: Final = (1 << VM_SHIFT) - 1


@hot
def fetch(page: int, m: Own) -> None:
    """Call the page's group into the cache."""
    fetch_group(m, page, m.ints[ORDER])


@hot
def look(s: World, e: Event, w: int, m: Own, me: int) -> int:
    """Take the block if it was due in the past."""
    return take_due(s, e.page, w, e.start, m, me, m.ints[ORDER])


@hot
def off_the_lists(m: Own, page: int) -> int:
    """Put a freed page on the CPUs' lists; return the one that leaves them for it, or -1."""
    at = LISTS + m.ints[FREED] % m.ints[PCP]
    oldest = m.ints[at] - 1
    m.ints[at] = page + 1
    m.ints[FREED] += 1
    return int(oldest)


@hot
def event(s: World, e: Event, w: int, m: Own, me: int) -> int:
    """Follow what is free."""
    if e.op == ev.FREE and m.ints[TAKES] != 0 and gfn_of(s, e.page) & GFN_OF_VM >= m.ints[FIRST_GFN]:
        page = e.page
        if m.ints[PCP] > 0:
            page = off_the_lists(m, page)
        if page == e.page or (page >= 0 and s.words[page] & GUEST_FREE):
            note_free(m, page, m.ints[ORDER], e.end + m.ints[DELAY])
    elif e.op == ev.ALLOC:
        note_used(m, e.page, m.ints[ORDER])
    return w


@hot
def fault(s: World, e: Event, w: int, verdict: int, service: int, m: Own, me: int) -> tuple[int, int, int]:
    """A page that faults is in use, whether or not its allocation was seen."""
    note_used(m, e.page, m.ints[ORDER])
    return w, verdict, service


def setup(context: Context) -> Setup:
    """Check that the trace tells what is free."""
    if not context.survey.counts[ev.FREE]:
        raise UsageError(
            "free_page_reporting needs the guest's page_free events, and this trace has none",
            hint="record the guest side too: tracekit record --guest, then tracekit merge",
        )
    lazily = context.text("discard") == "lazily"
    held = 0 if context.hypothesis == "high" else int(context.number("pcp_pages"))
    ints = np.zeros(LISTS + held, np.int64)
    ints[ORDER] = context.number("order")
    ints[DELAY] = delays.whole(context.number("delay_s") * 1e9)
    ints[TAKES] = not lazily or context.hypothesis != "low"
    ints[FIRST_GFN] = min(math.ceil(context.number("from_mib") * (1 << 20) / PAGE_BYTES), GFN_OF_VM)
    ints[PCP] = held
    return Setup(ints=ints)


def finish(context: Context, world: World, own: Own, me: int) -> None:
    """Take what stayed free to the end."""
    take_all_due(world, own, me, int(own.ints[ORDER]))
    into_reports(context, world, me)


def into_reports(context: Context, world: World, me: int) -> None:
    """Put the blocks into reports."""
    tally = world.tally.reshape(-1, TALLIES)[me]
    tally[HYPERCALLS] += -(-int(tally[RANGES]) // int(context.number("batch")))


def setup_abreast(contexts: Sequence[Context]) -> Setup:
    """Lay out delays."""
    first = setup(contexts[0]).ints
    waits = [int(setup(one).ints[DELAY]) for one in contexts]
    lanes = len(contexts[0].timeline.lanes.vm)
    return group_delays.setup(int(first[ORDER]), int(first[FIRST_GFN]), waits, lanes)


def abreast(context: Context) -> tuple[Abreast, Hashable, int] | None:
    """Settings that differ only in their delay go abreast."""
    ints = setup(context).ints
    if not ints[TAKES] or ints[PCP] or context.timeline.span_ns >= group_delays.LAST:
        return None
    return ABREAST, (int(ints[ORDER]), int(ints[FIRST_GFN])), int(ints[DELAY])


def calm(context: Context) -> Mapping[int, int]:
    """What is not free is of no interest."""
    return CALM_UNLESS_FREE


ABREAST = Abreast(
    most=group_delays.MOST,
    page_words=group_delays.WORDS,
    fetch=group_delays.fetch,
    look=group_delays.look,
    fault=group_delays.fault,
    event=group_delays.event,
    setup=setup_abreast,
    finish=group_delays.finish,
    one_of=delays.one_of,
    tally=into_reports,
    calm=calm,
)


def costs(tally: NDArray[np.int64], context: Context) -> Mapping[str, Mapping[str, float]]:
    """Price reports and discards."""
    return costs_of_taking(tally, whole_blocks=context.number("order") >= 9 and context.survey.large_pages)


def block_local(context: Context) -> bool:
    """CPUs' lists hold pages of all blocks; without them a group of pages is looked at, within a block."""
    return context.number("pcp_pages") == 0


def bounded(context: Context) -> bool:
    """MADV_FREE takes nothing, or all, or anything between; and which pages CPUs hold back is not traced."""
    return context.text("discard") == "lazily" or context.number("pcp_pages") > 0


def label(context: Context) -> str:
    """What is free is recorded; that a page is touched when it is allocated is the most that can happen."""
    return "bounded"


MECHANISM = Mechanism(
    name="free_page_reporting",
    summary="the guest reports free blocks, the host discards them",
    stage=Stage.TAKE,
    params=(
        Param("order", 9, "smallest block, 2^order pages of 4 KiB", low=0, high=9),
        Param("delay_s", 2.0, "how long a block is free before it is reported", unit="s", low=0),
        Param("batch", 32, "blocks in a report", low=1, high=511),
        Param("from_mib", 16.0, "guest memory below is not reported", unit="MiB", low=0),
        Param(
            "pcp_pages", 0, "pages that the guest's CPUs hold back on their free lists", "pages", 0, 1 << 24
        ),
        Param("discard", "now", "MADV_DONTNEED (now) or MADV_FREE (lazily)", choices=("now", "lazily")),
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
    block_local=block_local,
    abreast=abreast,
    bounded=bounded,
    label=label,
)
