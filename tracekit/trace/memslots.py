"""gfn <-> hva through the memslots that were there at the time, for whole columns at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
    """The plane (address, time) of one VM cut into rectangles, each with one answer or none.

    Addresses are cut at every slot's start and end into strips; a strip is a list of times from which
    one slot (or none) answers. Looking up is a binary search for the strip, then one inside the strip.
    """

    def __init__(self, mappings: list[tuple[int, int, _Slot]]) -> None:
        cuts = sorted({edge for start, _, slot in mappings for edge in (start, start + slot.size)} - {2**64})
        first: list[int] = []
        since: list[int] = []
        shift: list[int] = []
        known: list[bool] = []
        for strip in cuts:
            covering = [(s, start, to) for start, to, s in mappings if start <= strip < start + s.size]
            first.append(len(since))
            moments = sorted({0} | {t for s, _, _ in covering for t in (s.from_ns, s.to_ns) if t != _FOREVER})
            for moment in moments:
                live = [(start, to) for s, start, to in covering if s.from_ns <= moment < s.to_ns]
                since.append(moment)
                # Unsigned wrap-around makes address + shift right also where the target is lower.
                shift.append((live[-1][1] - live[-1][0]) % 2**64 if live else 0)
                known.append(bool(live))
        self._cuts = np.array(cuts, np.uint64)
        self._first = np.array([*first, len(since)], np.int64)
        self._since = np.array(since, np.uint64)
        self._shift = np.array(shift, np.uint64)
        self._known = np.array(known, bool)

    def look_up(self, address: np.ndarray, ts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        strip = np.searchsorted(self._cuts, address, side="right") - 1
        inside = strip >= 0
        strip = np.maximum(strip, 0)
        low, high = self._first[strip], self._first[strip + 1] - 1
        while bool((low < high).any()):
            middle = (low + high + 1) // 2
            reached = self._since[middle] <= ts
            low = np.where(reached, middle, low)
            high = np.where(reached, high, middle - 1)
        known = inside & self._known[low]
        return np.where(known, address + self._shift[low], np.uint64(0)), known


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
