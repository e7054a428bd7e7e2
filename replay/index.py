"""From gfns to dense page numbers: a 16 TB guest with holes costs what it touches, not what it spans.

Guest memory is cut into blocks of 512 pages (2 MiB). A block gets the next free number when it is first
seen, so page = block number * 512 + (gfn & 511), and the state arrays are as long as the touched memory.
The directory is two tables deep (64 GiB per leaf table), both small enough to stay in the cache.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tracekit.replay.events import BLOCK_PAGES
from tracekit.replay.jit import hot
from tracekit.trace.room import require_memory

__all__ = ["Directory", "PageIndex", "block_of", "in_slots"]

LEAF_BLOCKS: Final = 1 << 15
TOPS: Final = 1 << 16
MAX_GFN: Final = TOPS * LEAF_BLOCKS * BLOCK_PAGES  # 2**40: the 52-bit physical address limit of x86-64

PAGE_STATE_BYTES: Final = 32
"""About what a replay keeps for a page: its word, and what mechanisms add."""

VM_SHIFT: Final = 44  # block_gfn holds the first gfn of a block and, above it, the VM

NEED_LEAF: Final = -2  # the directory needs another leaf table or more room for blocks: grow and retry
OUTSIDE: Final = -1  # not guest memory that we know of


class Directory(NamedTuple):
    """The tables that the kernel reads: tops[vm, gfn >> 24] -> leaf, leaves[leaf, block] -> number."""

    tops: NDArray[np.int32]
    leaves: NDArray[np.int32]
    block_gfn: NDArray[np.int64]
    used: NDArray[np.int64]  # leaves used, blocks used
    slots: NDArray[np.int64]  # rows of vm, first gfn, past-the-end gfn; empty = every gfn is guest memory


@hot
def in_slots(d: Directory, vm: int, first: int, end: int) -> int:
    """Return how many pages of first..end are guest memory (all of them if no memslots are known)."""
    if len(d.slots) == 0:
        return end - first
    pages = 0
    for row in range(len(d.slots)):
        if d.slots[row, 0] == vm:
            pages += max(min(d.slots[row, 2], end) - max(d.slots[row, 1], first), 0)
    return min(pages, end - first)


@hot
def block_of(d: Directory, vm: int, gfn: int, give: bool) -> int:
    """Return the number of the gfn's block; OUTSIDE if it has none, NEED_LEAF if the tables are full.

    With `give`, a block of guest memory that was never seen gets the next number.
    """
    if gfn < 0 or gfn >= MAX_GFN:
        return OUTSIDE
    leaf = d.tops[vm * TOPS + (gfn >> 24)]
    if leaf < 0:
        if not give:
            return OUTSIDE
        if d.used[0] >= d.leaves.shape[0]:
            return NEED_LEAF
        leaf = d.used[0]
        d.tops[vm * TOPS + (gfn >> 24)] = leaf
        d.used[0] += 1
    at = (gfn >> 9) & (LEAF_BLOCKS - 1)
    number = d.leaves[leaf, at]
    if number >= 0:
        return int(number)
    if number == NEED_LEAF or not give:  # NEED_LEAF: looked at before, outside every memslot
        return OUTSIDE
    first = (gfn >> 9) << 9
    if in_slots(d, vm, first, first + BLOCK_PAGES) == 0:
        d.leaves[leaf, at] = NEED_LEAF
        return OUTSIDE
    if d.used[1] >= len(d.block_gfn):
        return NEED_LEAF
    number = d.used[1]
    d.leaves[leaf, at] = number
    d.block_gfn[number] = first | vm << VM_SHIFT
    d.used[1] += 1
    return int(number)


class PageIndex:
    """Gives every touched gfn of every VM a dense page number.

    `slots`: int64 rows of (vm, first gfn, past-the-end gfn); with no rows every gfn counts as guest memory.

    >>> import numpy as np
    >>> index = PageIndex(vms=1, slots=np.array([[0, 0, 1 << 32]]))
    >>> index.page(0, 7), index.page(0, (1 << 32) - 1), index.page(0, 5), index.page(0, 1 << 33)
    (7, 1023, 5, -1)
    """

    def __init__(self, vms: int, slots: NDArray[np.int64]) -> None:
        """Start empty; the tables grow with what is seen."""
        self.directory = Directory(
            tops=np.full(max(vms, 1) * TOPS, -1, np.int32),
            leaves=np.full((4, LEAF_BLOCKS), -1, np.int32),
            block_gfn=np.zeros(1024, np.int64),
            used=np.zeros(2, np.int64),
            slots=np.ascontiguousarray(slots, np.int64).reshape(-1, 3),
        )

    @property
    def blocks(self) -> int:
        """Number of blocks seen."""
        return int(self.directory.used[1])

    @property
    def pages(self) -> int:
        """Length that a per-page array needs."""
        return self.blocks * BLOCK_PAGES

    def grow(self) -> None:
        """Double whatever is full; UsageError where this machine has no memory for it."""
        d = self.directory
        leaves, block_gfn = d.leaves, d.block_gfn
        needed = leaves.nbytes * 2 + self.pages * PAGE_STATE_BYTES
        require_memory(needed, f"a replay of {self.pages * 4096 / 2**30:,.1f} GiB of guest memory and more")
        if d.used[0] >= len(leaves):
            leaves = np.concatenate([leaves, np.full_like(leaves, -1)])
        if d.used[1] >= len(block_gfn):
            block_gfn = np.concatenate([block_gfn, np.zeros_like(block_gfn)])
        self.directory = d._replace(leaves=leaves, block_gfn=block_gfn)

    def page(self, vm: int, gfn: int) -> int:
        """Return the dense page of one gfn (-1 = outside guest memory)."""
        while (block := block_of(self.directory, vm, gfn, True)) == NEED_LEAF:
            self.grow()
        return block if block < 0 else block * BLOCK_PAGES + gfn % BLOCK_PAGES

    def known_page(self, vm: int, gfn: int) -> int:
        """Return the dense page of a gfn seen before; -1 = guest memory never seen, -2 = no guest memory."""
        if not 0 <= vm < len(self.directory.tops) // TOPS:  # another recording's VM
            return -2
        block = block_of(self.directory, vm, gfn, False)
        if block >= 0:
            return block * BLOCK_PAGES + gfn % BLOCK_PAGES
        return -1 if 0 <= gfn < MAX_GFN and in_slots(self.directory, vm, gfn, gfn + 1) else -2
