"""A small guest's trace without what is none of the memory compared.

Left out: the guest's low area (tables, code, pages of its calls), and what its vCPUs' threads fault of their
VMM's own memory (stack, heap): both are of the laboratory, and the second differs from run to run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from tracekit.replay.timeline import TraceLike
from tracekit.trace.schema import KIND_CODE, PAGE_BYTES

__all__ = ["Compared"]

_HOST_FAULT: Final = KIND_CODE["host_fault"]


class Compared:
    """A trace as a replay reads it, from `first_gfn` on."""

    def __init__(self, trace: TraceLike, first_gfn: int) -> None:
        self._trace, self._first_gfn = trace, first_gfn
        self.meta: Any = trace.meta
        self.losses, self.lost = trace.losses, trace.lost
        self.memslots = trace.memslots.filter(pl.col("gpa") >= first_gfn * PAGE_BYTES)

    def batches(
        self, columns: list[str] | None = None, batch_rows: int = 1 << 20
    ) -> Iterator[pa.RecordBatch]:
        """Yield the events that are left in time order; `columns` must hold kind, gfn and vcpu."""
        for batch in self._trace.batches(columns, batch_rows):
            gfn = batch.column("gfn")
            low = pc.fill_null(pc.less(gfn, self._first_gfn), False)
            own = pc.and_(pc.is_null(gfn), pc.is_valid(batch.column("vcpu")))
            faults = pa.array(np.asarray(batch.column("kind").indices) == _HOST_FAULT)
            yield batch.filter(pc.invert(pc.or_(low, pc.and_(own, faults))))
