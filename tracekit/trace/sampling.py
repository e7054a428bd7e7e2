"""Spatial sampling: all events of a share of the guest's 2 MiB blocks, chosen by a hash of their number.

As in SHARDS (Waldspurger et al., FAST 2015) an address is in the sample for good or not at all, so that
what is recorded of a page is its whole story. The unit is a block and not a page because hosts map, discard
and report whole blocks: half a huge page has no story. Events of no address are all kept; those of host
memory that is not the guest's are sampled by their host address.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa

from tracekit.errors import UsageError
from tracekit.trace.memslots import MemslotMap
from tracekit.trace.schema import KIND_CODE, PAGE_BYTES

__all__ = ["BLOCK_PAGES", "Sampler", "hashed", "scale_of", "with_column"]

BLOCK_PAGES: Final = 512
"""Pages of a block, the unit that is in the sample or not: 2 MiB."""

_SHIFT: Final = 9
_TWO_MIB: Final = 2  # the level of such a mapping
_FAULTS: Final = (KIND_CODE["ept_violation"], KIND_CODE["host_fault"])
_ADDRESSES: Final = {"gfn": 1, "hva": PAGE_BYTES, "gva": PAGE_BYTES}


def scale_of(facts: Mapping[str, Any], what: str) -> float:
    """Return by how much a sample's `what` (faults, stall or pages) is to be multiplied; 1 for a whole trace.

    By what was counted when the sample was taken; by 1 / rate where that is unknown or nothing was kept.

    >>> scale_of({"gfn_hash": 0.1, "faults_before": 120, "faults_kept": 10}, "faults"), scale_of({}, "pages")
    (12.0, 1.0)
    """
    unit = "_ns" if what == "stall" else ""
    before, kept = facts.get(f"{what}_before{unit}"), facts.get(f"{what}_kept{unit}")
    return before / kept if before and kept else 1 / float(facts.get("gfn_hash", 1.0))


def hashed(vm: np.ndarray, block: np.ndarray, seed: int) -> np.ndarray:
    """Return a number in 0 ≤ h < 1 for each block of each VM (SplitMix64's finaliser; Steele et al., 2014).

    >>> hashed(np.zeros(2, np.uint64), np.arange(2, dtype=np.uint64), seed=0).round(3).tolist()
    [0.883, 0.567]
    """
    with np.errstate(over="ignore"):
        x = block.astype(np.uint64) + (vm.astype(np.uint64) << np.uint64(52))
        x += np.uint64((seed * 2 + 1) * 0x9E3779B97F4A7C15 & (2**64 - 1))
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    return np.asarray((x >> np.uint64(11)) * 2.0**-53)


@dataclass
class Sampler:
    """Keeps the events of a share `rate` (above 0, up to 1) of all blocks; `seed` chooses which.

    Counts what goes through it: `rows`, and `faults` on guest memory with their latencies (`stall_ns`) and
    pages, seen and kept; their ratios are better scales than 1 / rate. `places` finds the guest page of
    rows that hold only a host address.
    """

    rate: float
    seed: int = 0
    places: MemslotMap | None = None
    rows: int = 0
    faults: int = 0
    faults_kept: int = 0
    stall_ns: int = 0
    stall_kept_ns: int = 0
    pages: int = 0
    pages_kept: int = 0

    def __post_init__(self) -> None:
        """Refuse a rate that is no share (UsageError)."""
        if not 0 < self.rate <= 1:
            raise UsageError(
                f"a sample is a share above 0 and up to 1, not {self.rate:g}", hint="--sample 0.1"
            )

    def planned(self) -> dict[str, Any]:
        """Return what can be said in `meta.sampling` before the first event."""
        return {"gfn_hash": self.rate, "seed": self.seed, "unit_pages": BLOCK_PAGES}

    def facts(self) -> dict[str, Any]:
        """Return what belongs into `meta.sampling` at the end."""
        return {
            **self.planned(),
            "rows_before": self.rows,
            "faults_before": self.faults,
            "faults_kept": self.faults_kept,
            "stall_before_ns": self.stall_ns,
            "stall_kept_ns": self.stall_kept_ns,
            "pages_before": self.pages,
            "pages_kept": self.pages_kept,
        }

    def thin(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return the rows of sampled blocks; a row over several blocks becomes one per sampled block.

        A fault belongs, with all that it maps, to the block of its own page.
        """
        self.rows += batch.num_rows
        where = self._where(batch)
        pages = np.maximum(batch.column("pages").to_numpy(), 1).astype(np.uint64)
        fault = np.isin(batch.column("kind").indices.to_numpy(), _FAULTS) & where.guest
        first = where.page >> np.uint64(_SHIFT)
        last = (where.page + pages - np.uint64(1)) >> np.uint64(_SHIFT)
        last = np.where(fault | ~where.guest, first, last)
        if bool((last == first).all()):
            kept = self._keeps(where, first)
            self._count(batch, fault, kept)
            return batch.filter(pa.array(kept))
        blocks = (last - first + np.uint64(1)).astype(np.int64)
        rows = np.repeat(np.arange(batch.num_rows), blocks)
        block = first[rows] + (np.arange(len(rows)) - np.repeat(np.cumsum(blocks) - blocks, blocks)).astype(
            np.uint64
        )
        kept = self._keeps(where.of(rows), block)
        self._count(batch, fault, kept[np.cumsum(blocks) - blocks])
        return _cut(batch, rows[kept], block[kept], where, np.where(fault, np.uint64(0), pages))

    def _keeps(self, where: _Where, block: np.ndarray) -> np.ndarray:
        # Host memory that is not the guest's has numbers of its own.
        number = np.where(where.guest, block, block | np.uint64(1 << 50))
        return np.asarray(~where.known | (hashed(where.vm, number, self.seed) < self.rate))

    def _count(self, batch: pa.RecordBatch, fault: np.ndarray, kept: np.ndarray) -> None:
        latency, _ = _column(batch, "latency_ns")
        self.faults += int(np.count_nonzero(fault))
        self.stall_ns += int(latency[fault].sum())
        self.faults_kept += int(np.count_nonzero(fault & kept))
        self.stall_kept_ns += int(latency[fault & kept].sum())
        level, _ = _column(batch, "level")
        pages = np.where(level == _TWO_MIB, BLOCK_PAGES, batch.column("pages").to_numpy())
        self.pages += int(pages[fault].sum())
        self.pages_kept += int(pages[fault & kept].sum())

    def _where(self, batch: pa.RecordBatch) -> _Where:
        """Return the page of each row: the guest's, through the memslots if need be; else the host's."""
        page, guest = _column(batch, "gfn")
        hva, host = _column(batch, "hva")
        vm = batch.column("vm").to_numpy()
        asked = np.flatnonzero(~guest & host)
        if not len(asked):
            return _Where(vm, page, guest, guest)
        page, guest = page.copy(), guest.copy()
        page[asked] = hva[asked] // np.uint64(PAGE_BYTES)
        if self.places is not None:
            ts = batch.column("ts_ns").to_numpy()[asked]
            found, there = self.places.gfn_of_hva(hva[asked], ts_ns=ts, vm=vm[asked])
            page[asked] = np.where(there, found, page[asked])
            guest[asked] = there
        return _Where(vm, page, guest, guest | host)


class _Where(NamedTuple):
    """Page of each row: a guest page where `guest`, else a host page where `known`."""

    vm: np.ndarray
    page: np.ndarray
    guest: np.ndarray
    known: np.ndarray

    def of(self, rows: np.ndarray) -> _Where:
        return _Where(*(column[rows] for column in self))


def _column(batch: pa.RecordBatch, name: str) -> tuple[np.ndarray, np.ndarray]:
    column = batch.column(name)
    return column.fill_null(0).to_numpy(), column.is_valid().to_numpy(zero_copy_only=False)


def _cut(
    batch: pa.RecordBatch, rows: np.ndarray, block: np.ndarray, where: _Where, pages: np.ndarray
) -> pa.RecordBatch:
    """Return these rows of a batch, each cut to what lies in its block; left whole where `pages` is 0."""
    page, size = where.page[rows], pages[rows]
    guest = where.guest[rows] & (size > 0)
    begin = np.where(guest, np.maximum(page, block << np.uint64(_SHIFT)), page)
    end = np.where(guest, np.minimum(page + size, (block + np.uint64(1)) << np.uint64(_SHIFT)), page + size)
    taken = batch.take(pa.array(rows))
    for name, unit in _ADDRESSES.items():
        address, valid = _column(taken, name)
        moved = address + (begin - page) * np.uint64(unit)
        taken = with_column(taken, name, pa.array(moved, pa.uint64(), mask=~valid))
    cut = np.where(guest, end - begin, taken.column("pages").to_numpy())
    return with_column(taken, "pages", pa.array(cut.astype(np.uint32)))


def with_column(batch: pa.RecordBatch, name: str, column: pa.Array) -> pa.RecordBatch:
    """Return the batch with another column of that name."""
    at = batch.schema.get_field_index(name)
    return batch.set_column(at, batch.schema.field(at), column)
