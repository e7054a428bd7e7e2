"""Which pages the host holds, a bit each, and how many each event adds or takes away.

Pages stand in blocks of 128 MiB of guest memory that a small hash table finds: many VMs, each with its memory
anywhere in 2^64 pages, and only what was touched costs memory.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from tracekit.replay.jit import compiled, hot, int64
from tracekit.trace.room import require_memory

__all__ = ["Changes", "Events", "Holding"]

_BLOCK_BITS: Final = 15
_WORD_BITS: Final = 6
_WORDS: Final = 1 << (_BLOCK_BITS - _WORD_BITS)
_LAST_PAGE: Final = (1 << 63) - 1
_FREE: Final = -1
_ALL: Final = np.uint64((1 << 64) - 1)

Integers = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]


class Events(NamedTuple):
    """Events as columns: `gfn` is signed (only its bits count), `backs` says that pages came."""

    vm: npt.NDArray[Any]
    ts_ns: npt.NDArray[np.uint64]
    gfn: Integers
    pages: npt.NDArray[Any]
    backs: npt.NDArray[np.bool_]


class Changes(NamedTuple):
    """What events changed, as columns."""

    vm: Integers
    ts_ns: npt.NDArray[np.uint64]
    pages: Integers


class Holding:
    """The pages held, by VM; `change` takes events in their order and says what each changed.

    >>> # A cached kernel remembers its module's name, so it is called by the name that users import.
    >>> from tracekit.datasets.frame.holding import Events, Holding
    >>> vm, ts_ns, gfn, pages = np.array([[0, 0, 0, 1], [7, 7, 8, 9], [5, 4, 5, 5], [1, 3, 1, 1]])
    >>> backs = np.array([True, True, False, True])
    >>> changes = Holding().change(Events(vm, ts_ns.astype(np.uint64), gfn, pages, backs))
    >>> changes.ts_ns.tolist(), changes.pages.tolist()
    ([7, 8, 9], [3, -1, 1])
    """

    def __init__(self) -> None:
        self._owner = np.full((1 << 8, 2), _FREE, np.int64)  # (vm, block) of each place in the hash table
        self._place = np.zeros(1 << 8, np.int64)
        self._blocks = 0
        self._bits = np.zeros((1 << 4, _WORDS), np.uint64)
        self._out: tuple[npt.NDArray[Any], ...] = (
            np.zeros(0, np.int64),
            np.zeros(0, np.uint64),
            np.zeros(0, np.int64),
        )

    def change(self, events: Events, width_ns: int = 0) -> Changes:
        """Return what the events changed: vm, ts_ns, and pages that came (below 0: went).

        Events that changed nothing are left out; neighbours of one VM and one instant are one. `width_ns`:
        an instant is a bucket so long, and its time the bucket's end.
        UsageError when the pages named need more memory than there is.
        """
        rows = len(events.vm)
        if rows > len(self._out[0]):
            # Kept from call to call: the first touch of fresh memory costs more than all the rest here.
            self._out = np.empty(rows, np.int64), np.empty(rows, np.uint64), np.empty(rows, np.int64)
        progress = np.zeros(2, np.int64)
        while True:
            tables = self._owner, self._place, self._bits
            _run(tuple(events), tables, self._out, progress, width_ns)
            at, changes = progress.tolist()
            if at == rows:
                return Changes(*(column[:changes].copy() for column in self._out))
            # This event names a block that is not there yet.
            first = int(events.gfn[at])
            last = min(first + int(events.pages[at]) - 1, _LAST_PAGE)
            self._add(int(events.vm[at]), first >> _BLOCK_BITS, last >> _BLOCK_BITS)

    def _add(self, vm: int, first: int, last: int) -> None:
        """Make room for the blocks from `first` to `last` of a VM, those that are not there yet."""
        needed = self._blocks + last - first + 1
        require_memory(needed * (_WORDS + 4) * 8 * 3, "which pages are resident")
        if needed > len(self._bits):
            grown = np.zeros((max(needed, 2 * len(self._bits)), _WORDS), np.uint64)
            grown[: self._blocks] = self._bits[: self._blocks]
            self._bits = grown
        while 2 * needed > len(self._owner):
            old, places = self._owner, self._place
            self._owner = np.full((2 * len(old), 2), _FREE, np.int64)
            self._place = np.zeros(2 * len(old), np.int64)
            _insert(old[:, 0], old[:, 1], places, self._owner, self._place)
        new = np.arange(first, last + 1)
        new = new[_missing(vm, new, self._owner)]
        self._blocks += new.size
        places = np.arange(self._blocks - new.size, self._blocks)
        _insert(np.full(new.size, vm), new, places, self._owner, self._place)


def _missing(vm: int, blocks: Integers, owner: Integers) -> npt.NDArray[np.bool_]:
    return np.isin(blocks, owner[owner[:, 0] == vm, 1], invert=True)


@hot
def _slot(vm: int, block: int, owner: np.ndarray) -> Any:
    """Return where a block is in the table, or the free place where it belongs."""
    mask = owner.shape[0] - 1
    at = (block + vm * 40503) & mask
    while owner[at, 0] != _FREE and (owner[at, 0] != vm or owner[at, 1] != block):
        at = (at + 1) & mask
    return at


@compiled
def _insert(
    vm: np.ndarray, block: np.ndarray, place: np.ndarray, owner: np.ndarray, places: np.ndarray
) -> None:
    for i in range(vm.size):
        if vm[i] != _FREE:
            at = _slot(vm[i], block[i], owner)
            owner[at, 0], owner[at, 1], places[at] = vm[i], block[i], place[i]


@hot
def _ones(word: Any) -> Any:
    """Count the ones of 64 bits (Warren, Hacker's Delight, 5-1)."""
    word = word - ((word >> np.uint64(1)) & np.uint64(0x5555555555555555))
    word = (word & np.uint64(0x3333333333333333)) + ((word >> np.uint64(2)) & np.uint64(0x3333333333333333))
    word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((word * np.uint64(0x0101010101010101)) >> np.uint64(56))


@hot
def _turn(word: np.ndarray, at: int, bit: Any, held: bool) -> int:
    """Set or clear one bit; returns 1, -1, or 0 where it was so already."""
    was = word[at] & bit != np.uint64(0)
    if was == held:
        return 0
    word[at] ^= bit
    return -1 if was else 1


@hot
def _turn_all(words: np.ndarray, first: int, last: int, held: bool) -> int:
    """Set or clear the bits `first` to `last` of a block; returns how many changed, below 0 if cleared."""
    changed = 0
    for at in range(first >> _WORD_BITS, (last >> _WORD_BITS) + 1):
        low = max(first - (at << _WORD_BITS), 0)
        high = min(last - (at << _WORD_BITS), 63)
        mask = (_ALL >> np.uint64(63 - high)) & (_ALL << np.uint64(low))
        old = words[at]
        words[at] = old | mask if held else old & ~mask
        changed += _ones(old ^ words[at])
    return changed if held else -changed


@hot
def _all_there(vm: int, first_block: int, last_block: int, owner: np.ndarray) -> bool:
    there = True
    for block in range(first_block, last_block + 1):
        there &= owner[_slot(vm, block, owner), 0] != _FREE
    return there


@hot
def _put(out: tuple[np.ndarray, ...], n: int, vm: int, ts_ns: Any, change: int) -> int:
    """Write a change, or add it to the last one of the same VM and instant; returns how many there are."""
    if n > 0 and out[1][n - 1] == ts_ns and out[0][n - 1] == vm:
        out[2][n - 1] += change
        return n
    out[0][n], out[1][n], out[2][n] = vm, ts_ns, change
    return n + 1


@compiled
def _run(
    events: tuple[np.ndarray, ...],
    tables: tuple[np.ndarray, ...],
    out: tuple[np.ndarray, ...],
    progress: np.ndarray,
    width_ns: int,
) -> None:
    """Play events up to the first whose block is not there; `progress`: events played, changes written."""
    vms, times, gfns, pages, backs = events
    owner, place, bits = tables
    known_vm, known_block, row = -1, 0, 0
    n, at, width = progress[1], progress[0], np.uint64(width_ns)
    begin_ns = end_ns = np.uint64(0)
    while at < times.size:
        vm, first, ts_ns = int64(vms[at]), gfns[at], times[at]
        last = first + min(max(int64(pages[at]), 1) - 1, _LAST_PAGE - max(first, 0))
        block, last_block = first >> _BLOCK_BITS, last >> _BLOCK_BITS
        if block != known_block or vm != known_vm or block != last_block:
            if not _all_there(vm, block, last_block, owner):
                break
            known_vm, known_block, row = vm, block, place[_slot(vm, block, owner)]
        if first == last:
            word = (first >> _WORD_BITS) & (_WORDS - 1)
            change = _turn(bits[row], word, np.uint64(1) << np.uint64(first & 63), backs[at])
        else:
            change = 0
            for other in range(block, last_block + 1):
                begin = other << _BLOCK_BITS
                inside = min(last - begin, (1 << _BLOCK_BITS) - 1)
                words = bits[place[_slot(vm, other, owner)]]
                change += _turn_all(words, max(first - begin, 0), inside, backs[at])
        if change != 0:
            if width_ns > 0 and not begin_ns <= ts_ns < end_ns:
                begin_ns = ts_ns // width * width
                end_ns = begin_ns + width
            n = _put(out, n, vm, end_ns if width_ns > 0 else ts_ns, change)
        at += 1
    progress[0], progress[1] = at, n
