"""Perfetto's own format: a track per vCPU with its stalls, a counter track per sampled metric.

Built with the message classes of the `perfetto` package (tracekit[perfetto]), a message per event: tens of
thousands of events a second. For large traces, export Parquet.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any

import polars as pl

from tracekit.datasets.exporters.tracks import ARGUMENTS, process_name, samples_by_vm, threads
from tracekit.errors import CapabilityError
from tracekit.trace import Trace

__all__ = ["write_perfetto"]

_CHUNK_ROWS = 1 << 16
_SEQUENCE = 1
_CLOCK_MONOTONIC, _CLOCK_BOOTTIME = 3, 6  # perfetto.protos.BuiltinClock
_UNIT_BYTES = 3  # CounterDescriptor.UNIT_SIZE_BYTES
_CLEARED = 1  # TracePacket.SEQ_INCREMENTAL_STATE_CLEARED


def write_perfetto(trace: Trace, stream: IO[bytes]) -> None:
    """Write all events; CapabilityError without the perfetto package.

    Rows with a latency are slices from ts_ns - latency_ns to ts_ns, others are instants. Times are those of
    CLOCK_MONOTONIC, with a snapshot that ties them to CLOCK_BOOTTIME, perfetto's own.
    """
    try:
        from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as protos
    except ImportError:
        raise CapabilityError(
            "the perfetto package is not installed", hint="pip install 'tracekit[perfetto]'"
        ) from None
    tracks = {(vm, tid): number for number, (vm, tid, _) in enumerate(threads(trace), start=1 << 20)}
    _write(protos, stream, _descriptors(trace, tracks, protos))
    _write(protos, stream, _counters(trace, protos))
    for batch in trace.batches(batch_rows=_CHUNK_ROWS):
        frame = pl.from_arrow(batch)
        assert isinstance(frame, pl.DataFrame)
        _write(protos, stream, _events(frame, tracks, protos))


def _write(protos: Any, stream: IO[bytes], packets: Iterator[Any]) -> None:
    # A trace file is a Trace message, and those can be cut anywhere between packets.
    chunk = protos.Trace()
    chunk.packet.extend(packets)
    stream.write(chunk.SerializeToString())


def _packet(protos: Any, **fields: Any) -> Any:
    return protos.TracePacket(trusted_packet_sequence_id=_SEQUENCE, **fields)


def _descriptors(trace: Trace, tracks: dict[tuple[int, int], int], protos: Any) -> Iterator[Any]:
    boot_offset_ns = trace.meta.clock.get("boot_offset_ns", 0)
    start_ns = trace.meta.start_ns or 0
    clocks = protos.ClockSnapshot()
    clocks.clocks.add(clock_id=_CLOCK_MONOTONIC, timestamp=start_ns)
    clocks.clocks.add(clock_id=_CLOCK_BOOTTIME, timestamp=start_ns + boot_offset_ns)
    yield _packet(protos, clock_snapshot=clocks, sequence_flags=_CLEARED)
    for vm in range(len(trace.meta.vms)):
        process = protos.ProcessDescriptor(pid=_pid(trace, vm), process_name=process_name(trace, vm))
        yield _packet(protos, track_descriptor=protos.TrackDescriptor(uuid=vm + 1, process=process))
    for vm, tid, name in threads(trace):
        thread = protos.ThreadDescriptor(pid=_pid(trace, vm), tid=tid, thread_name=name)
        track = protos.TrackDescriptor(uuid=tracks[vm, tid], parent_uuid=vm + 1, thread=thread)
        yield _packet(protos, track_descriptor=track)


def _pid(trace: Trace, vm: int) -> int:
    return trace.meta.vms[vm].get("pid") or 1_000_000 + vm


def _counters(trace: Trace, protos: Any) -> Iterator[Any]:
    tracks: dict[tuple[int, str], int] = {}
    for ts_ns, vm, metric, value in samples_by_vm(trace):
        if (vm, metric) not in tracks:
            uuid = tracks[vm, metric] = (1 << 40) + len(tracks)
            counter = protos.CounterDescriptor(unit=_UNIT_BYTES) if metric.endswith("_bytes") else None
            track = protos.TrackDescriptor(
                uuid=uuid, parent_uuid=vm + 1, name=metric, counter=counter or protos.CounterDescriptor()
            )
            yield _packet(protos, track_descriptor=track)
        event = protos.TrackEvent(
            type=protos.TrackEvent.TYPE_COUNTER, track_uuid=tracks[vm, metric], double_counter_value=value
        )
        yield _packet(protos, track_event=event, timestamp=ts_ns, timestamp_clock_id=_CLOCK_MONOTONIC)


def _events(frame: pl.DataFrame, tracks: dict[tuple[int, int], int], protos: Any) -> Iterator[Any]:
    types = protos.TrackEvent
    columns = ["ts_ns", "latency_ns", "vm", "tid", "kind", *ARGUMENTS]
    for ts_ns, latency_ns, vm, tid, kind, *values in frame.select(columns).iter_rows():
        track = tracks[vm, tid]
        event = types(type=types.TYPE_INSTANT, track_uuid=track, name=kind)
        for name, value in zip(ARGUMENTS, values, strict=True):
            if value is not None:
                event.debug_annotations.add(name=name, uint_value=value)
        if latency_ns is None:
            yield _packet(protos, track_event=event, timestamp=ts_ns, timestamp_clock_id=_CLOCK_MONOTONIC)
            continue
        event.type = types.TYPE_SLICE_BEGIN
        begin_ns = max(0, ts_ns - latency_ns)
        yield _packet(protos, track_event=event, timestamp=begin_ns, timestamp_clock_id=_CLOCK_MONOTONIC)
        end = types(type=types.TYPE_SLICE_END, track_uuid=track)
        yield _packet(protos, track_event=end, timestamp=ts_ns, timestamp_clock_id=_CLOCK_MONOTONIC)
