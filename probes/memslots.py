"""Memslots as the recorder learns of them: kept for gfn <-> hva while recording, and noted in the trace."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from tracekit.probes.wire import VALID
from tracekit.trace.memslots import MemslotMap
from tracekit.trace.schema import KIND_CODE, PAGE_BYTES

if TYPE_CHECKING:
    from tracekit.trace import TraceWriter

__all__ = ["Memslot", "MemslotTable"]

_MEMSLOT_KIND = KIND_CODE["memslot"]


@dataclass(frozen=True)
class Memslot:
    """A memslot from `from_ns` on; size 0 deletes the one of that number."""

    vm: int
    slot: int
    gpa: int
    size_bytes: int
    hva: int
    flags: int
    from_ns: int
    known_by: str


class MemslotTable:
    """The memslots of all traced VMs so far; notes each in the trace and fills gfns in from hvas."""

    def __init__(self, writer: TraceWriter) -> None:
        self._writer = writer
        self._slots: list[Memslot] = []
        self._map: MemslotMap | None = None

    def __len__(self) -> int:
        """How many memslot changes there were."""
        return len(self._slots)

    def add(self, slot: Memslot) -> None:
        """Take in one memslot."""
        self._slots.append(slot)
        self._map = None
        self._writer.add_memslot(**asdict(slot))

    def take_from(self, out: dict[str, np.ndarray]) -> None:
        """Take in the `memslot` rows of decoded columns; their wire-only values become those of an event."""
        rows = np.flatnonzero(out["kind"] == _MEMSLOT_KIND)
        if not len(rows):
            return
        for row in rows.tolist():
            self.add(
                Memslot(
                    vm=int(out["vm"][row]),
                    slot=int(out["arg"][row]),
                    gpa=int(out["gfn"][row]) * PAGE_BYTES,
                    size_bytes=int(out["rip"][row]),
                    hva=int(out["hva"][row]),
                    flags=int(out["extra"][row]),
                    from_ns=int(out["ts_ns"][row]),
                    known_by="ioctl",
                )
            )
        out["pages"][rows] = out["rip"][rows] // PAGE_BYTES
        out["rip"][rows] = 0

    def fill_gfns(self, out: dict[str, np.ndarray]) -> None:
        """Give rows with an hva inside a memslot their gfn."""
        if not self._slots:
            return
        wanted = (out["valid"] & (VALID["hva"] | VALID["gfn"])) == VALID["hva"]
        rows = np.flatnonzero(wanted)
        if not len(rows):
            return
        gfn, known = self._lookup().gfn_of_hva(out["hva"][rows], ts_ns=out["ts_ns"][rows], vm=out["vm"][rows])
        rows = rows[known]
        out["gfn"][rows] = gfn[known]
        out["valid"][rows] |= np.uint8(VALID["gfn"])

    def _lookup(self) -> MemslotMap:
        if self._map is None:
            self._map = MemslotMap(_with_ends(self._slots))
        return self._map


def _with_ends(slots: list[Memslot]):  # type: ignore[no-untyped-def]
    import polars as pl

    ends: list[int | None] = [None] * len(slots)
    live: dict[tuple[int, int], int] = {}
    for index, slot in enumerate(slots):
        before = live.pop((slot.vm, slot.slot), None)
        if before is not None:
            ends[before] = slot.from_ns
        if slot.size_bytes:
            live[slot.vm, slot.slot] = index
    rows = [{**asdict(slot), "to_ns": end} for slot, end in zip(slots, ends, strict=True)]
    types = {
        "vm": pl.UInt16,
        "slot": pl.UInt32,
        "gpa": pl.UInt64,
        "size_bytes": pl.UInt64,
        "hva": pl.UInt64,
        "flags": pl.UInt32,
        "from_ns": pl.UInt64,
        "known_by": pl.String,
        "to_ns": pl.UInt64,
    }
    return pl.DataFrame(rows, schema=types)
