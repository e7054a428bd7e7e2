"""Page states in two worlds: what was recorded, and what would have been.

Every page has one word. The *baseline* half follows the recorded events; the *counterfactual* half
follows the same accesses with the mechanisms on. A fault of the trace is avoided exactly when the page
was not backed in the baseline but is backed in the counterfactual.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from operator import or_
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tracekit.replay import events as ev
from tracekit.replay.events import BLOCK_PAGES
from tracekit.replay.index import VM_SHIFT, Directory, block_of, in_slots
from tracekit.replay.jit import hot, int64

__all__ = [
    "World",
    "back",
    "back_pages",
    "calm_table",
    "drop",
    "drop_pages",
    "gfn_of",
    "map_around",
    "maps",
    "neighbour",
    "owner_of",
]

# Baseline half.
B_BACKED: Final = 1 << 0
B_SWAPPED: Final = 1 << 1
B_UNMAPPED: Final = 1 << 2  # backed, but the VM's mapping was taken away
SEEN: Final = 1 << 3  # was backed at some time
DROPPED: Final = 1 << 4  # was taken away by the host since (a refault will get a zeroed page)
# Counterfactual half.
C_BACKED: Final = 1 << 5
C_SWAPPED: Final = 1 << 6
C_DEFERRED: Final = 1 << 7  # the guest was spared its first touch; the page is still to be used
C_UNUSED: Final = 1 << 8  # backed ahead of use by a mechanism and not used yet
C_TAKEN: Final = 1 << 9  # a mechanism took it away; the next use is a refault of its making
# Guest half.
GUEST_FREE: Final = 1 << 10
GUEST_USED: Final = 1 << 11
ZERO_KNOWN: Final = 1 << 12  # handed over zeroed, and nothing has written it since
C_READ_AT_ONCE: Final = 1 << 13  # with C_SWAPPED: on a device that is read synchronously (zram)
C_UNMAPPED: Final = (
    1 << 14
)  # with C_BACKED: only in the host's page table; the guest's first touch still exits
# Who last backed it or took it away in the counterfactual: 0 = the recorded events, k = mechanism k.
OWNER_SHIFT: Final = 16
OWNER_MASK: Final = 0xFF << OWNER_SHIFT
# Bits 24 to 30 are free for mechanisms.
NEW: Final = C_SWAPPED | C_READ_AT_ONCE | C_DEFERRED | C_TAKEN | C_UNUSED | C_UNMAPPED | OWNER_MASK
"""What a page that is backed anew has no more."""

_SHIFT: Final = BLOCK_PAGES.bit_length() - 1
_IN_BLOCK: Final = BLOCK_PAGES - 1

CURVE_BINS: Final = 4096
"""The resident curve is kept as changes in this many equal spans of time."""

HOLD_BITS: Final = 24
"""World.hold has two cells: the sums of n * (t >> HOLD_BITS), and of n * what that leaves."""


class World(NamedTuple):
    """Everything that the kernels change, shared by all mechanisms of one scenario.

    words[page]: state bits. shift[lane]: ns that the lane runs ahead of the recording (closed loop).
    resident[0]: pages backed now in the counterfactual (that of a replay with nothing on is the baseline).
    hold: see `held`. curve[bins]: changes of resident pages; gains[bins]: of these, what came. faults, added,
    tally, histogram, by_lane: see `tracekit.replay.accounts`. calm: see `calm_table`.
    """

    words: NDArray[np.int32]
    shift: NDArray[np.int64]
    host_of: NDArray[np.int64]
    resident: NDArray[np.int64]
    hold: NDArray[np.int64]
    curve: NDArray[np.int64]
    gains: NDArray[np.int64]
    faults: NDArray[np.int64]
    added: NDArray[np.int64]
    tally: NDArray[np.int64]
    histogram: NDArray[np.int64]
    by_lane: NDArray[np.int64]
    spans: NDArray[np.int64]
    cost: NDArray[np.int64]
    directory: Directory
    clock: NDArray[np.int64]
    calm: NDArray[np.int32]


# Cells of World.clock.
CLOCK_BIN_SHIFT: Final = 0  # ns >> this = bin of the curve
CLOCK_CLOSED: Final = 1  # 1 = closed loop, 0 = open loop
CLOCK_END: Final = 2  # end of the trace, ns
CLOCK_SPARED: Final = 3  # 1 = the last fault was SKIPPED (for its further blocks)
CLOCK_LEVELS: Final = 4  # 1 = the trace names levels: a guest's fault without one mapped nothing
CLOCK_AROUND: Final = 5  # pages of the aligned group that one fault of the guest maps where the host has them
CLOCK_ADDED: Final = 6  # faults and waits that the recording does not have, so far
CLOCK_UNPLACED: Final = 7  # ns that events of no known vCPU take longer: no lane is later for it
CLOCK_LATEST: Final = 8  # what would be resident later than this is not in the trace (open loop: its end)
CLOCK_CELLS: Final = 9


_STAYS_BACKED: Final = (
    (B_BACKED | SEEN | C_BACKED)
    | (B_SWAPPED | B_UNMAPPED | DROPPED)
    | (C_DEFERRED | C_UNUSED | C_TAKEN | C_UNMAPPED),
    B_BACKED | SEEN | C_BACKED,
)
_CALM: Final[Mapping[int, tuple[int, int]]] = {
    **dict.fromkeys(ev.CALM_FAULTS, _STAYS_BACKED),
    ev.CALM_ALLOC: (
        (GUEST_USED | C_BACKED) | (GUEST_FREE | ZERO_KNOWN | C_UNMAPPED | C_DEFERRED),
        GUEST_USED | C_BACKED,
    ),
    ev.CALM_FREE: (GUEST_FREE | GUEST_USED | ZERO_KNOWN, GUEST_FREE),
    ev.CALM_ACCESSED: (C_TAKEN, 0),
}
"""By CALM_ kind: bits of a word, and their values where the event loop itself leaves the page as it is."""


def calm_table(wanted: Sequence[Mapping[int, int]], *, around: bool) -> NDArray[np.int32]:
    """Return for each CALM_ kind which bits of a page's word say that it changes nothing, and their values.

    Each mechanism that is on says on which kinds it has nothing to do for such a page, if these further bits
    are clear (`Mechanism.calm`). Such an event, most of many traces, is done with one look at the word.
    `around`: any fault of the guest may map neighbours of its page (`map_around`), so each is looked at.
    """
    table = np.zeros((ev.CALM_KINDS, 2), np.int32)
    table[:, 1] = 1  # no word has this value of no bits: never
    for kind, (bits, value) in _CALM.items():
        if around and kind in (ev.CALM_FAULT, ev.CALM_MAJOR):
            continue
        if all(kind in calm for calm in wanted):
            clear = reduce(or_, (calm[kind] for calm in wanted), 0)
            if not clear & value:
                table[kind] = bits | clear, value
    return table.reshape(-1)


@hot
def maps(bits: int, levels_known: int) -> bool:
    """Say whether a fault mapped its page; `levels_known`: the trace names levels (0 = none).

    KVM leaves no level where nothing was mapped (MMIO, write protection, a fault put off); importers' layouts
    may hold no levels at all.
    """
    return bits & ev.MAPPED != 0 or levels_known == 0


@hot
def owner_of(word: int) -> int:
    """Return who last backed or took the page: 0 = recorded events, k = mechanism k of the chain."""
    return (word & OWNER_MASK) >> OWNER_SHIFT


@hot
def resident_change(s: World, t: int, n: int) -> None:
    """Account `n` pages more (or less) in the counterfactual from time `t` on."""
    s.resident[0] += n
    if t > s.clock[CLOCK_LATEST]:
        s.hold[0] += n * (s.clock[CLOCK_LATEST] >> HOLD_BITS)
        s.hold[1] += n * (s.clock[CLOCK_LATEST] & ((1 << HOLD_BITS) - 1))
        return
    s.hold[0] += n * (t >> HOLD_BITS)
    s.hold[1] += n * (t & ((1 << HOLD_BITS) - 1))
    at = min(max(t, 0) >> s.clock[CLOCK_BIN_SHIFT], CURVE_BINS - 1)
    s.curve[at] += n
    if n > 0:
        s.gains[at] += n


@hot
def back(s: World, word: int, t: int, who: int) -> int:
    """Back one page in the counterfactual at time `t`; return its new word. No effect if it is backed."""
    if word & C_BACKED:
        return word
    resident_change(s, t, 1)
    return (word & ~NEW) | C_BACKED | (who << OWNER_SHIFT)


@hot
def drop(s: World, word: int, t: int, who: int) -> int:
    """Take one page away in the counterfactual at time `t`; return its new word.

    `who` = 0 is a recorded discard; a mechanism that takes pages is charged for their refaults.
    """
    if not word & C_BACKED:
        return word
    resident_change(s, t, -1)
    word &= ~(C_BACKED | C_UNMAPPED | OWNER_MASK)
    if who > 0:
        word |= C_TAKEN
    return word | (who << OWNER_SHIFT)


@hot
def back_pages(s: World, first: int, end: int, t: int, who: int) -> None:
    """Back the pages from `first` to before `end`, all at time `t`; no effect on those that are backed."""
    more = 0
    for p in range(first, end):
        word = s.words[p]
        there = word & C_BACKED != 0
        more += not there
        s.words[p] = word if there else (word & ~NEW) | C_BACKED | (who << OWNER_SHIFT)
    if more > 0:
        resident_change(s, t, more)


@hot
def drop_pages(s: World, first: int, end: int, t: int, who: int) -> int:
    """Take away the pages from `first` to before `end`, all at time `t`; return how many were backed."""
    gone = 0
    mark = (C_TAKEN if who > 0 else 0) | (who << OWNER_SHIFT)
    for p in range(first, end):
        word = s.words[p]
        there = word & C_BACKED != 0
        gone += there
        s.words[p] = (word & ~(C_BACKED | C_UNMAPPED | OWNER_MASK)) | mark if there else word
    if gone > 0:
        resident_change(s, t, -gone)
    return gone


@hot
def map_around(s: World, page: int) -> None:
    """Let a guest's fault map the neighbours that the host has already, as KVM's shadow paging does."""
    group = int(s.clock[CLOCK_AROUND])
    if group > 1:
        first = page - page % group
        for p in range(first, first + group):
            if s.words[p] & C_BACKED:
                s.words[p] &= ~C_UNMAPPED


UNSEEN: Final = -1
NOT_THERE: Final = -2


@hot
def gfn_of(s: World, page: int) -> int:
    """Return the gfn of a dense page (the VM's number stands above bit VM_SHIFT)."""
    return int64(s.directory.block_gfn[page >> _SHIFT]) + (page & _IN_BLOCK)  # type: ignore[no-any-return]


@hot
def neighbour(s: World, page: int, distance: int) -> int:
    """Return the dense page `distance` gfns away; UNSEEN if no event names its block, NOT_THERE if none."""
    at = (page & _IN_BLOCK) + distance
    if 0 <= at < BLOCK_PAGES:
        return page + distance
    block = s.directory.block_gfn[page >> _SHIFT]
    vm = block >> VM_SHIFT
    gfn = (block & ((1 << VM_SHIFT) - 1)) + at
    number = block_of(s.directory, vm, gfn, False)
    if number >= 0:
        found: int = int64(number * BLOCK_PAGES + (gfn & _IN_BLOCK))
        return found
    if gfn >= 0 and in_slots(s.directory, vm, gfn, gfn + 1) > 0:
        return UNSEEN
    return NOT_THERE
