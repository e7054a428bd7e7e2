"""A small guest's trace without what is none of the memory compared, and without waits for a CPU.

Left out: the guest's low area (tables, code, pages of its calls), and what its vCPUs' threads fault of their
VMM's own memory (stack, heap): both are of the laboratory, and the second differs from run to run.

A recorded latency holds what the thread waited for a CPU inside the fault, which is another in every run. A
fault that took over `TIMES` as long as the median of its kind and level was not being served all the while:
it counts as that median. (In recordings of 20,000 to 33,000 faults on two busy CPUs these were 2 to 6 of
1,000 faults, and 5 to 65 % of the stall.) Faults that wait for a device are left as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from tracekit.replay.timeline import TraceLike
from tracekit.trace.schema import FLAG_MAJOR, KIND_CODE, PAGE_BYTES

__all__ = ["TIMES", "Compared"]

TIMES: Final = 10.0
"""A fault that took so many times the median waited for a CPU."""
_HOST_FAULT: Final = KIND_CODE["host_fault"]
_FAULTS: Final = (KIND_CODE["ept_violation"], _HOST_FAULT)
_LEVELS: Final = 4


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
            yield self._undisturbed(batch.filter(pc.invert(pc.or_(low, pc.and_(own, faults)))))

    @cached_property
    def _usual_ns(self) -> npt.NDArray[np.float64]:
        """The median latency of faults by group; infinite where there are none."""
        found = np.full(256 * _LEVELS, np.inf)
        groups, latencies = [], []
        for batch in self._trace.batches(["kind", "level", "flags", "latency_ns"], 1 << 20):
            group, latency = _groups(batch)
            groups.append(group[group >= 0])
            latencies.append(latency[group >= 0])
        if groups:
            group, latency = np.concatenate(groups), np.concatenate(latencies)
            for one in np.unique(group).tolist():
                found[one] = np.median(latency[group == one])
        return found

    def _undisturbed(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return the batch with the usual latency for faults that waited for a CPU."""
        if "latency_ns" not in batch.schema.names:
            return batch
        group, latency = _groups(batch)
        usual = np.where(group >= 0, self._usual_ns[group], np.inf)
        waited = latency > TIMES * usual
        if not waited.any():
            return batch
        at = batch.schema.get_field_index("latency_ns")
        field = batch.schema.field(at)
        instead = pa.array(np.where(waited, usual, 0).astype(np.int64)).cast(field.type)
        return batch.set_column(at, field, pc.if_else(pa.array(waited), instead, batch.column(at)))


def _groups(batch: pa.RecordBatch) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return each event's group (kind and level of a minor fault that has a latency, else -1) and latency."""
    kind = np.asarray(batch.column("kind").indices).astype(np.int64)
    level = pc.fill_null(batch.column("level"), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    flags = pc.fill_null(batch.column("flags"), 0).to_numpy(zero_copy_only=False)
    latency = pc.fill_null(batch.column("latency_ns").cast(pa.float64()), -1.0).to_numpy(zero_copy_only=False)
    minor = np.isin(kind, _FAULTS) & (flags & FLAG_MAJOR == 0) & (latency >= 0)
    return np.where(minor, kind * _LEVELS + np.minimum(level, _LEVELS - 1), -1), latency
