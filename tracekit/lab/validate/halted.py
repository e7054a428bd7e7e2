"""The trace of a guest that declined asynchronous page faults, as waits: KVM halts its vCPU for each.

KVM reads such a page in a worker all the same: the fault is put off (a row without a level), the vCPU halts,
and apf_ready ends the wait. For the model that is one major fault, from not-present to ready, made where the
fault was that had been put off: in the guest's kernel there is nothing that it could do instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any, Final

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from tracekit.replay.timeline import TraceLike
from tracekit.trace.schema import FLAG_KERNEL, FLAG_MAJOR, KIND_CODE

__all__ = ["Halted"]

_READY: Final = KIND_CODE["apf_ready"]
_FAULT: Final = KIND_CODE["ept_violation"]
_PAGE: Final = ("vm", "vcpu", "gfn")


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
        done = 0
        for batch in self._trace.batches(columns, batch_rows):
            waits = _waits_of(batch)
            count = pc.sum(waits).as_py() or 0
            flags = self._waits["flags"].slice(done, count).to_arrow()
            at = batch.schema.get_field_index("flags")
            column = pc.replace_with_mask(batch.column(at), waits, flags)
            made = batch.set_column(at, batch.schema.field(at), column)
            yield _with(made, waits, kind=_FAULT, level=1)
            done += count

    @property
    def halted_ns(self) -> int:
        """How long vCPUs were halted in all: from when KVM was done with a put-off fault to the page."""
        return int(self._waits.select(pl.min_horizontal("latency_ns", "since_ns").sum()).item())

    @cached_property
    def _waits(self) -> pl.DataFrame:
        """Each wait: `latency_ns`, the `flags` of its fault, and since when that was put off, if seen."""
        columns = ["ts_ns", "kind", *_PAGE, "level", "latency_ns", "rip"]
        waits, put_off = [], []
        for batch in self._trace.batches(columns, 1 << 20):
            faults = pa.array(np.asarray(batch.column("kind").indices) == _FAULT)
            frame = pl.DataFrame(batch).drop("kind", "level")
            waits.append(frame.filter(pl.Series(_waits_of(batch))))
            put_off.append(frame.filter(pl.Series(pc.and_(faults, pc.is_null(batch.column("level"))))))
        faults_left = pl.concat(put_off).with_columns(left_ns="ts_ns").drop("latency_ns")
        return (
            pl.concat(waits)
            .drop("rip")
            .join_asof(faults_left, on="ts_ns", by=_PAGE, check_sortedness=False)
            .with_columns(since_ns=pl.col("ts_ns") - pl.col("left_ns"))
            # An earlier wait for the same page has a put-off fault of its own.
            .with_columns(pl.when(pl.col("since_ns") <= pl.col("latency_ns")).then(pl.col("rip", "since_ns")))
            # The upper half of the addresses is the kernel's (x86-64).
            .with_columns(
                flags=pl.when(pl.col("rip") >= 1 << 63)
                .then(FLAG_MAJOR | FLAG_KERNEL)
                .otherwise(FLAG_MAJOR)
                .cast(pl.UInt32)
            )
        )


def _waits_of(batch: pa.RecordBatch) -> pa.Array:
    """Say which rows end a wait."""
    ready = pa.array(np.asarray(batch.column("kind").indices) == _READY)
    # Without a gfn or a latency (a wake-up when the guest switches the mechanism on) it is no wait.
    known = pc.and_(pc.is_valid(batch.column("gfn")), pc.is_valid(batch.column("latency_ns")))
    return pc.and_(ready, known)


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
