"""Rows wait here until no older one is to be expected, and leave in time order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from tracekit.trace.schema import EVENTS

__all__ = [
    "EMPTY",
    "HoldBack",
    "concat",
    "frames",
    "goes_back",
    "is_sorted",
    "rows_of",
    "sort_by_time",
    "split_at",
    "times",
]


class HoldBack:
    """Holds appended batches and hands out the rows older than the newest by more than `window_ns`.

    Events from several CPUs arrive a little out of order; what is younger than the window may still be
    overtaken by an older one.

    >>> from tracekit.trace.batch import events_batch
    >>> waiting = HoldBack(window_ns=50)
    >>> waiting.add(events_batch(ts_ns=[30, 10, 100], kind="access"))
    >>> [times(batch).tolist() for batch in waiting.take()], waiting.rows
    ([[10, 30]], 1)
    >>> [times(batch).tolist() for batch in waiting.take(everything=True)], waiting.rows
    ([[100]], 0)
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
            batch = sort_by_time(batch)
            self._batches.append(batch)
            self._newest = max(self._newest, int(times(batch)[-1]))
            self.rows += batch.num_rows
            self.fresh_rows += batch.num_rows

    def take(self, *, everything: bool = False, at_least: int = 0) -> list[pa.RecordBatch]:
        """Return the ripe rows, or all, in time order; rows of equal time keep their order of arrival.

        At least `at_least` rows leave, ripe or not: that bounds memory. Nothing is copied where the batches
        came in order already.
        """
        cutoff = np.uint64(max(0, self._newest - self._window_ns))
        ripe: list[pa.RecordBatch] = []
        rest: list[pa.RecordBatch] = []
        for batch in _in_order(self._batches):
            count = batch.num_rows
            if not everything:
                due = int(np.searchsorted(times(batch), cutoff, side="right"))
                count = min(max(due, at_least), count)
                at_least -= count
            ripe += [batch.slice(0, count)] if count else []
            rest += [batch.slice(count)] if count < batch.num_rows else []
        self._batches = rest
        self.rows, self.fresh_rows = rows_of(rest), 0
        return ripe

    def put_back(self, rows: list[pa.RecordBatch]) -> None:
        """Take back the last rows that `take` returned."""
        self._batches = [*rows, *self._batches]
        self.rows += rows_of(rows)


def frames(batches: Sequence[pa.RecordBatch], *, most: int) -> list[list[pa.RecordBatch]]:
    """Return the rows in groups of `most`, the last one of what is left; nothing is copied.

    >>> from tracekit.trace.batch import events_batch
    >>> made = [events_batch(ts_ns=range(rows), kind="access") for rows in (2, 3, 70, 250, 1)]
    >>> [[batch.num_rows for batch in group] for group in frames(made, most=100)]
    [[2, 3, 70, 25], [100], [100], [25, 1]]
    """
    groups: list[list[pa.RecordBatch]] = []
    room = 0
    for batch in batches:
        at = 0
        while at < batch.num_rows:
            if not room:
                groups.append([])
                room = most
            piece = batch.slice(at, room)
            groups[-1].append(piece)
            at += piece.num_rows
            room -= piece.num_rows
    return groups


def rows_of(batches: Sequence[pa.RecordBatch]) -> int:
    """Return how many rows the batches have."""
    return sum(batch.num_rows for batch in batches)


def _in_order(batches: list[pa.RecordBatch]) -> list[pa.RecordBatch]:
    """Return the rows of sorted batches in such as begin no earlier than the one before ends.

    Only rows where batches overlap are copied together.
    """
    made: list[pa.RecordBatch] = []
    for batch in batches:
        first = times(batch)[0]
        later: list[pa.RecordBatch] = []
        while made and times(made[-1])[-1] > first:
            before = made.pop()
            at = int(np.searchsorted(times(before), first, side="right"))
            later.insert(0, before.slice(at))
            made += [before.slice(0, at)] if at else []
        if not later:
            made.append(batch)
            continue
        at = int(np.searchsorted(times(batch), times(later[-1])[-1], side="left"))
        made.append(sort_by_time(concat([*later, batch.slice(0, at)])))
        made += [batch.slice(at)] if at < batch.num_rows else []
    return made


def times(batch: pa.RecordBatch) -> np.ndarray:
    """Return `ts_ns` as a numpy view."""
    ts: np.ndarray = batch.column("ts_ns").to_numpy(zero_copy_only=True)
    return ts


def concat(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    """Return the batches as one; no copy when there is only one."""
    if not batches:
        return EMPTY
    return batches[0] if len(batches) == 1 else pa.concat_batches(batches)


def is_sorted(batch: pa.RecordBatch) -> bool:
    """Return whether the rows are in time order."""
    ts = times(batch)
    return len(ts) < 2 or bool((ts[1:] >= ts[:-1]).all())


def goes_back(batch: pa.RecordBatch, since: int) -> bool:
    """Return whether the rows (one at least) are out of time order, or begin before `since`."""
    return int(times(batch)[0]) < since or not is_sorted(batch)


def sort_by_time(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return the rows in time order (stable); the batch itself if it is sorted already."""
    if is_sorted(batch):
        return batch
    order = pa.array(np.argsort(times(batch), kind="stable"))
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
