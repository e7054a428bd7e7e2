"""Rows wait here until no older one is to be expected, and leave in time order."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from tracekit.trace.schema import EVENTS

__all__ = ["EMPTY", "HoldBack", "concat", "sort_by_time", "split_at", "times"]


class HoldBack:
    """Holds appended batches and hands out the rows older than the newest by more than `window_ns`.

    Events from several CPUs arrive a little out of order; what is younger than the window may still be
    overtaken by an older one.

    >>> from tracekit.trace.batch import events_batch
    >>> waiting = HoldBack(window_ns=50)
    >>> waiting.add(events_batch(ts_ns=[30, 10, 100], kind="access"))
    >>> times(waiting.take()).tolist(), waiting.rows
    ([10, 30], 1)
    >>> times(waiting.take(everything=True)).tolist(), waiting.rows
    ([100], 0)
    """

    def __init__(self, window_ns: int) -> None:
        self._window_ns = window_ns
        self._batches: list[pa.RecordBatch] = []
        self._newest = 0
        self.rows = 0
        self.fresh_rows = 0

    def add(self, batch: pa.RecordBatch) -> None:
        """Take in rows in any order; `fresh_rows` counts those since the last `take`."""
        if batch.num_rows:
            self._batches.append(batch)
            self._newest = max(self._newest, int(times(batch).max()))
            self.rows += batch.num_rows
            self.fresh_rows += batch.num_rows

    def take(self, *, everything: bool = False, at_least: int = 0) -> pa.RecordBatch:
        """Return the ripe rows, or all, in time order; rows of equal time keep their order of arrival.

        At least `at_least` rows leave, ripe or not: that bounds memory.
        """
        rows = sort_by_time(concat(self._batches))
        ripe = rows.num_rows
        if not everything and ripe:
            cutoff = max(0, self._newest - self._window_ns)
            ripe = int(np.searchsorted(times(rows), np.uint64(cutoff), side="right"))
            ripe = min(max(ripe, at_least), rows.num_rows)
        rest = rows.slice(ripe)
        self._batches = [rest] if rest.num_rows else []
        self.rows, self.fresh_rows = rest.num_rows, 0
        return rows.slice(0, ripe)

    def put_back(self, rows: pa.RecordBatch) -> None:
        """Take back the last rows that `take` returned."""
        if rows.num_rows:
            self._batches.insert(0, rows)
            self.rows += rows.num_rows


def times(batch: pa.RecordBatch) -> np.ndarray:
    """Return `ts_ns` as a numpy view."""
    ts: np.ndarray = batch.column("ts_ns").to_numpy(zero_copy_only=True)
    return ts


def concat(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    """Return the batches as one; no copy when there is only one."""
    if not batches:
        return EMPTY
    return batches[0] if len(batches) == 1 else pa.concat_batches(batches)


def sort_by_time(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return the rows in time order (stable); the batch itself if it is sorted already."""
    ts = times(batch)
    if len(ts) < 2 or bool((ts[1:] >= ts[:-1]).all()):
        return batch
    order = pa.array(np.argsort(ts, kind="stable"))
    empty = [column.null_count == len(column) for column in batch.columns]
    columns = [c if skip else c.take(order) for c, skip in zip(batch.columns, empty, strict=True)]
    return pa.RecordBatch.from_arrays(columns, schema=batch.schema)


def split_at(batch: pa.RecordBatch, ts: int | None) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """Split sorted rows into those before `ts` and the rest.

    >>> from tracekit.trace.batch import events_batch
    >>> before, rest = split_at(events_batch(ts_ns=[1, 2, 2, 3], kind="access"), 2)
    >>> times(before).tolist(), times(rest).tolist()
    ([1], [2, 2, 3])
    """
    at = 0 if ts is None else int(np.searchsorted(times(batch), np.uint64(ts), side="left"))
    return batch.slice(0, at), batch.slice(at)


EMPTY = pa.RecordBatch.from_arrays([pa.array([], field.type) for field in EVENTS], schema=EVENTS)
