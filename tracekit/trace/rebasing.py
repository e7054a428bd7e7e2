"""Takes out of a trace what tells who was recorded and where things lay in memory; replays don't need it.

Contents are never recorded. What remains are host addresses (where the VMM's memory was), guest virtual
addresses and instruction pointers (both show a kernel's secret layout), and names in meta.json.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa

from tracekit.trace.memslots import MemslotMap
from tracekit.trace.meta import Meta, Vm
from tracekit.trace.sampling import with_column

if TYPE_CHECKING:
    import polars as pl

__all__ = ["Rebase", "anonymous"]

_GIB: Final = 1 << 30
_FIRST: Final = 0x7000_0000_0000
_GONE: Final = ("gva", "rip")


class Rebase:
    """Moves a trace's memslots to made-up host addresses, and every `hva` with them; drops `gva` and `rip`.

    A slot keeps its address modulo 1 GiB, on which huge pages depend. A host address in no slot becomes null.
    """

    def __init__(self, memslots: pl.DataFrame) -> None:
        import polars as pl

        self.memslots = memslots.with_columns(
            pl.Series("hva", _moved(memslots["hva"].to_list(), memslots["size_bytes"].to_list()), pl.UInt64())
        )
        self._before = MemslotMap(memslots)
        self._after = MemslotMap(self.memslots)

    def batch(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return the rows with addresses that say nothing."""
        for name in _GONE:
            batch = with_column(batch, name, pa.nulls(batch.num_rows, pa.uint64()))
        hva = batch.column("hva")
        valid = np.asarray(hva.is_valid().to_numpy(zero_copy_only=False), bool)
        ts, vm = batch.column("ts_ns").to_numpy(), batch.column("vm").to_numpy()
        address = hva.fill_null(0).to_numpy()
        gfn, inside = self._before.gfn_of_hva(address, ts_ns=ts, vm=vm)
        moved, there = self._after.hva_of_gfn(gfn, ts_ns=ts, vm=vm)
        moved = moved + (address & np.uint64(0xFFF))
        return with_column(batch, "hva", pa.array(moved, pa.uint64(), mask=~(valid & inside & there)))


def anonymous(meta: Meta) -> Meta:
    """Return the meta without names, process numbers and command lines; figures and what was active stay.

    >>> meta = Meta(host={"hostname": "db7", "kernel": "6.1"}, vms=[{"pid": 7, "argv": ["qemu"], "vcpus": 2}])
    >>> anonymous(meta).host, anonymous(meta).vms
    ({'kernel': '6.1'}, [{'vcpus': 2}])
    """
    bare = copy.deepcopy(meta)
    bare.host.pop("hostname", None)
    bare.vms = [_nameless(vm) for vm in meta.vms]
    bare.command = []
    bare.notes = []
    bare.filters = {key: bool(value) for key, value in meta.filters.items()}
    bare.marks = [{**mark, "name": f"mark {i}"} for i, mark in enumerate(meta.marks)]
    bare.extra = {key: meta.extra[key] for key in ("side", "truth") if key in meta.extra}
    return bare


def _nameless(vm: Vm) -> Vm:
    kept: Vm = {}
    if "vcpus" in vm:
        kept["vcpus"] = vm["vcpus"]
    if "page_bytes" in vm:
        kept["page_bytes"] = vm["page_bytes"]
    return kept


def _moved(bases: list[int], sizes: list[int]) -> list[int]:
    """Return new addresses, one after the other, each what it was modulo 1 GiB; equal ones stay equal.

    Slots may show the same memory twice, or parts of one mapping: slots that overlap move as one piece.
    """
    spans = sorted({(base, base + size) for base, size in zip(bases, sizes, strict=True)})
    shift: dict[int, int] = {}
    free, piece_end, piece_shift = _FIRST, -1, 0
    for base, end in spans:
        if base >= piece_end:
            piece_shift = free + base % _GIB - base
            piece_end = end
        piece_end = max(piece_end, end)
        shift[base] = piece_shift
        free = -(-(piece_end + piece_shift) // _GIB) * _GIB + _GIB
    return [base + shift[base] for base in bases]
