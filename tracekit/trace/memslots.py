"""gfn <-> hva through the memslots that were there at the time, for whole columns at once."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from tracekit.trace.schema import PAGE_BYTES

if TYPE_CHECKING:
    import polars as pl

__all__ = ["MemslotMap", "is_memory"]

_FOREVER: Final = 2**64 - 1


def is_memory(gpa: int, size_bytes: int, hva: int) -> bool:
    """Tell whether a memslot is one that can be: it ends below 2**63 on both sides.

    >>> is_memory(0, 1 << 40, 0x7f0000000000), is_memory(1 << 62, 1 << 62, 0)
    (True, False)
    """
    return max(gpa, hva) + size_bytes < 1 << 63


class MemslotMap:
    """Answers where a guest page is in the VMM, and back, at a time.

    `memslots` is `Trace.memslots`, or its rows as dicts (the recorder has no polars). A slot counts from
    `from_ns` (inclusive) to `to_ns` (exclusive, null = still there). Where slots overlap, as when one hva
    backs two guest ranges, the one set last wins.

    >>> import polars as pl
    >>> slots = pl.DataFrame({"vm": [0], "slot": [0], "gpa": [0], "size_bytes": [8192], "hva": [0x7000],
    ...                       "flags": [0], "from_ns": [100], "to_ns": [None], "known_by": ["ioctl"]})
    >>> places = MemslotMap(slots)
    >>> hva, known = places.hva_of_gfn([0, 1, 2, 0], ts_ns=[100, 100, 100, 99])
    >>> [hex(h) if k else None for h, k in zip(hva.tolist(), known.tolist())]
    ['0x7000', '0x8000', None, None]
    >>> gfn, known = places.gfn_of_hva([0x8fff, 0x9000], ts_ns=100)
    >>> gfn.tolist(), known.tolist()
    ([1, 0], [True, False])
    """

    def __init__(self, memslots: pl.DataFrame | Iterable[Mapping[str, Any]]) -> None:
        slots: dict[int, list[_Slot]] = {}
        rows = memslots.iter_rows(named=True) if hasattr(memslots, "iter_rows") else memslots
        for row in sorted(rows, key=lambda row: row["from_ns"]):
            if row["size_bytes"]:
                to_ns = _FOREVER if row["to_ns"] is None else row["to_ns"]
                slot = _Slot(row["gpa"], row["hva"], row["size_bytes"], row["from_ns"], to_ns)
                slots.setdefault(row["vm"], []).append(slot)
        self._by_gpa = {vm: _Index([(s.gpa, s.hva, s) for s in found]) for vm, found in slots.items()}
        self._by_hva = {vm: _Index([(s.hva, s.gpa, s) for s in found]) for vm, found in slots.items()}

    def hva_of_gfn(self, gfn: Any, *, ts_ns: Any, vm: Any = 0) -> tuple[np.ndarray, np.ndarray]:
        """Return (hva of the page's first byte: uint64[n], known: bool[n]); unknown ones are 0."""
        gpa = _u64(gfn) * np.uint64(PAGE_BYTES)
        return _look_up(self._by_gpa, gpa, ts_ns, vm)

    def gfn_of_hva(self, hva: Any, *, ts_ns: Any, vm: Any = 0) -> tuple[np.ndarray, np.ndarray]:
        """Return (gfn of the page that holds the address: uint64[n], known: bool[n]); unknown ones are 0."""
        gpa, known = _look_up(self._by_hva, _u64(hva), ts_ns, vm)
        return gpa // np.uint64(PAGE_BYTES), known


@dataclass(frozen=True)
class _Slot:
    gpa: int
    hva: int
    size: int
    from_ns: int
    to_ns: int


class _Index:
    """The slots of one VM by address and time: the one set last answers where several are there.

    Addresses are cut at every slot's start and end into strips, the leaves of a binary tree. A slot is kept
    in the few nodes that make up its strips; a node is a list of times from which one of its slots (or none)
    answers. A look-up goes through the nodes above its strip, on the levels where there are any: with slots
    that don't overlap in part that is one level. However they overlap, building takes n log n steps.
    """

    def __init__(self, mappings: list[tuple[int, int, _Slot]]) -> None:
        cuts = sorted({edge for start, _, slot in mappings for edge in (start, start + slot.size)} - {2**64})
        strip = {edge: number for number, edge in enumerate(cuts)}
        self._leaves = 1 << max(len(cuts) - 1, 0).bit_length()
        nodes: dict[int, list[int]] = {}
        for rank, (start, _, slot) in enumerate(mappings):
            end = strip.get(start + slot.size, len(cuts))
            for node in _nodes(strip[start] + self._leaves, end + self._leaves):
                nodes.setdefault(node, []).append(rank)
        self._levels = sorted({self._leaves.bit_length() - node.bit_length() for node in nodes})
        since: list[int] = []
        answer: list[int] = []
        self._first = np.zeros(2 * self._leaves, np.int64)
        self._last = np.full(2 * self._leaves, -1, np.int64)
        slots = [slot for _, _, slot in mappings]
        for node, ranks in nodes.items():
            moments = _timeline(ranks, slots)
            self._first[node] = len(since)
            since += [moment for moment, _ in moments]
            answer += [rank for _, rank in moments]
            self._last[node] = len(since) - 1
        self._cuts = np.array(cuts, np.uint64)
        self._since = np.array(since, np.uint64)
        self._answer = np.array(answer, np.int64)
        # Unsigned wrap-around makes address + shift right also where the target is lower.
        self._shift = np.array([(to - start) % 2**64 for start, to, _ in mappings], np.uint64)

    def look_up(self, address: np.ndarray, ts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        strip = np.searchsorted(self._cuts, address, side="right") - 1
        best = np.full(address.shape, -1, np.int64)
        for level in self._levels:
            node = (np.maximum(strip, 0) + self._leaves) >> level
            best = np.maximum(best, self._in_node(node, ts))
        known = (strip >= 0) & (best >= 0)
        return np.where(known, address + self._shift[best], np.uint64(0)), known

    def _in_node(self, node: np.ndarray, ts: np.ndarray) -> np.ndarray:
        """Return which slot of each node answers at each time; -1 = none."""
        low, last = self._first[node], self._last[node]
        high = np.maximum(low, last)
        while bool((low < high).any()):
            middle = (low + high + 1) // 2
            reached = self._since[middle] <= ts
            low = np.where(reached, middle, low)
            high = np.where(reached, high, middle - 1)
        found: np.ndarray = np.where(last >= 0, self._answer[low], -1)
        return found


def _nodes(begin: int, end: int) -> Iterator[int]:
    """Yield the fewest nodes of a binary tree that make up the leaves from `begin` to before `end`.

    >>> list(_nodes(8 + 1, 8 + 8))  # of eight leaves all but the first
    [9, 5, 3]
    """
    while begin < end:
        if begin % 2:
            yield begin
            begin += 1
        if end % 2:
            end -= 1
            yield end
        begin, end = begin // 2, end // 2


def _timeline(ranks: list[int], slots: list[_Slot]) -> list[tuple[int, int]]:
    """Return (moment, rank): from when which slot answers, the highest of those there; -1 = none is."""
    starts = sorted(ranks, key=lambda rank: slots[rank].from_ns)
    ends = {slots[rank].to_ns for rank in ranks} - {_FOREVER}
    moments = sorted({0, *ends, *(slots[rank].from_ns for rank in ranks)})
    out: list[tuple[int, int]] = []
    there: list[int] = []  # a heap of ranks, highest first; those that have ended leave it when they come up
    begun = 0
    for moment in moments:
        while begun < len(starts) and slots[starts[begun]].from_ns <= moment:
            heapq.heappush(there, -starts[begun])
            begun += 1
        while there and slots[-there[0]].to_ns <= moment:
            heapq.heappop(there)
        out.append((moment, -there[0] if there else -1))
    return out


def _u64(values: Any) -> np.ndarray:
    # numpy would make floats of a list that holds numbers above 2**63.
    return values.astype(np.uint64) if isinstance(values, np.ndarray) else np.array(values, np.uint64)


def _look_up(
    indexes: dict[int, _Index], address: np.ndarray, ts_ns: Any, vm: Any
) -> tuple[np.ndarray, np.ndarray]:
    ts = np.broadcast_to(_u64(ts_ns), address.shape)
    vms = np.broadcast_to(np.asarray(vm), address.shape)
    found, known = np.zeros(address.shape, np.uint64), np.zeros(address.shape, bool)
    for number, index in indexes.items():
        mine = vms == number
        if mine.any():
            found[mine], known[mine] = index.look_up(address[mine], ts[mine])
    return found, known
