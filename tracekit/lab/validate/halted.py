"""The trace of a guest that declined asynchronous page faults, as waits: KVM halts its vCPU for each.

KVM reads such a page in a worker all the same: the fault is put off (a row without a level), the vCPU halts,
and apf_ready ends the wait. For the model that is one major fault, from not-present to ready.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from tracekit.replay.timeline import TraceLike
from tracekit.trace.schema import FLAG_MAJOR, KIND_CODE

__all__ = ["Halted"]

_READY: Final = KIND_CODE["apf_ready"]
_FAULT: Final = KIND_CODE["ept_violation"]


class Halted:
    """A trace as a replay reads it, with each wait of a halted vCPU as a major fault of the guest."""

    def __init__(self, trace: TraceLike) -> None:
        self._trace = trace
        self.meta: Any = trace.meta
        self.memslots: pl.DataFrame = trace.memslots
        self.losses, self.lost = trace.losses, trace.lost

    def batches(
        self, columns: list[str] | None = None, batch_rows: int = 1 << 20
    ) -> Iterator[pa.RecordBatch]:
        """Yield the events in time order; `columns` must hold kind, level, flags, gfn and latency_ns."""
        for batch in self._trace.batches(columns, batch_rows):
            # Without a gfn or a latency (a wake-up when the guest switches the mechanism on) it is no wait.
            ready = pa.array(np.asarray(batch.column("kind").indices) == _READY)
            known = pc.and_(pc.is_valid(batch.column("gfn")), pc.is_valid(batch.column("latency_ns")))
            waits = pc.and_(ready, known)
            yield _with(batch, waits, kind=_FAULT, level=1, flags=FLAG_MAJOR)


def _with(batch: pa.RecordBatch, rows: pa.Array, **values: int) -> pa.RecordBatch:
    """Return the batch with these values in the columns of those rows."""
    for name, value in values.items():
        at = batch.schema.get_field_index(name)
        field, column = batch.schema.field(at), batch.column(at)
        if pa.types.is_dictionary(field.type):
            codes = pc.if_else(rows, pa.scalar(value, field.type.index_type), column.indices)
            changed = pa.DictionaryArray.from_arrays(codes, column.dictionary, ordered=field.type.ordered)
        else:
            changed = pc.if_else(rows, pa.scalar(value, field.type), column)
        batch = batch.set_column(at, field, changed)
    return batch
