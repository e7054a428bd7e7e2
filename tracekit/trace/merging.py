"""Parts that overlap in time become one stream in time order, a bounded window at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa

from tracekit.errors import DamagedError
from tracekit.trace.holdback import concat, goes_back, sort_by_time, times

__all__ = ["Source", "joined", "merge_sources", "rebatch"]


class Source:
    """A sorted stream of batches that is opened only when its time comes.

    `first_ts` and `last_ts` are the times of its first and last row; `open` starts the stream.
    """

    def __init__(self, first_ts: int, last_ts: int, open_: Callable[[], Iterable[pa.RecordBatch]]) -> None:
        self.first_ts, self.last_ts = first_ts, last_ts
        self.head: pa.RecordBatch | None = None
        self._open = open_
        self._batches: Iterator[pa.RecordBatch] | None = None
        self._seen_ts = 0

    def fill(self) -> bool:
        """Have rows in `head`; False at the end of the stream.

        Raises DamagedError where time goes back: merging would never end, or give rows out of order.
        """
        if self._batches is None:
            self._batches = iter(self._open())
        while self.head is None or not self.head.num_rows:
            self.head = next(self._batches, None)
            if self.head is None:
                return False
            if self.head.num_rows:
                if goes_back(self.head, self._seen_ts):
                    raise DamagedError("the events of this trace are damaged: in one part time goes back")
                self._seen_ts = int(times(self.head)[-1])
        return True

    def take_until(self, ts: int) -> pa.RecordBatch:
        """Remove and return the rows of `head` up to and including `ts`."""
        assert self.head is not None
        at = int(np.searchsorted(times(self.head), np.uint64(ts), side="right"))
        taken, self.head = self.head.slice(0, at), self.head.slice(at)
        return taken


def merge_sources(sources: Sequence[Source]) -> Iterator[pa.RecordBatch]:
    """Yield the rows of all sources in time order; rows of equal time in the order of the sources.

    Memory: one batch per source that is open at the same time.
    """
    waiting = sorted(sources, key=lambda source: source.first_ts, reverse=True)
    place = {id(source): at for at, source in enumerate(sources)}
    active: list[Source] = []
    while waiting or active:
        if not active:
            active.append(waiting.pop())
        active = [source for source in active if source.fill()]
        if not active:
            continue
        # Complete up to where the shortest head ends: no source can still bring an older row.
        bound = min(int(times(source.head)[-1]) for source in active if source.head is not None)
        if waiting and waiting[-1].first_ts <= bound:
            active.append(waiting.pop())
            active.sort(key=lambda source: place[id(source)])
            continue
        taken = [source.take_until(bound) for source in active]
        taken = [rows for rows in taken if rows.num_rows]
        yield taken[0] if len(taken) == 1 else sort_by_time(concat(taken))


def joined(batches: Iterable[pa.RecordBatch], least: int) -> Iterator[pa.RecordBatch]:
    """Yield the same rows, small batches joined until they have `least` rows, others as they are."""
    pending: list[pa.RecordBatch] = []
    held = 0
    for batch in batches:
        pending.append(batch)
        held += batch.num_rows
        if held >= least:
            yield concat(pending)
            pending, held = [], 0
    if held:
        yield concat(pending)


def rebatch(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """Yield the same rows in batches of exactly `rows`, the last one shorter."""
    pending: list[pa.RecordBatch] = []
    held = 0
    for batch in batches:
        rest = batch
        while held + rest.num_rows >= rows:
            pending.append(rest.slice(0, rows - held))
            rest = rest.slice(rows - held)
            yield concat(pending)
            pending, held = [], 0
        if rest.num_rows:
            pending.append(rest)
            held += rest.num_rows
    if held:
        yield concat(pending)
