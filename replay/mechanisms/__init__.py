"""The interface of a mechanism: one small file each; adding one touches nothing else.

A mechanism is a module of this package (found by its constant `MECHANISM`) or any `Mechanism` object that
you give to `tracekit.replay.run`. It has up to five *hooks*, plain functions marked `@hot`, written in the
part of Python that numba compiles (numbers, loops, the arrays it is given); the same functions run
uncompiled as the oracle of the tests. All times in hooks are counterfactual int64 ns since the start of
the trace. `s` is the shared `World`, `e` the `Event`, `w` the word of the event's first page (bits of
`tracekit.replay.pages`), `m` the mechanism's own arrays (`Own`), `me` its number (charge it: 1, 2, ...):

- `look(s, e, w, m, me) -> w`: brings the page up to date before anything else is decided. This is where
  things that were due in the past happen ("dropped 2 s after it was freed"), with their true past time.
- `fault(s, e, w, verdict, service, m, me) -> (w, verdict, service)`: a recorded fault. `verdict` is what
  mechanisms before it decided (`accounts.KEPT`: nothing yet; SHORTENED by the engine where a page of
  theirs is backed but not mapped, `pages.C_UNMAPPED`); `service` its service time so far. A hook
  that changes the verdict gets the credit. Mechanisms must leave a verdict other than KEPT (or, for the
  service time only, SHORTENED and REPRICED) as it is: no page is saved twice.
- `event(s, e, w, m, me) -> w`: any other event (ALLOC, FREE, DROP, HINT, ACCESSED, ...). It runs before the
  event's recorded effect on the page. Several pages: the hook sees the first and loops over
  `s.words[e.page + 1 : e.page + e.pages]` itself where it cares; `e.page` is -1 when unknown.
- `tick(s, now, m, me)`: called before every event with the time, for work of its own clock.
- `fetch(page, m)`: called some events ahead, to `prefetch` what the other hooks will read of that page (-1 =
  none); it must change nothing.

Hooks change pages only through `pages.back` and `pages.drop`, and counters only through
`accounts.count` and `accounts.add_fault`, so residency and conservation can't go wrong.

Order: mechanisms run by `stage` (SPARE: the guest does not touch the page at all; BACK: the page is there
already; SERVE: the fault is served differently; TAKE: memory is taken away), then by name. The waterfall of a
combination follows this order.

`setup(context)` returns the arrays: `par` (float64 parameters), `ints` (int64 scratch), and the bits
`initial` that a never-seen page starts with. `page_words` int64 per page are given in `m.page`
(index `e.page * page_words + k`; zero at first), `block_words` per block of 512 pages in `m.block`.
`begin(context, world, own, me)` may change the state before the first event, `finish` (same arguments)
after the last one; both are ordinary Python. `costs(tally, context)` prices its tallies: for each metric a
count for each cost of the profile. `block_local(context)` says that it looks at nothing but the event's own
block of 512 pages (then an open loop may go block by block, for sweeps). `abreast(context)` is for sweeps
too: how one walk through the events answers many settings, what these must have in common, and this one's
place in their order; None where it must go alone. `calm(context)` is for speed: on which kinds of events
(`events.CALM_…`) the hooks do nothing where the page is as the event leaves it, backed in both worlds if the
event uses it (`pages.calm_table`), and which further bits of its word must be clear for that. Kinds that are
not named are always shown. That a fault may map neighbours of its page the engine knows itself: only a
mechanism of stage BACK may leave pages that are backed and not mapped.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tracekit.replay.costs import Profile
    from tracekit.replay.pages import World
    from tracekit.replay.survey import Survey
    from tracekit.replay.timeline import Timeline

__all__ = ["Abreast", "Context", "Mechanism", "Own", "Param", "Setup", "Stage", "known_mechanisms"]

ParamValue = bool | int | float | str


class Stage(IntEnum):
    """When a mechanism acts on a fault: earlier stages are asked first."""

    SPARE = 0
    BACK = 1
    SERVE = 2
    TAKE = 3


class Own(NamedTuple):
    """The arrays of one mechanism: parameters, words per page, words per block, scratch."""

    par: NDArray[np.float64]
    page: NDArray[np.int64]
    block: NDArray[np.int64]
    ints: NDArray[np.int64]


@dataclass(frozen=True)
class Param:
    """A parameter of a mechanism: its default, unit, range or choices, and a line of help.

    A `required` one must be given, and stands in the name of every scenario that uses it. A number may be one
    of `words` instead.
    """

    name: str
    default: ParamValue
    help: str
    unit: str = ""
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    required: bool = False


@dataclass(frozen=True)
class Context:
    """What `setup` may look at. `hypothesis` is point, low or high: which end of what the trace allows."""

    timeline: Timeline
    survey: Survey
    profile: Profile
    params: Mapping[str, ParamValue]
    hypothesis: str
    seed: int

    def number(self, name: str) -> float:
        """Return a parameter as a number (a flag is 0 or 1)."""
        return float(self.params[name])

    def text(self, name: str) -> str:
        """Return a parameter as text."""
        return str(self.params[name])


@dataclass(frozen=True)
class Setup:
    """What `setup` returns; see the module's docstring."""

    par: Sequence[float] = ()
    ints: NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, np.int64))
    initial: int = 0


def _no_setup(context: Context) -> Setup:
    return Setup()


def _no_costs(tally: NDArray[np.int64], context: Context) -> Mapping[str, Mapping[str, float]]:
    return {}


def _same(context: Context) -> bool:
    return False


def _all_shown(context: Context) -> Mapping[int, int]:
    return {}


def _measured(context: Context) -> str:
    return "measured"


@dataclass(frozen=True, kw_only=True)
class Abreast:
    """How one walk through the events answers many settings of a mechanism that is alone in an open loop.

    Of at most `most` of them, in order, `setup` makes the arrays. The hooks stand in for the own ones and
    leave the world as if nothing was on; `finish` does what is due at the end. `one_of(world, own, me, k)`
    returns the world of the k-th setting so far, and `tally(context, world, me)` adds to it what only the
    end of a replay counts.
    """

    most: int
    page_words: int
    fetch: Callable[..., None]
    look: Callable[..., int]
    fault: Callable[..., tuple[int, int, int]] | None = None
    event: Callable[..., int] | None = None
    setup: Callable[[Sequence[Context]], Setup]
    finish: Callable[[World, Own, int], None]
    one_of: Callable[[World, Own, int, int], World]
    tally: Callable[[Context, World, int], None]
    calm: Callable[[Context], Mapping[int, int]] = _all_shown


def _alone(context: Context) -> None:
    return None


@dataclass(frozen=True, kw_only=True)
class Mechanism:
    """One mechanism; see the docstring of this package for its hooks.

    `bounded(context)` says whether the trace leaves it open what happened (then it also runs under the
    hypotheses low and high); `label(context)` says what its counts rest on: measured, bounded or assumed. A
    mechanism that shortens faults to a price holds that price's range in its hypotheses.
    `refault_cost(context)` names the cost of using a page again that it marked C_SWAPPED, for traces that
    hold no such fault. `open_below(context)` says that the trace can't bound the refaults it causes.
    `limit_pages(context)`: it takes memory before more comes: no more than this is resident at any moment.
    `prices_refaults`: it books its refaults at costs of its own, whose range its hypotheses hold.
    `moves_pages`: it backs pages or takes them, so that it matters which of them the host has.
    `small_pages(context)`: it backs memory ahead in 4 KiB pages, so that each one's first touch misses the
    caches and the TLB (`cold_touch_4k`).
    """

    name: str
    summary: str
    stage: Stage
    params: tuple[Param, ...] = ()
    page_words: int = 0
    block_words: int = 0
    prices_refaults: bool = False
    limit_pages: Callable[[Context], int] | None = None
    moves_pages: bool = True
    refault_cost: Callable[[Context], str] | None = None
    fetch: Callable[..., None] | None = None
    look: Callable[..., int] | None = None
    fault: Callable[..., tuple[int, int, int]] | None = None
    event: Callable[..., int] | None = None
    tick: Callable[..., None] | None = None
    setup: Callable[[Context], Setup] = _no_setup
    begin: Callable[[Context, World, Own, int], None] | None = None
    finish: Callable[[Context, World, Own, int], None] | None = None
    costs: Callable[[NDArray[np.int64], Context], Mapping[str, Mapping[str, float]]] = _no_costs
    block_local: Callable[[Context], bool] = _same
    abreast: Callable[[Context], tuple[Abreast, Hashable, int] | None] = _alone
    calm: Callable[[Context], Mapping[int, int]] = _all_shown
    bounded: Callable[[Context], bool] = _same
    open_below: Callable[[Context], bool] = _same
    label: Callable[[Context], str] = _measured
    small_pages: Callable[[Context], bool] = _same

    def defaults(self) -> dict[str, ParamValue]:
        """Return every parameter with its default."""
        return {p.name: p.default for p in self.params}


@cache
def known_mechanisms() -> Mapping[str, Mechanism]:
    """Return the mechanisms of this package by name.

    >>> from tracekit.replay import known_mechanisms
    >>> known_mechanisms()["prealloc"].summary
    'all guest memory is backed before the guest starts'
    """
    found: dict[str, Mechanism] = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        mechanism = getattr(module, "MECHANISM", None)
        if isinstance(mechanism, Mechanism):
            found[mechanism.name] = mechanism
    return found
