"""zeroing_after_reuse: memory that the host took and gave back comes zeroed, so the guest need not zero it
again.

Nobody has this: Hyper-V's 0x8002 speaks of boot-zeroed memory only. Pages that a balloon, a free page
report or a cold-discard took, and that the host backs again on the next touch, are zeroed by the host as
every new page is.

With guest events the saving is exact: the zeroed page_alloc of a page that was taken since its last use.
On a host-only trace it lies between nothing and all refaults by writes on pages that were taken. The
fault itself is not saved here: the guest is about to use the page.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from tracekit.replay import events as ev
from tracekit.replay.accounts import CANDIDATES, ZEROING_SPARED, count
from tracekit.replay.events import Event
from tracekit.replay.jit import hot
from tracekit.replay.mechanisms import Context, Mechanism, Own, Setup, Stage
from tracekit.replay.pages import B_BACKED, C_BACKED, C_TAKEN, DROPPED, World

__all__ = ["MECHANISM"]

# m.par
GUEST_EVENTS, UNKNOWN_IS_ZEROING, NOT_BY_GUEST = range(3)


@hot
def fresh(w: int) -> bool:
    """Say whether the next touch gets a page from the host that a discard took before."""
    return bool((w & DROPPED and not w & B_BACKED) or (w & C_TAKEN and not w & C_BACKED))


@hot
def fault(s: World, e: Event, w: int, verdict: int, service: int, m: Own, me: int) -> tuple[int, int, int]:
    """Without guest events: a write to a page that was taken may be its zeroing."""
    others = ev.MAJOR | int(m.par[NOT_BY_GUEST])
    if m.par[GUEST_EVENTS] == 0 and e.bits & (ev.WRITE | others) == ev.WRITE and fresh(w):
        count(s, me, CANDIDATES, e.pages)
        if m.par[UNKNOWN_IS_ZEROING] != 0:
            count(s, me, ZEROING_SPARED, e.pages)
    return w, verdict, service


@hot
def event(s: World, e: Event, w: int, m: Own, me: int) -> int:
    """With guest events: the guest zeroes what it allocates; the host will have zeroed it just before."""
    if e.op == ev.ALLOC and e.bits & ev.ZEROED and m.par[GUEST_EVENTS] != 0 and fresh(w):
        count(s, me, CANDIDATES, 1)
        count(s, me, ZEROING_SPARED, 1)
    return w


def setup(context: Context) -> Setup:
    """Unknown writes count by hypothesis."""
    return Setup(
        par=[
            float(context.survey.guest_events),
            float(context.hypothesis != "low"),
            context.timeline.not_by_the_guest,
        ]
    )


def costs(tally: NDArray[np.int64], context: Context) -> Mapping[str, Mapping[str, float]]:
    """Price the guest's zeroing that is not done any more."""
    return {
        "guest_cpu": {"guest_zero_4k": -float(tally[ZEROING_SPARED])},
        "baseline:guest_cpu": {"guest_zero_4k": float(tally[CANDIDATES])},
    }


def block_local(context: Context) -> bool:
    """Only the page itself counts."""
    return True


def bounded(context: Context) -> bool:
    """Only page_alloc events tell zeroing from use."""
    return not context.survey.guest_events


def label(context: Context) -> str:
    """Guest events make it exact."""
    return "bounded" if bounded(context) else "measured"


def calm(context: Context) -> Mapping[int, int]:
    """Only the next touch of a page that was taken counts."""
    return {**dict.fromkeys(ev.CALM_ALL, 0), ev.CALM_ALLOC: DROPPED}


MECHANISM = Mechanism(
    name="zeroing_after_reuse",
    summary="memory that the host took and gave back counts as zeroed",
    stage=Stage.SPARE,
    params=(),
    fault=fault,
    event=event,
    setup=setup,
    calm=calm,
    costs=costs,
    block_local=block_local,
    bounded=bounded,
    label=label,
)
