"""Traces whose recording was cut short, for the tests of what recovers them."""

import numpy as np
import pyarrow as pa

from tracekit.trace import Meta, TraceWriter, events_batch
from tracekit.trace.schema import EVENTS

PART = "events/00000.arrow.part"
FRAMES = 3
ROWS = 7


def rows(start, count=ROWS):
    return events_batch(
        ts_ns=np.arange(start, start + count), kind="page_alloc", gfn=np.arange(count) * 3, flags=2
    )


def write_frames(path, frames=FRAMES, **options):
    """Return a writer with that many flushed frames, and the size of the part after each."""
    writer = TraceWriter(path, Meta(source="recorded", start_ns=0), **options)
    sizes = []
    for frame in range(frames):
        writer.append(rows(frame * 100))
        writer.flush(everything=True)
        sizes.append((path / PART).stat().st_size)
    return writer, sizes


def contents(trace):
    batches = list(trace.batches())
    return pa.concat_batches(batches) if batches else pa.RecordBatch.from_pylist([], schema=EVENTS)
