"""Perfetto's own format: a track per vCPU with its stalls, a counter track per sampled metric.

Built with the message classes of the `perfetto` package (tracekit[perfetto]): a message for each shape of
row, and numpy for the numbers in it (see `shapes`). A viewer loads every event: large traces go to Parquet.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import IO, Any

import polars as pl

from tracekit.datasets.exporters.shapes import Shape, joined
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
        stream.write(_events(frame, tracks, protos))


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


def _events(frame: pl.DataFrame, tracks: dict[tuple[int, int], int], protos: Any) -> bytes:
    """Return the packets of all rows, in their order, as they stand in a Trace message."""
    of_tracks = pl.DataFrame(
        [(vm, tid, track) for (vm, tid), track in tracks.items()],
        schema={"vm": frame.schema["vm"], "tid": frame.schema["tid"], "track": pl.UInt64()},
        orient="row",
    )
    rows = frame.join(of_tracks, on=["vm", "tid"], how="left", maintain_order="left").with_columns(
        begin_ns=pl.col("ts_ns") - pl.min_horizontal("latency_ns", "ts_ns"), row=pl.int_range(pl.len())
    )
    known = [pl.col(name).is_not_null().alias(f"has_{name}") for name in ("latency_ns", *ARGUMENTS)]
    parts = []
    for (kind, timed, *has), group in rows.group_by("kind", *known):
        names = [name for name, is_there in zip(ARGUMENTS, has, strict=True) if is_there]
        columns = [*(["begin_ns"] if timed else []), "ts_ns", "track", *names]
        numbers = {name: group[name].cast(pl.UInt64).to_numpy() for name in columns}
        shape = Shape.of(partial(_event, protos, str(kind), names), numbers)
        parts.append((group["row"].to_numpy(), shape.filled(numbers)))
    return joined(parts)


def _event(protos: Any, kind: str, names: Sequence[str], numbers: Mapping[str, int]) -> bytes:
    """Return the packets of one row: an instant, or the two ends of a slice where `begin_ns` is given."""
    types, track = protos.TrackEvent, numbers["track"]
    timed = "begin_ns" in numbers
    event = types(type=types.TYPE_SLICE_BEGIN if timed else types.TYPE_INSTANT, track_uuid=track, name=kind)
    for name in names:
        event.debug_annotations.add(name=name, uint_value=numbers[name])
    events = [(numbers["begin_ns" if timed else "ts_ns"], event)]
    if timed:
        events.append((numbers["ts_ns"], types(type=types.TYPE_SLICE_END, track_uuid=track)))
    packets = [
        _packet(protos, track_event=one, timestamp=at_ns, timestamp_clock_id=_CLOCK_MONOTONIC)
        for at_ns, one in events
    ]
    message: bytes = protos.Trace(packet=packets).SerializeToString()
    return message
