"""An Arrow IPC stream: what `-` gives, for any Arrow program at the other end of a pipe."""

from __future__ import annotations

from typing import IO

import pyarrow as pa

from tracekit.trace import Trace
from tracekit.trace.schema import EVENTS

__all__ = ["write_arrow_stream"]


def write_arrow_stream(trace: Trace, stream: IO[bytes]) -> None:
    """Write all events in time order; the schema's metadata has the trace's meta.json under `tracekit`."""
    schema = EVENTS.with_metadata({"tracekit": trace.meta.to_json()})
    with pa.ipc.new_stream(stream, schema) as writer:
        for batch in trace.batches(batch_rows=1 << 16):
            writer.write_batch(batch.replace_schema_metadata(schema.metadata))
