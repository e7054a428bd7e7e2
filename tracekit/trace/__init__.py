"""The trace on disk: schema, writer, reader, recover, loss ledger. Knows nothing of bcc or of models."""

from tracekit.trace.batch import events_batch
from tracekit.trace.compaction import CompactReport, compact
from tracekit.trace.memslots import MemslotMap
from tracekit.trace.meta import Meta
from tracekit.trace.reader import Trace, open_trace
from tracekit.trace.recovery import RecoverReport, recover
from tracekit.trace.writer import TraceWriter

__all__ = [
    "CompactReport",
    "MemslotMap",
    "Meta",
    "RecoverReport",
    "Trace",
    "TraceWriter",
    "compact",
    "events_batch",
    "open_trace",
    "recover",
]
